"""The site of a store: its pages, what may stand side by side, and that names stay text.

The slow test looks at it in an installed chromium, as those of the report do.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeper.cli import app
from sweeper.core import rows
from sweeper.plan.view import View
from sweeper.tables import boards, points, report, results
from tests.support import invented
from tests.support.commands import Said, call
from tests.tables.test_report import Parts, browser

__all__ = ["browser"]
HOSTILE = "<img src=x onerror=alert(1)>"
HOME = "~/data"


def given(**changes: Any) -> list[dict[str, Any]]:
    """Rows of a small sweep with an oracle, and with a name and a path as anyone may have them."""
    defenses = ["none", "anp", "nad", "anp-oracle", HOSTILE]
    found = invented.sweep(attacks=["badnets", HOSTILE], rates=[0.05, 0.1], defenses=defenses)
    return [{**row, "code": '{"attack": "c0de"}', **changes} for row in found]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two sweeps that share cells, and of one that was never run."""
    folder = tmp_path_factory.mktemp("site") / "store"
    home = os.path.expanduser("~")
    text = f"name: first\ndata: {home}/data\ntable: {{untaken: true}}\n"
    with pytest.MonkeyPatch.context() as patch:  # as older code left rows
        patch.setattr("sweeper.core.text.without_homes", lambda text: text)
        invented.store(folder, given(notes=f'{{"at": "{home}/data"}}'), text, "first")
    invented.store(folder, given()[:10], text, "second")
    return invented.store(folder, [], "name: empty\n", "empty")


def written(capsys: pytest.CaptureFixture[str], store: Path, out: Path, *words: object) -> Said:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_library", lambda: "")  # Vega; what it draws is the report's test
        return call(capsys, "site", store, "--out", out, *words)


