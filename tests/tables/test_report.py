"""The page of a sweep: what it holds, what it lets run, and, in a browser, that it works.

The slow tests drive Chromium (`playwright`, and `SWEEPER_CHROMIUM` where the browser is not found
as `chromium`); the one on accessibility needs `SWEEPER_AXE`, the file `axe.min.js` of axe-core.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html.parser
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeper.cli import app
from sweeper.core import rows
from sweeper.tables import points, report, results, tables
from tests.support import invented

HOSTILE = '</script><img src=x onerror="window.hurt=1">{{script}}<b>&amp;'


class Parts(html.parser.HTMLParser):
    """The elements of a page and the text in its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def facts(page: str) -> dict[str, Any]:
    """The JSON a page carries."""
    found: dict[str, Any] = json.loads(Parts(page).scripts[0])
    return found


def test_the_library_is_bundled_once_a_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundled: list[str] = []
    package = SimpleNamespace(
        __version__="9.1", javascript_bundle=lambda entry: bundled.append(entry) or f"{entry} // ä"
    )
    monkeypatch.setitem(sys.modules, "vl_convert", package)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))
    library = report._library.__wrapped__
    assert library() == library() == f"{bundled[0]} // ä" and len(bundled) == 1
    package.__version__ = "9.2"
    assert library() and len(bundled) == 2, "another version is another library"
    for file in tmp_path.iterdir():
        file.write_bytes(b'"window.veg')
    assert library() and len(bundled) == 3, "what a power cut left is no script"


@pytest.fixture(scope="module")
def page() -> str:
    """The page of a small sweep, one of whose names is hostile."""
    given = invented.sweep(attacks=["badnets", HOSTILE], rates=[0.05, 0.1], broken=0.3)
    order = {"attack": ["badnets", HOSTILE], "defense": invented.DEFENSES}
    frame = results.frame([rows.table(given)])
    return report.build(frame, HOSTILE, order, text=HOSTILE, pictures=[(HOSTILE, b"\x89PNG")])


def test_names_are_text_and_nothing_else(page: str) -> None:
    parts = Parts(page)
    tags = [tag for tag, _ in parts.tags]
    assert "img" not in tags and tags.count("script") == 3 and "b" not in tags
    assert not any(name.startswith("on") for _, attrs in parts.tags for name in attrs)
    found = facts(page)
    assert HOSTILE in found["order"]["attack"] and found["text"] == HOSTILE


def test_only_its_own_scripts_may_run(page: str) -> None:
    parts = Parts(page)
    (policy,) = [attrs["content"] for _, attrs in parts.tags if "http-equiv" in attrs]
    allowed = re.findall(r"'sha256-([^']+)'", policy or "")
    digests = [hashlib.sha256(text.encode()).digest() for text in parts.scripts[1:]]
    assert [base64.b64encode(digest).decode() for digest in digests] == allowed
    assert "default-src 'none'" in str(policy) and "unsafe-eval" not in str(policy)
    for _, attrs in parts.tags:
        assert not {"src", "srcset", "action"} & set(attrs)
        assert (attrs.get("href") or "#").startswith("#")


def unpacked(columns: dict[str, Any], name: str) -> list[Any]:
    column = columns[name]
    if isinstance(column, list):
        return column
    return [column["levels"][code] if code >= 0 else None for code in column["codes"]]


def test_the_page_holds_every_row_and_point(page: str) -> None:
    given = invented.sweep(attacks=["badnets", HOSTILE], rates=[0.05, 0.1], broken=0.3)
    frame, found = results.frame([rows.table(given)]), facts(page)
    assert set(unpacked(found["rows"], "key")) == {row["key"] for row in given}
    here = points.points(frame, {"attack": ["badnets", HOSTILE], "defense": invented.DEFENSES})
    asr = unpacked(found["points"], "asr")
    expected = [None if value != value else pytest.approx(value, rel=1e-5) for value in here.asr]
    assert asr == expected and unpacked(found["points"], "state") == here.state.tolist()
    failed = [row for row in given if row["status"] == "failed"]
    assert failed and invented.TRACE in unpacked(found["rows"], "error")


def test_ranks_or_why_there_are_none(page: str) -> None:
    found = {entry["measure"]: entry for entry in facts(page)["ranks"]}
    assert "two of each are needed" in found["tpr"]["why"]
    assert sorted(found["asr"]["rank"]) == found["asr"]["rank"] and found["asr"]["blocks"] >= 2


