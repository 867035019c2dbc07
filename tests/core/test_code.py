"""The hash of a method's code: what changes it, what does not, and when it stands in a key."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeper.core import catalog, code, syntax
from sweeper.core.errors import SweepError

METHOD = '''
"""A method."""
from typing import ClassVar
from helper import constant
import torch

class Mine:
    """It."""
    version = 1
    rate: int = 3
    """Its rate."""

    def defend(self):
        # a remark
        from package.inner import deep
        return constant() + deep(self.rate)
'''
FILES = {
    "mine.py": METHOD,
    "helper.py": "from deeper import value\ndef constant():\n    return value\n",
    "deeper.py": "value = 1\n",
    "package/__init__.py": "",
    "package/inner.py": "from . import sibling\nfrom ..package.other import thing\ndef deep(x):\n"
    "    return x\n",
    "package/sibling.py": "near = 1\n",
    "package/other.py": "thing = 1\n",
    "unused.py": "nothing = 1\n",
}

Hash = Callable[[], str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a method and what it imports, as a sweep file's `mine:Mine` finds it."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def loaded() -> type:
    """The class as a new process would import it."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("mine", "helper", "package")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    found: type = importlib.import_module("mine").Mine
    return found


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new) + "\n")  # another length: seen within one tick


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("mine.py", "# a remark", "# another remark, longer"),
        ("mine.py", '"""It."""', '"""It, said in another way."""'),
        ("mine.py", '    """Its rate."""\n', ""),
        ("mine.py", "rate: int = 3", "rate: int  =  (3)"),
        ("mine.py", '"""A method."""\n', ""),
        ("helper.py", "def constant():", "def constant():\n    '''The one.'''"),
        ("unused.py", "nothing = 1", "nothing = 2"),
        ("mine.py", "    version = 1", "    version = 1\n    light = True"),
        ("mine.py", "    version = 1", "    version = 1\n    light: ClassVar[bool] = False"),
    ],
)
def test_what_does_not_run_does_not_count(folder: Path, file: str, old: str, new: str) -> None:
    before = code.of(loaded())
    edit(folder / file, old, new)
    assert code.of(loaded()) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("mine.py", "rate: int = 3", "rate: int = 4"),
        ("mine.py", "return constant() +", "return constant() -"),
        ("helper.py", "return value", "return -value"),
        ("deeper.py", "value = 1", "value = 2"),
        ("package/__init__.py", "", "x = 1"),
        ("package/inner.py", "return x", "return -x"),
        ("package/sibling.py", "near = 1", "near = 2"),
        ("package/other.py", "thing = 1", "thing = 2"),
        ("mine.py", "    version = 1", "    version = 1\n    light: bool = True"),
        ("mine.py", "    version = 1", "    version = 1\n    light = 3"),
        ("mine.py", "        # a remark", "        light = True"),
        ("helper.py", "def constant", "light = True\ndef constant"),
    ],
)
def test_what_runs_counts_wherever_it_stands(folder: Path, file: str, old: str, new: str) -> None:
    before = code.of(loaded())
    edit(folder / file, old, new)
    assert code.of(loaded()) != before


def test_the_hash_of_a_loaded_class_stays_and_an_edit_under_it_is_refused(folder: Path) -> None:
    """A process goes on running what it imported: a notebook."""
    mine = loaded()
    before = code.of(mine)
    assert code.version(mine(), mine) == f"1+{before}", "a method from outside has its hash in keys"
    edit(folder / "deeper.py", "value = 1", "value = 2")
    assert code.of(mine) == before
    with pytest.raises(SweepError, match="restart the kernel"):
        code.version(mine(), mine)
    edit(folder / "deeper.py", "value = 2", "value = 1  # as it was")
    assert code.version(mine(), mine) == f"1+{before}"


def test_other_code_than_was_planned_is_refused(folder: Path) -> None:
    planned = code.version(loaded()(), loaded())
    code.expect(planned, loaded())
    edit(folder / "mine.py", "rate: int = 3", "rate: int = 4")
    with pytest.raises(RuntimeError, match="run the command again"):
        code.expect(planned, loaded())
    code.expect(1, loaded())


def test_installed_packages_beside_a_method_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "site-packages"
    (place / "plugin").mkdir(parents=True)
    (place / "plugin/__init__.py").write_text("")
    (place / "plugin/part.py").write_text("part = 1")
    (place / "library.py").write_text("big = 1")
    text = "import library\nfrom plugin import part\nclass Mine:\n    version = 1\n"
    (place / "plugin/method.py").write_text(text)
    monkeypatch.syspath_prepend(str(place))
    mine = importlib.import_module("plugin.method").Mine
    assert set(code._files(mine)) == {"plugin", "plugin.method", "plugin.part"}