@pytest.fixture(scope="module")
def made(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its site."""
    out = tmp_path_factory.mktemp("made") / "site"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(report, "_library", lambda: "")
        words = ["site", str(store), "--out", str(out), "--title", HOSTILE]
        patch.setattr(sys, "argv", ["sweeper", *words])
        app.main()
    assert not left.value.code
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_site_is_whole_and_the_same_again(
    made: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = contents(made)
    methods = {"methods/defense-anp.html", "methods/attack-badnets.html"}
    assert {"index.html", "about.html", *methods} <= set(found)
    for sweep in ("first", "second"):
        files = {"index.html", "report.html", "sweep.yaml", "rows.csv", "rows.parquet"}
        assert {f"sweeps/{sweep}/{name}" for name in files} <= set(found)
    sums = dict(line.split("  ")[::-1] for line in found["sha256sums.txt"].decode().splitlines())
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
    assert sums == {name: digest for name, digest in digests.items() if name != "sha256sums.txt"}
    again = shutil.copytree(made, tmp_path / "again")
    (again / "about.html").write_text("old")
    said = written(capsys, store, again, "--title", HOSTILE)
    assert "empty: left out, it has no rows yet" in said.err and "2 sweeps, " in said.out
    assert contents(again) == found
    (again / "mine.txt").touch()
    line = written(capsys, store, again).err.splitlines()[-1]
    assert "holds mine.txt, which was not made" in line and (again / "index.html").is_file()


def test_links_of_a_site_lead_somewhere_in_it(made: Path) -> None:
    pages = sorted(made.rglob("*.html"))
    ids = {path: set(re.findall(r'\bid="([^"]+)"', path.read_text())) for path in pages}
    count = 0
    for path in pages:
        for _, attributes in Parts(path.read_text()).tags:
            target, _, anchor = str(attributes.get("href") or "").partition("#")
            file = (path.parent / target).resolve() if target else path
            assert file.is_file() and made in [*file.parents], f"{path}: {target}"
            assert not anchor or path.name == "report.html" or anchor in ids[file]
            count += bool(target)
    assert count > 50


def test_names_are_text_and_pages_load_nothing(made: Path) -> None:
    for path in made.rglob("*.html"):
        text = path.read_text()
        parts = Parts(text)
        assert "img" not in {tag for tag, _ in parts.tags}, path
        for _, attributes in parts.tags:
            assert not {"src", "srcset", "action", "style"} & set(attributes)
            assert not any(name.startswith("on") for name in attributes)
        (policy,) = [str(a["content"]) for _, a in parts.tags if "http-equiv" in a]
        assert policy.startswith("default-src 'none'") and "unsafe-eval" not in policy
        assert path.name == "report.html" or "unsafe" not in policy
        assert not re.search(
            r"(?:https?:)?//[a-z]", re.sub(r"<script.*?</script>", "", text, flags=re.S)
        )
    assert all(re.fullmatch(r"[\w./-]+", name) for name in contents(made))
    assert "&lt;img src=x" in (made / "index.html").read_text()


def test_no_file_of_a_site_tells_a_home(made: Path) -> None:
    home = os.path.expanduser("~").encode()
    assert len(home) > 2
    for name in ("sweep.yaml", "rows.csv", "report.html"):
        assert HOME.encode() in contents(made)[f"sweeps/first/{name}"], "or this looks at nothing"
    assert [name for name, content in contents(made).items() if home + b"/" in content] == []


def test_the_rows_of_a_sweep_come_along(made: Path) -> None:
    expected = results.frame([rows.table([{**row, "sweep": "first"} for row in given()])])
    table = pd.read_parquet(made / "sweeps/first/rows.parquet")
    text = pd.read_csv(made / "sweeps/first/rows.csv")
    for found in (table, text):
        assert list(found["key"]) == list(expected["key"])
        assert list(found["asr"]) == list(expected["asr"])
    about = (made / "about.html").read_text()
    assert "NVIDIA H200 (40 rows)" in about and "attack c0de" in about and "ab" * 32 in about
    assert "Wu and Wang" in (made / "methods/defense-anp.html").read_text()


def shown(name: str, given: list[dict[str, Any]], view: View | None = None) -> boards.Shown:
    order = {"dataset": ["cifar10"], "defense": invented.DEFENSES}
    frame = results.frame([rows.table([{**row, "sweep": name} for row in given])])
    return boards.Shown(name, frame, order, view or View())


def test_a_board_ranks_what_competes_and_shows_the_rest() -> None:
    sweep = shown("one", given())
    (board,) = boards.boards([sweep])
    known = {standing.defense: standing for standing in board.standings}
    rivals = sweep.points[sweep.points["defense"] != "none"]
    expected = points.ranks(rivals, "asr").rank
    assert {d: s.rank for d, s in known.items() if s.rank} == dict(expected)
    assert board.standings[0].defense == "none" and known["none"].why == "reference"
    assert known["anp-oracle"].rank is None and known["anp-oracle"].why == "oracle"
    own = sweep.points[sweep.points["defense"] == "anp"]
    assert known["anp"].means["asr"] == pytest.approx(own["asr_counted"].mean())


def test_no_mean_is_of_other_settings_than_its_neighbours() -> None:
    cut = given()
    for row in cut:
        if row["defense"] == "nad" and row["poison_rate"] == 0.1 and row["attack"] == "badnets":
            row.update(status="failed", acc=None, asr=None)
    (board,) = boards.boards([shown("one", cut)])
    known = {standing.defense: standing for standing in board.standings}
    assert (known["nad"].counted, known["anp"].counted) == (3, 4)
    assert known["nad"].means["asr"] != known["nad"].means["asr"] and known["anp"].means["asr"] > 0


DIFFER: dict[str, dict[str, Any]] = {
    "defense options": {"defense_options": '{"lr": 1}'},
    "attack options": {"attack_options": '{"size": 9}'},
    "another attack of the name": {"attack_name": "blend"},
    "another defense of the name": {"defense_name": "nad"},
    "data": {"dataset_options": '{"train_size": 9}'},
    "content of the data": {"data_hash": "f" * 64},
    "model": {"model_options": '{"width": 9}'},
    "training": {"recipe": '{"epochs": 9}'},
}


@pytest.mark.parametrize("what", DIFFER)
def test_rows_of_different_settings_never_share_a_board(what: str) -> None:
    same = {column: "{}" for values in DIFFER.values() for column in values}
    one = [{**row, **same} for row in given() if row["attack"] == "badnets"]
    other = [{**row, **same, **DIFFER[what]} for row in one]
    for row in other:  # of other seeds: no two rows stand in one place
        row.update(key=row["key"][::-1], seed=row["seed"] + 9)
    found = boards.boards([shown("one", one), shown("other", other)])
    assert [board.sweeps for board in found] == [("one",), ("other",)]
    other = [{**row, **same} for row in other]
    assert len(boards.boards([shown("one", one), shown("other", other)])) == 1


def test_rules_that_differ_and_versions_of_the_code_part_boards() -> None:
    rules = View(max_acc_loss=0.5)
    assert len(boards.boards([shown("one", given()), shown("other", given(), rules)])) == 2
    again = [{**row, "key": row["key"][::-1]} for row in given()]
    assert len(boards.boards([shown("one", given()), shown("other", again)])) == 2


def test_cells_that_sweeps_share_count_once() -> None:
    (alone,) = boards.boards([shown("one", given())])
    (both,) = boards.boards([shown("one", given()), shown("other", given()[:10])])
    assert both.sweeps == ("one", "other") and both.ranks and alone.ranks
    assert both.ranks.blocks == alone.ranks.blocks
    assert {key: point["runs"] for key, point in both.points.items()} == {
        key: point["runs"] for key, point in alone.points.items()
    }


def test_detectors_have_a_board_of_their_own() -> None:
    rows_ = given()
    for row in rows_:
        if row["defense"] in ("anp", "nad"):
            row.update(asr=None, acc=None, der=None, auroc=0.9, tpr=0.8, fpr=0.1)
    repair, detection = boards.boards([shown("one", rows_)])
    assert repair.measures == ("asr", "acc") and detection.measures[0] == "auroc"
    assert {standing.defense for standing in detection.standings} == {"anp", "nad"}
    assert not {"anp", "nad"} & {standing.defense for standing in repair.standings}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--sweep", "secnd"), "--sweep: no sweep 'secnd', did you mean 'second'?"),
        (("--sweep", "empty"), "has no rows of any sweep"),
    ],
)
def test_a_site_of_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path, words: Any, why: str
) -> None:
    said = written(capsys, store, tmp_path / "site", *words)
    assert said.code == 2 and why in said.err and not (tmp_path / "site").exists()
    said = written(capsys, tmp_path / "none", tmp_path / "site")
    assert said.code == 2 and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_site_reads_well_in_a_browser(browser: Any, made: Path, scheme: str, width: int) -> None:
    axe = os.environ.get("SWEEPER_AXE", "")
    for name in ("index", "about", "sweeps/first/index", "methods/defense-anp"):
        size = {"width": width, "height": 900}
        view = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True).new_page()
        told: list[str] = []
        view.on("console", lambda message, told=told: told.append(message.text))
        view.on("pageerror", lambda error, told=told: told.append(str(error)))
        view.goto((made / f"{name}.html").as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") <= width, name
        if Path(axe).is_file():
            view.add_script_tag(path=axe)
            found = view.evaluate("axe.run().then(found => found.violations)")
            assert [f["id"] for f in found if f["impact"] in ("serious", "critical")] == [], name
        assert told == []
