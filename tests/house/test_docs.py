"""The README and the pages of docs/: blocks of code are valid or run, links lead somewhere."""

from __future__ import annotations

import html
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from attacks.base import Attack
from defenses.base import Defense
from sweeper import data
from sweeper.cli import pages
from sweeper.cli.app import app
from sweeper.core import names
from sweeper.data import _options
from sweeper.plan import spec
from sweeper.run import driver
from tests.support import sweeps
from tests.support.places import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
EXAMPLES = [DOCS / f"{kind}s.md" for kind in names.KINDS]
"""Pages of all methods: that their entries run is a test of `sweeper describe`."""
every = pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in EXAMPLES], ids=lambda page: page.stem
)
INCLUDE = re.compile(r'^--8<-- "(.+)"$|^--8<--\n(.+)\n--8<--$', re.MULTILINE)
"""A file the site shows in the place of this; ruff would format the first form in Python."""
COLUMN = 92
"""Characters that fit a column of the site, by docs/extra.css."""
SCISSORS = re.compile(r"-\s*-\s*8\s*<\s*-\s*-")
"""What is left of an include, however it is spaced, where the site shows it as it stands."""


def blocks(page: Path, language: str) -> list[str]:
    """What stands in the blocks of a language, with the files they include."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    dedented = [textwrap.dedent(block) for block in found]
    return [INCLUDE.sub(lambda m: (ROOT / (m[1] or m[2])).read_text(), text) for text in dedented]


def commands() -> list[tuple[str, str]]:
    """(page, line) of every call of sweeper: in `sh` blocks, and indented by four spaces."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", "")
        indented = re.findall(r"^ {4}(sweeper .*)$", text, re.MULTILINE)
        shell = "".join(blocks(page, "sh")).replace("\\\n", "").splitlines()
        found += [(page.stem, line) for line in [*indented, *shell] if "sweeper " in line]
    return found


def test_there_is_something_to_test() -> None:
    assert len(commands()) > 20 and sum(len(blocks(page, "yaml")) for page in PAGES) > 5
    known = {"sh", "yaml", "python", "text", "mermaid"}
    for page in PAGES:
        languages = re.findall(r"^ *```(.+)$", page.read_text("utf-8"), re.MULTILINE)
        assert set(languages) <= known, f"{page.name}: a block that no test reads"


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_line_is_one(page: str, line: str) -> None:
    alone = re.split(r"&&| [|>] ", line[line.index("sweeper ") :])[0]
    words = shlex.split(alone, comments=True)[1:]
    known: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words == ["--install-completion"]
        return
    while hasattr(known, "commands"):  # a group of commands, such as `cluster`
        assert words[0] in known.commands, f"{page}: no command {words[0]}"
        known, *words = known.commands[words[0]], *words[1:]
    known.make_context(known.name, words)  # raises what it would print


def test_every_option_of_a_data_set_stands_on_its_page() -> None:
    text = (DOCS / "data.md").read_text("utf-8")
    named = {name for kind in data.sources() for name in _options.every(kind)}
    said = {
        name
        for cell in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
        for name in cell.split(", ")
    }
    assert sorted(named - {name.strip("`") for name in said}) == []


@pytest.mark.parametrize("kind", names.KINDS)
def test_the_page_of_all_methods_is_current(kind: str) -> None:
    page = f"docs/{kind}s.md"
    made = (ROOT / page).read_text("utf-8") == pages.text(kind)
    assert made, f"a method changed: run `python -m sweeper.cli.pages {page}`"