def test_no_defense_is_the_reference_and_has_no_rank(page: str) -> None:
    found = facts(page)
    ranked = {name for entry in found["ranks"] for name in entry.get("defenses", ())}
    assert ranked == set(invented.DEFENSES[1:5])
    columns = [unpacked(found["points"], name) for name in ("defense", "reference")]
    assert set(zip(*columns, strict=True)) == {
        (name, name == "none") for name in invented.DEFENSES[:5]
    }


def test_the_papers_table_has_the_spread_and_what_its_tables_have_in_bold() -> None:
    given = invented.sweep(attacks=["badnets", "sig"], seeds=3)
    frame, order = results.frame([rows.table(given)]), {"defense": invented.DEFENSES[:5]}
    found = facts(report.build(frame, "bold", order))["points"]
    here = points.points(frame, order)
    spread = frame.groupby(["attack", "poison_rate", "defense"])["asr"].std()
    places = list(here[["attack", "poison_rate", "defense"]].itertuples(index=False, name=None))
    assert unpacked(found, "asr_sd") == pytest.approx([spread[p] for p in places], rel=1e-5)
    table = tables.build(frame, rows=["attack", "poison_rate"])
    bold = {
        (*line.labels, *column.groups)
        for line in table.lines
        for column, entry in zip(table.columns, line.entries, strict=True)
        if entry.best and column.metric == "asr"
    }
    best = unpacked(found, "asr_best")
    assert bold and {p for p, won in zip(places, best, strict=True) if won} == bold


def test_what_measures_and_words_mean_is_on_the_page(page: str) -> None:
    found = facts(page)
    shown = {m["name"]: m["head"] for m in found["measures"]}
    for name in ("acc", "asr", "acc_loss", "der"):
        assert found["glossary"][shown[name]].endswith(".")
    assert "TPR" not in found["glossary"] and "clean budget" in found["glossary"]
    bleu = facts(report.build(invented.frame().assign(task="pairs", score="BLEU"), "s", {}))
    assert "BLEU" in bleu["glossary"] and "ACC" not in str(bleu["glossary"])


def test_times_have_no_microseconds() -> None:
    frame = invented.frame()
    frame["started_at"] = "2026-11-29T15:04:05.678901+00:00"
    assert facts(report.build(frame, "s", {}))["about"]["started"] == ["2026-11-29 15:04 UTC"]


def test_the_same_rows_give_the_same_page() -> None:
    given = invented.sweep(seeds=1)
    pages = {
        report.build(results.frame([rows.table(part)]), "again", {})
        for part in (given, given[::-1])
    }
    assert len(pages) == 1


