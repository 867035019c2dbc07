"""The README and the pages of docs/: blocks of code are valid or run, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from sweeper import data
from sweeper.cli.app import app
from sweeper.data import _options
from sweeper.plan import spec
from tests.support import sweeps
from tests.support.places import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
every = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
INCLUDE = re.compile(r'^--8<-- "(.+)"$|^--8<--\n(.+)\n--8<--$', re.MULTILINE)
"""A file the site shows in the place of this; ruff would format the first form in Python."""


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
    alone = re.split(r"&&| [|>] ", line[line.index("sweeper ") :])[0]
    words = shlex.split(alone, comments=True)[1:]
    known: Any = get_command(app)
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


@every
def test_a_sweep_file_is_valid(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        if "name" not in values:  # a part of a sweep file
            values = {**sweeps.SMALL, **values}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        spec.load(str(path))


def test_the_example_of_a_paper_is_the_sweep_that_ships() -> None:
    (text,) = blocks(DOCS / "paper.md", "yaml")
    shown = yaml.safe_load(text)
    shipped = yaml.safe_load((ROOT / f"sweeper/sweeps/{shown['name']}.yaml").read_text())
    assert shown["defenses"] == shipped["defenses"][:-5]
    assert {**shown, "defenses": ""} == {**{key: shipped[key] for key in shown}, "defenses": ""}


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
            compile(text, file[1], "exec")
            (tmp_path / file[1]).write_text(text)
        else:
            exec(compile(text, page.name, "exec"), names)
    if page.stem == "README":
        rows = names["rows"].set_index(["attack", "defense"])
        assert len(rows) == 6 and set(rows["status"]) == {"ok"}
        assert rows["asr"]["badnets", "none"] > 0.9 > rows["asr"]["badnets", "forget:Forget"]


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
    text = page.read_text("utf-8")
    assert not broken(page, text), page.name
    includes = re.findall(r"^--8.*<.*--.*$", text, re.MULTILINE)
    known = "".join(match[0] for match in INCLUDE.finditer(text))
    assert all(line in known for line in includes), f"{page.name}: this includes nothing"


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