@every
def test_a_sweep_file_is_valid(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        if "name" not in values:  # a part of a sweep file
            values = {**sweeps.SMALL, **values}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        spec.load(str(path))


def wide(page: Path) -> list[str]:
    """Lines of code that leave their column where the window is 1280 px wide."""
    text = re.sub(r"^:   .*\n(?: {4}.*\n)*", "", page.read_text("utf-8"), flags=re.MULTILINE)
    indented = re.findall(r"^ {4}(?!options: )(.+)$", text, re.MULTILINE)
    fenced = [line for block in blocks(page, r"\w+") for line in block.splitlines()]
    return [line for line in (*fenced, *indented) if len(line) > COLUMN]


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_code_stays_in_its_column(page: Path) -> None:
    assert not wide(page)


def test_the_example_of_a_paper_is_the_sweep_that_ships() -> None:
    (text,) = blocks(DOCS / "paper.md", "yaml")
    shown = yaml.safe_load(text)
    shipped = yaml.safe_load((ROOT / f"sweeper/sweeps/{shown['name']}.yaml").read_text())
    assert shown["defenses"] == shipped["defenses"][:-5]
    assert {**shown, "defenses": ""} == {**{key: shipped[key] for key in shown}, "defenses": ""}


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder a reader works in: modules are found there, the store is made there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEPER_STORE", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


def run_python(page: Path) -> dict[str, Any]:
    """Run the Python of a page, and one cell of each method in its files that it does not run."""
    known: dict[str, Any] = {"__name__": "page"}
    ran, written = "", []
    for text in blocks(page, "python"):
        if file := re.match(r"# (\w+)\.py\n", text):
            Path(f"{file[1]}.py").write_text(text)
            written.append(file[1])
        else:
            exec(compile(text, page.name, "exec"), known)
            ran += text
    methods: dict[str, list[str]] = {"attack": [], "defense": []}
    for module in written:
        made = vars(importlib.import_module(module)).values()
        own = [cls for cls in made if inspect.isclass(cls) and cls.__module__ == module]
        for kind, base in (("attack", Attack), ("defense", Defense)):
            found = [f"{module}:{cls.__name__}" for cls in own if issubclass(cls, base)]
            methods[kind] += [name for name in found if name not in ran]
    if any(methods.values()):
        run_methods(methods["attack"] or ["badnets"], ["none", *methods["defense"]])
    return known


def run_methods(attacks: list[str], defenses: list[str]) -> None:
    """One victim an attack, in this process: that a child does it too is tested elsewhere."""
    changes = {"attacks": attacks, "defenses": defenses, "poison_rates": [0.1], "seeds": 1}
    job = sweeps.prepared(sweeps.write(Path(), **changes), Path("store"), outside=())
    counts = driver.execute(job, driver.inline, sweeps.Silent())
    assert counts == {"ok": len(attacks) * (1 + len(defenses))}


@every
@pytest.mark.usefixtures("at_work")
def test_the_python_of_a_page_runs(page: Path) -> None:
    known = run_python(page)
    if page.stem == "README":
        rows = known["rows"].set_index(["attack", "defense"])
        assert len(rows) == 6 and set(rows["status"]) == {"ok"}
        assert rows["asr"]["badnets", "none"] > 0.9 > rows["asr"]["badnets", "forget:Forget"]


BROKEN = """# broken.py
from dataclasses import dataclass
from defenses.base import Defense

@dataclass(frozen=True, kw_only=True)
class Broken(Defense):
    title, paper, kind, sees = "Broken", "example", "repair", frozenset({"model"})

    def defend(self, case):
        return case.nothing_of_this_name()
"""


@pytest.mark.parametrize(
    ("text", "error"),
    [(BROKEN, AssertionError), ("# lost.py\nfrom sweeper import nowhere\n", ImportError)],
    ids=["a method that fails", "a module that cannot be imported"],
)
@pytest.mark.usefixtures("at_work")
def test_a_broken_file_of_a_page_is_found(text: str, error: type[Exception]) -> None:
    Path("page.md").write_text(f"```python\n{text}```\n")
    with pytest.raises(error):
        run_python(Path("page.md"))


def test_every_include_has_a_form_that_the_site_expands() -> None:
    planted = ['--8 < -- "a.py"', '    --8<-- "a.py"', "--8<-- a.py", "<b>--8</b>&lt;--"]
    assert all(unexpanded(text) for text in planted)
    assert not unexpanded('--8<-- "a.py"\n\n--8<--\na.py\n--8<--\n')
    for page in DOCS.rglob("*.md"):
        assert not unexpanded(page.read_text("utf-8")), f"{page.name}: this includes nothing"


def unexpanded(text: str) -> list[str]:
    """Includes in a page or its HTML that no file will stand, or stands, in the place of."""
    return SCISSORS.findall(html.unescape(re.sub(r"</?\w[^>]*>", "", INCLUDE.sub("", text))))


def anchors(text: str) -> set[str]:
    """What a `#` can lead to in a page: its headings, ids, and what mkdocstrings documents."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+?)(?: *\{#.+\})? *$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    slugs = {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}
    ids = re.findall(r"""\bid=["']([^"']+)|^#+ .*\{#(.+)\}""", text, re.MULTILINE)
    return slugs | {one or other for one, other in ids} | set(re.findall(r"^::: (\S+)", text, re.M))


def links(text: str) -> list[str]:
    """Targets of links and pictures, in Markdown, of references and in HTML; none in code."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}.*$|`[^`]*`", "", text, flags=re.MULTILINE)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)[^)]*\)", text)
    references = re.findall(r"^ {0,3}\[[^]^]+\]:\s*(\S+)", text, re.MULTILINE)
    html = re.findall(r"""<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=["']([^"']+)""", text)
    return [*inline, *references, *html]


def broken(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere: no such file, no such heading, or out of the site."""
    found = []
    for link in links(text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(f"{link}: no such file")
        elif page.parent == DOCS and DOCS not in target.parents:
            found.append(f"{link}: the site has the files of docs/ alone")
        elif anchor and anchor not in anchors(
            text if target == page else target.read_text("utf-8")
        ):
            found.append(f"{link}: no such heading")
    return found


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken(page, page.read_text("utf-8")), page.name


def test_the_pages_have_links_to_test() -> None:
    found = {page.stem: links(page.read_text("utf-8")) for page in LINKING}
    assert {"docs/terminal.svg", "docs/report.png", "CITATION.cff"} <= set(found["README"])
    assert "docs/concepts.md#where-it-is-in-the-code" in found["CONTRIBUTING"]
    assert "rooms.svg" in found["concepts"] and "api.md#attacks.base.Attack" in found["method"]


@pytest.mark.parametrize(
    ("page", "text", "said"),
    [
        ("README.md", "[a](docs/nowhere.md)", "no such file"),
        ("README.md", "![a](docs/nowhere.png)", "no such file"),
        ("README.md", '<img src="docs/nowhere.png" alt="a">', "no such file"),
        ("README.md", "[a][b]\n\n[b]: docs/nowhere.md", "no such file"),
        ("README.md", "[over two\nlines](docs/nowhere.md)", "no such file"),
        ("README.md", "[a](docs/sweep.md#nowhere)", "no such heading"),
        ("README.md", "[a](#nowhere)\n\n# Somewhere", "no such heading"),
        ("README.md", "[a](#code)\n\n```sh\n# code\n```", "no such heading"),
        ("docs/index.md", "[a](api.md#attacks.base.Attacks)", "no such heading"),
        ("docs/index.md", "[a](../README.md)", "the site has"),
    ],
)
def test_a_planted_link_is_found(page: str, text: str, said: str) -> None:
    (found,) = broken(ROOT / page, text)
    assert said in found


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/sweep.md#every-key) ![b](docs/terminal.svg) [c](https://example.org/x#y)",
        "[a](#who-can-reach-what)\n\n## Who can reach what",
        "[a](#the-code-of-x)\n\n## The `code`, of [x](LICENSE)",
        "`[a](nowhere.md)`\n\n    [a](nowhere.md)\n\n```text\n[a](nowhere.md)\n```",
    ],
)
def test_a_link_that_leads_somewhere_is_none(text: str) -> None:
    assert not broken(ROOT / "README.md", text)


def test_every_page_stands_once_in_the_menu_of_the_site() -> None:
    """Zensical warns neither of a page that is left out nor of an entry that leads nowhere."""

    def leaves(entries: Any) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        parts = entries.values() if isinstance(entries, dict) else entries
        return [page for part in parts for page in leaves(part)]

    menu = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["zensical", "mkdocs"])
def test_the_site_builds_without_a_warning(builder: str, tmp_path: Path) -> None:
    for module in (builder, "mkdocstrings"):
        pytest.importorskip(module)
    for name in ("docs", "mkdocs.yml"):  # zensical writes beside them
        (shutil.copytree if name == "docs" else shutil.copy)(ROOT / name, tmp_path / name)
    for name in ("attacks", "defenses", "sweeper"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = [sys.executable, "-m", builder, "build", "--strict"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    built = {page: page.read_text("utf-8") for page in (tmp_path / "site").rglob("*.html")}
    assert len(built) > len(list(DOCS.rglob("*.md")))
    assert not {page for page, text in built.items() if unexpanded(text)}
    assert "from_yaml" in built[tmp_path / "site/api/index.html"]