def test_report_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = invented.store(tmp_path / "store", invented.sweep(attacks=["badnets"], seeds=1))
    spec, out = tmp_path / "invented.yaml", tmp_path / "page.html"
    spec.write_text("name: invented\n")
    words = ["sweeper", "report", str(spec), "--store", str(store), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 0 and re.search(r": [01]\.\d MB", capsys.readouterr().out)
    found = facts(out.read_text(encoding="utf-8"))
    assert found["text"] == "name: invented\n" and "ab" * 32 in found["about"]["data digests"][0]
    assert found["titles"]["attack"] == {"badnets": "BadNets"}
    (why,) = found["left_out"]
    assert not found["pictures"] and why.startswith("No pictures: ") and "datasets" in why


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("SWEEPER_CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("no chromium here; set SWEEPER_CHROMIUM")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 2,112 rows that a ledger holds."""
    folder = tmp_path_factory.mktemp("large")
    given = invented.sweep(
        ["cifar10", "gtsrb"], invented.ATTACKS, invented.RATES, [*invented.DEFENSES, "rnp", "sau"],
        seeds=3, broken=0.03,
    )  # fmt: skip
    assert len(given) == 2112
    store, spec = invented.store(folder / "store", given), folder / "invented.yaml"
    spec.write_text("name: invented\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        words = ["report", str(spec), "--store", str(store), "--out", str(folder / "page.html")]
        patch.setattr(sys, "argv", ["sweeper", *words])
        app.main()
    assert not left.value.code
    return folder / "page.html"


def opened(browser: Any, path: Path, **settings: Any) -> tuple[Any, list[str]]:
    """A page, and the list its complaints and requests to elsewhere are written to."""
    told: list[str] = []
    view = browser.new_context(**settings).new_page()
    view.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
    view.on("pageerror", lambda error: told.append(str(error)))
    view.on("request", lambda r: told.append(r.url) if r.url.startswith("http") else None)
    view.goto(path.as_uri())
    view.evaluate("ready()")
    return view, told


@pytest.mark.slow
def test_every_control_works(browser: Any, large: Path) -> None:
    assert large.stat().st_size < 6e6
    view, told = opened(browser, large)
    names = view.eval_on_selector_all("#controls [name]", "all => all.map(one => one.name)")
    assert names == ["metric", "dataset", "poison_rate", "sort", "attack", "defense"]

    def numbers() -> list[str]:
        view.evaluate("ready()")
        found: list[str] = view.eval_on_selector_all(
            ".matrix td", "all => all.map(a => a.innerText)"
        )
        return found

    before = numbers()
    assert len(before) == 16 * (8 + 1)
    for name, text in (("metric", "ACC loss"), ("dataset", "gtsrb"), ("poison_rate", "1 %")):
        view.select_option(f"[name={name}]", label=text)
        after = numbers()
        assert len(after) == len(before) and after != before, f"{name} changes nothing"
        before = after
    view.select_option("[name=sort]", label="by mean, best first")
    means = [float(text.split()[0]) for text in numbers()[-16:]]
    assert means == sorted(means), "less ACC loss is better"
    view.fill("[name=attack]", "blend")
    view.fill("[name=defense]", "fine")
    assert len(numbers()) == 2 * 2
    view.fill("[name=attack]", "no such attack")
    view.evaluate("ready()")
    assert "clear the two search fields" in view.inner_text("#matrix")
    assert told == []


@pytest.mark.slow
def test_attacks_that_share_no_rate_stand_side_by_side(browser: Any, tmp_path: Path) -> None:
    given = [
        row
        for row in invented.sweep(attacks=["badnets", "sig"], rates=[0.05, 0.1, 1.0])
        if (row["attack"] == "sig") == (row["poison_rate"] == 1.0)
    ]
    order = {"attack": ["badnets", "sig"], "defense": invented.DEFENSES}
    (tmp_path / "page.html").write_text(
        report.build(results.frame([rows.table(given)]), "rates", order)
    )
    view, told = opened(browser, tmp_path / "page.html")
    heads = "all => all.map(one => one.innerText)"
    assert view.eval_on_selector_all(".matrix tbody th", heads) == ["BadNets 10 %", "SIG 100 %"]
    view.select_option("[name=poison_rate]", label="5 %")
    assert view.eval_on_selector_all(".matrix tbody th", heads) == ["BadNets"]
    lines = view.eval_on_selector_all(".paper tbody th", heads)
    assert lines == ["BadNets", "5 %", "10 %", "SIG", "100 %"], "each rate has its line"
    assert told == []


@pytest.mark.slow
def test_the_keyboard_is_enough(browser: Any, large: Path) -> None:
    view, told = opened(browser, large)
    view.focus(".matrix td a[tabindex='0']")
    assert "BadNets against No defense (none)" in view.inner_text("#tip")
    view.keyboard.press("ArrowRight")
    view.keyboard.press("ArrowDown")
    text = view.inner_text("#tip")
    assert "Blend against FT (fine-tuning)" in text and "95 % interval" in text and "seeds" in text
    view.keyboard.press("Enter")
    view.wait_for_selector("dialog[open]")
    shown = view.inner_text("dialog")
    assert "defense_options" not in shown and "acc_before" in shown and "seed 2" in shown
    view.keyboard.press("Escape")
    assert view.query_selector("dialog[open]") is None
    assert view.evaluate("document.activeElement.closest('.matrix') !== null")
    view.click("#failures summary >> nth=0")
    view.click("#failures details a >> nth=0")
    assert "error" in view.inner_text("dialog[open]")
    assert told == []


@pytest.mark.slow
def test_figures_are_saved(browser: Any, large: Path) -> None:
    view, told = opened(browser, large)
    for place in view.query_selector_all("section .tools:has(button)"):
        for form in ("SVG", "PNG"):
            with view.expect_download() as found:
                place.query_selector(f"button:has-text('{form}')").click()
            assert Path(found.value.path()).stat().st_size > 2000
    assert told == []


@pytest.mark.slow
def test_the_papers_table_is_first_and_its_numbers_can_be_taken_away(
    browser: Any, large: Path
) -> None:
    view, told = opened(browser, large)
    assert view.get_attribute("section", "id") == "table"
    groups = view.eval_on_selector_all(".paper th.group", "all => all.map(one => one.innerText)")
    assert groups[:2] == ["No defense", "FT"] and len(groups) == 16
    assert view.eval_on_selector_all(".paper abbr", "all => all[1].title").startswith("ASR, attack")
    assert view.locator(".paper strong").count() > 10
    cells = view.locator(".paper tbody td").count()
    assert cells == (7 * 3 + 1) * 16 * 2

    def taken(link: str) -> list[list[str]]:
        with view.expect_download() as found:
            view.click(link)
        with Path(found.value.path()).open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file))

    whole = taken("nav a[download]")
    assert len(whole) == 1 + 2112 and {"key", "asr", "error"} <= set(whole[0])
    assert len(taken("#table a[download]")) == 1 + cells
    ranked = [line[0] for line in taken("#ranks a[download]")]
    assert ranked[0] == "defense" and "FT (fine-tuning)" in ranked and len(ranked) == 1 + 14
    view.keyboard.press("Escape")
    view.focus(".paper td a[tabindex='0']")
    view.keyboard.press("ArrowRight")
    assert "ASR 8" in view.inner_text("#tip")
    assert told == []


@pytest.mark.slow
def test_names_beside_points_lie_over_no_other(browser: Any, large: Path) -> None:
    for width in (1280, 390):
        view, told = opened(browser, large, viewport={"width": width, "height": 900})
        view.evaluate("ready()")
        boxes = view.eval_on_selector_all(
            "#tradeoff .mark-text.role-mark text",
            "all => all.map(one => one.getBoundingClientRect().toJSON())",
        )
        assert len(boxes) > 6
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                apart = one["left"] >= other["right"] or other["left"] >= one["right"]
                assert apart or one["top"] >= other["bottom"] or other["top"] >= one["bottom"]
        assert told == []


@pytest.mark.slow
def test_a_hostile_name_does_nothing(browser: Any, page: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(page.replace("\x89", ""), encoding="utf-8")
    view, told = opened(browser, path)
    view.hover(".matrix td a >> nth=6")
    assert HOSTILE in view.inner_text("#tip") and view.inner_text("h1") == HOSTILE
    point = view.locator("#tradeoff path[aria-roledescription=point]").first
    point.hover(force=True)
    assert view.evaluate("window.hurt") is None and told == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_anyone_out(browser: Any, large: Path, scheme: str, width: int) -> None:
    axe = os.environ.get("SWEEPER_AXE", "")
    if not Path(axe).is_file():
        pytest.skip("set SWEEPER_AXE to axe.min.js of the npm package axe-core")
    size = {"width": width, "height": 900}
    view, told = opened(browser, large, viewport=size, color_scheme=scheme, bypass_csp=True)
    assert view.evaluate("document.documentElement.scrollWidth") <= width, "nothing overflows"
    view.add_script_tag(path=axe)
    for _ in range(2):  # the page, and a record before it
        found = view.evaluate("axe.run().then(found => found.violations)")
        faults = [
            (fault["id"], fault["nodes"][0]["html"][:200])
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]
        assert faults == []
        view.evaluate("document.querySelector('.matrix td a').click()")
        view.wait_for_selector("dialog[open]")
    assert told == []


@pytest.mark.slow
def test_what_never_took_and_what_guesses_stand_out(browser: Any, tmp_path: Path) -> None:
    given = invented.sweep(attacks=["badnets", "blend"], rates=[0.05, 0.1])
    for row in given:
        if row["attack"] == "blend":
            row["asr_before"] = 0.2
        if row["defense"] == "nad":
            row.update(acc=0.1, asr=0.0)
    order = {"attack": ["badnets", "blend"], "defense": invented.DEFENSES[:5]}
    page = report.build(results.frame([rows.table(given)]), "odd", order)
    (tmp_path / "page.html").write_text(page)
    view, told = opened(browser, tmp_path / "page.html")
    texts = "all => all.map(one => one.innerText)"
    lines = [view.eval_on_selector_all(f".matrix {at} td", texts) for at in ("tbody", "tfoot")]
    badnets, blend = lines[0][:5], lines[0][5:]
    assert [text[-1] == "↓" for text in badnets] == [False, False, False, True, False]
    assert all("°" in text for text in blend) and blend[3].endswith("°↓")
    assert lines[1] == badnets, "the mean is that of the one attack that took"
    assert "ACC fell by more than 10 points" in view.inner_text(".key")
    view.select_option("[name=sort]", label="by mean, best first")
    view.evaluate("ready()")
    assert view.eval_on_selector_all(".matrix thead th", texts)[-1] == "NAD"
    view.click("#tradeoff summary")
    found = view.eval_on_selector_all(
        "#tradeoff details tbody tr", "all => all.map(one => [...one.cells].map(c => c.innerText))"
    )
    assert {line[0]: line[-1] for line in found}["NAD"] == "no"
    assert {line[0]: line[-1] for line in found}["No defense (none)"] == "reference"
    assert {line[-2] for line in found} == {"1"}, "a cell of each defense counts"
    assert "4 of 8 victims carry no backdoor" in view.inner_text("#table")
    assert told == []
