"""The README and the pages of docs/: every block of code is valid, and what is cheap is run."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from sweeper.cli.app import app
from sweeper.plan import spec
from tests.support import sweeps
from tests.support.places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


def commands() -> list[tuple[str, str]]:
    """(page, line) of every call of sweeper: in `sh` blocks, and indented by four spaces."""
    found = []
    for page in PAGES:
        indented = re.findall(r"^ {4}(sweeper .*)$", page.read_text("utf-8"), re.MULTILINE)
        shell = [line for block in blocks(page, "sh") for line in block.splitlines()]
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
    words = shlex.split(line[line.index("sweeper ") :].partition("&&")[0], comments=True)[1:]
    known: Any = get_command(app)
    if words[0].startswith("-"):
        assert words == ["--install-completion"]
        return
    assert words[0] in known.commands, f"{page}: no command {words[0]}"
    known.commands[words[0]].make_context(words[0], words[1:])  # raises what it would print


@every
def test_a_sweep_file_is_valid(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        included = re.fullmatch(r'--8<-- "(.+)"\n', text)
        values = yaml.safe_load((ROOT / included[1]).read_text() if included else text)
        if "name" not in values:  # a part of a sweep file
            values = {**sweeps.SMALL, **values}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        spec.load(str(path))


@every
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEPER_STORE", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {"__name__": "page"}
    for text in blocks(page, "python"):
        file = re.match(r"# (\w+\.py)\n", text)
        if file:
            (tmp_path / file[1]).write_text(text)
        else:
            exec(compile(text, page.name, "exec"), names)
    if page.stem == "README":
        rows = names["rows"].set_index(["attack", "defense"])
        assert len(rows) == 6 and set(rows["status"]) == {"ok"}
        assert rows["asr"]["badnets", "none"] > 0.9 > rows["asr"]["badnets", "forget:Forget"]


@every
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    import subprocess
    import sys

    words = ["build", "--strict", "--site-dir", str(tmp_path)]
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "from_yaml" in (tmp_path / "api/index.html").read_text()