def test_a_class_without_a_source_is_known_by_its_byte_code() -> None:
    def made(text: str) -> type:
        module = types.ModuleType("__main__")
        exec(text, vars(module))
        found: type = vars(module)["Mine"]
        found.__module__ = "no module has this name"
        return found

    text = "class Mine:\n  version = 1\n  rate = 3\n  def defend(self):\n    return {1} & {2, 3}\n"
    first, again = made(text), made(text)
    assert code.of(first) == code.of(again)
    for old, new in (("rate = 3", "rate = 4"), ("& {2", "| {2"), ("return", "x = 1; return")):
        assert code.of(made(text.replace(old, new))) != code.of(first), new
    assert code.of(made(text.replace("rate = 3", "rate = 3; light = True"))) == code.of(first)


def test_methods_that_ship_have_their_number_alone_unless_edited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cls, other = catalog.method("defense", "d-br"), catalog.method("defense", "anp")
    built, part = catalog.make("defense", "d-br", {}), code.HOUSE / "defenses/parts/sd.py"
    monkeypatch.setattr(code, "_uncommitted", frozenset)
    assert code.version(built, cls) == built.version
    monkeypatch.setattr(code, "_uncommitted", lambda: frozenset([part]))
    monkeypatch.setattr(code, "_of_head", lambda path: code._read(path)[0])
    assert code.version(built, cls) == built.version, "edited in comments alone"
    monkeypatch.setattr(code, "_of_head", lambda path: "")
    assert code.version(built, cls) == f"{built.version}+{code.of(cls)}"
    assert code.version(catalog.make("defense", "anp", {}), other) == other.version


def test_git_says_what_is_edited_and_no_git_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    house = tmp_path / "within"
    (house / "defenses").mkdir(parents=True)
    for name in ("one.py", "remarked.py", "same.py"):
        (house / "defenses" / name).write_text("value = 1\n")
    monkeypatch.setattr(code, "HOUSE", house)
    uncommitted, of_head = code._uncommitted.__wrapped__, code._of_head.__wrapped__
    monkeypatch.setattr(code, "_of_head", of_head)
    assert uncommitted() == frozenset(), "no repository"
    git("init")
    assert uncommitted() == frozenset(), "of somebody else's, in which this is installed"
    git("add", ".")
    git("commit", "-m", "first")
    assert uncommitted() == frozenset()
    (house / "defenses/one.py").write_text("value = 2\n")
    (house / "defenses/remarked.py").write_text("value = 1  # one\n")
    (house / "defenses/new.py").write_text("value = 1\n")
    found = {path.name for path in uncommitted()}
    assert found == {"one.py", "remarked.py", "new.py"}
    edited = {path.name for path in uncommitted() if code._edited(path)}
    assert edited == {"one.py", "new.py"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert uncommitted() == frozenset(), "no git"


def test_the_engine_counts_what_all_stand_on_and_one_family_alone() -> None:
    from sweeper import models

    families = models.families()
    assert code.engine(families["resnet18"]) != code.engine(families["tiny"])
    files = code._files(families["resnet18"])
    assert {"sweeper.models", "sweeper.models.base", "sweeper.models.resnet"} <= set(files)
    assert "sweeper.models.vit" not in files and "sweeper.engine.training" not in files


def test_a_text_that_was_read_once_is_read_by_no_later_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading what all methods run takes half as long as the rest of `sweeper plan grand`."""
    monkeypatch.setenv("SWEEPER_CACHE", str(folder / "cache"))
    before = code.of(loaded())
    code._parsed.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(syntax, "parsed", None)
        assert code.of(loaded()) == before
    files = sorted((folder / "cache/code").iterdir())
    assert len(files) == 7
    for file in files[:3]:
        file.write_text("[")
    edit(folder / "deeper.py", "value = 1", "value = 2")
    code._parsed.cache_clear()
    assert code.of(loaded()) != before


def test_where_nothing_can_be_kept_the_hash_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code.of(loaded())
    monkeypatch.setenv("SWEEPER_CACHE", str(folder / "mine.py"))
    code._parsed.cache_clear()
    assert code.of(loaded()) == before


def test_each_file_is_looked_at_once_while_files_are_still(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, asked = loaded(), list[str]()
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or isfile(path))
    with code.still():
        code.version(mine(), mine)
        assert len(asked) == len(set(asked)) > 0
        looked = len(asked)
        code.version(mine(), mine)
        assert len(asked) == looked
    edit(folder / "deeper.py", "value = 1", "value = 2")
    with pytest.raises(SweepError, match="restart the kernel"):
        code.version(mine(), mine)


@pytest.mark.parametrize("version", ["2", 1.5, True])
def test_a_version_is_a_whole_number(folder: Path, version: object) -> None:
    """What a cell's draws derive from is read from the number in its key."""
    edit(folder / "mine.py", "version = 1", f"version = {version!r}")
    mine = loaded()
    with pytest.raises(SweepError, match="version: needs a whole number"):
        code.version(mine(), mine)
