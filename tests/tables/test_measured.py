"""What this project measured: what is shipped, what of it a table shows, how rows are added."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from sweeper.core import rows
from sweeper.core.errors import SweepError
from sweeper.core.rows import schema
from sweeper.engine import recipes
from sweeper.plan import source, spec
from sweeper.tables import measured, published, render, tables
from sweeper.tables.published import AVERAGE
from tests.support import recorded
from tests.support.places import ROOT

SHIPPED = ROOT / "sweeper/sweeps/measured"
SWEEP = "quickstart"


def row(attack: str = "badnets", defense: str = "none", seed: int = 0, **more: Any) -> Any:
    """A row as a run writes it."""
    recipe = vars(recipes.resolve({"epochs": 20}, "digits", "tiny"))
    about = {
        "sweep": SWEEP,
        "dataset_options": json.dumps({"dataset": "digits"}),
        "model_options": "{}",
        "attack_options": "{}",
        "defense_options": "{}",
        "recipe": json.dumps(recipe),
        "device": "GPU X",
        "versions": json.dumps({"torch": "9.9"}),
        "acc": 0.9,
        "asr": 0.99,
    }
    return recorded.row(attack, 0.1, defense, seed, **{**about, **more})


def shipped(monkeypatch: pytest.MonkeyPatch, given: list[Any], sweep: str = SWEEP) -> None:
    """As if these rows were shipped, and no others."""
    whole = measured._each(rows.table(given))
    monkeypatch.setattr(measured, "sweeps", lambda: [sweep])
    monkeypatch.setattr(measured, "frame", lambda name: whole if name == sweep else whole[:0])


def table(ours: list[Any], **more: Any) -> tables.Table:
    frame = recorded.frame(ours)
    return tables.build(frame, figures=measured.figures(SWEEP, frame), **more)


# What is shipped


@pytest.mark.parametrize("name", measured.sweeps())
def test_what_is_shipped_proves_something(name: str) -> None:
    found = measured.frame(name)
    assert name in source.shipped() and set(found["sweep"]) == {name}
    assert set(found["status"]) == {"ok"} and found["notes"].isna().all()
    for column in ("device", "versions", "recipe", "started_at", "seed", "dataset_options"):
        assert found[column].notna().all(), column
    assert found["acc"].between(0, 1).all()
    assert (found["asr"].between(0, 1) | (found["attack_name"] == "none")).all()
    assert (SHIPPED / f"{name}.parquet").stat().st_size < 1_000_000
    assert set(pq.read_schema(SHIPPED / f"{name}.parquet").names) <= set(schema().names)


def test_there_are_rows_of_two_sweeps() -> None:
    assert set(measured.sweeps()) >= {"quickstart", "d-br-cifar10"}
    assert len(measured.frame("quickstart")) >= 20 and measured.frame("grand").empty


def test_the_page_of_expectations_says_device_and_date() -> None:
    page = (ROOT / "docs/expected.md").read_text(encoding="utf-8")  # test_published: is current
    for name in measured.sweeps():
        for figure in measured.figures(name):
            device, date, *_ = figure.source.split("; ")
            assert f"{device}; {date}" in page and date.startswith("20")
    rows = measured.frame("quickstart").query("attack == 'badnets' and defense == 'none'")
    acc = 100 * rows.groupby("poison_rate")["acc"].agg(["mean", "std"])
    assert all(f"{mean:.2f} ± {sd:.2f}" in page for mean, sd in acc.itertuples(index=False))


@pytest.fixture(scope="module")
def quickstart() -> tuple[tables.Table, str]:
    """The shipped rows of the quickstart beside themselves, and where their figures come from."""
    frame = measured.frame("quickstart")
    figures = measured.figures("quickstart", frame)
    return tables.build(frame, figures=figures), figures[0].source


@pytest.fixture(scope="module")
def d_br() -> tables.Table:
    """Shipped rows beside themselves and what is published."""
    frame = measured.frame("d-br-cifar10")
    figures = (*published.of("d-br-cifar10"), *measured.figures("d-br-cifar10", frame))
    return tables.build(frame, figures=figures, values=["acc_nontarget", "asr"])


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "html"])
def test_tables_of_shipped_rows_show_them_and_their_device(
    form: str, quickstart: tuple[tables.Table, str], d_br: tables.Table
) -> None:
    text = render.render(quickstart[0], form)
    device, date, *_ = quickstart[1].split("; ")
    assert device in text and date in text
    assert ("measured on" if form == "csv" else "measured by this project [1]") in text
    text = render.render(d_br, form)
    assert "12000 training images" in text, "the small ones"
    assert "D-BR/D-ST seed, table 1" in text


# What a table shows


def test_published_and_measured_stand_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped(monkeypatch, [row(asr=0.98), row(seed=1, asr=0.96)])
    ours = [row(asr=0.9, device="laptop")]
    frame = recorded.frame(ours)
    text = render.render(table(ours, values=["asr"]), "markdown")
    assert "97.00 [1] / 90.0 / -7.0≠" in text
    assert "ours minus measured" in text and "≠: off by more than 2 points" in text
    assert "Measured: [1] GPU X; 2026-01-02; recipe fast with epochs 20; seeds 0, 1;" in text
    printed = published.Figure(
        sweep=SWEEP,
        dataset="digits",
        model="tiny",
        attack="badnets",
        poison_rate=0.1,
        defense="none",
        values={"asr": 0.91},
        source="a paper",
        wording="",
        note="",
    )
    both = tables.build(frame, values=["asr"], figures=(*measured.figures(SWEEP, frame), printed))
    text = render.render(both, "markdown")
    assert "91.00 [a] / 97.00 [1] / 90.0 / -1.0" in text and "-1.0≠" not in text
    assert "published [a] / measured by this project [1] / ours" in text
    (cells,) = csv.DictReader(render.render(both, "csv").splitlines())
    assert cells["none asr published"] == "0.91" and cells["none asr measured"] == "0.97"
    assert cells["none asr measured on"].startswith("GPU X")


def test_the_spread_of_the_measured_seeds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped(monkeypatch, [row(asr=0.90), row(seed=1, asr=1.0)])
    for ours, marked in ((0.9, False), (0.87, True)):
        (entry,) = table([row(asr=ours)], values=["asr"]).lines[0].entries
        assert entry.measured and entry.measured.value == pytest.approx(0.95)
        assert entry.outside == marked, "0.05 and 0.08 off, the spread is 0.07"


def test_what_was_measured_on_other_data_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    small = json.dumps({"dataset": "digits", "train_size": 100})
    shipped(monkeypatch, [row(dataset_options=small)])
    assert table([row()]).measured == ()
    assert len(table([row(dataset_options=small)]).measured) == 1


@pytest.mark.parametrize(
    "axis", [{"model": "resnet18"}, {"target": 1}, {"attack": "blend"}, {"clean_budget": 0.1}]
)
def test_a_measured_cell_has_the_labels_of_ours(
    monkeypatch: pytest.MonkeyPatch, axis: dict[str, Any]
) -> None:
    given = {"attack": "badnets", "defense": "anp", **axis}
    shipped(monkeypatch, [row(**given)])
    assert table([row(**given)]).measured and not table([row(defense="anp")]).measured


def test_another_recipe_and_other_options_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped(monkeypatch, [row(defense="anp")])
    text = render.render(table([row(defense="anp")]), "markdown")
    assert "Measured at another setting" not in text
    recipe = json.dumps(vars(recipes.resolve("d-br", "digits", "tiny")))
    ours = row(defense="anp", recipe=recipe, defense_options='{"steps": 7}')
    text = render.render(table([ours]), "markdown")
    assert "Measured at another setting: other options of anp; recipe fast with" in text
    assert "ours d-br" in text


def test_the_newest_of_two_measurements_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    late = {"device": "GPU Y", "started_at": "2026-02-02T00:00:00+00:00", "asr": 0.5}
    shipped(monkeypatch, [row(), row(**late)])
    assert len(measured.figures(SWEEP)) == 2
    built = table([row()], values=["asr"])
    (entry,) = built.lines[0].entries
    assert entry.measured and entry.measured.value == 0.5
    assert [text.split(";")[0] for text in built.measured] == ["GPU Y"]


def test_a_seed_that_did_not_take_is_in_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    took, not_took = {"asr": 0.9, "asr_before": 0.9}, {"asr": 0.1, "asr_before": 0.1}
    shipped(monkeypatch, [row(seed=0, **took), row(seed=1, **not_took)])
    (figure,) = measured.figures(SWEEP)
    assert figure.values["asr"] == 0.9 and "seed 0;" in figure.source


@pytest.mark.parametrize("kind", ["attack", "defense"])
def test_seeds_of_other_options_are_not_averaged(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {f"{kind}_options": '{"steps": 7}', "key": "another"}
    shipped(monkeypatch, [row(defense="fst", asr=0.2), row(defense="fst", asr=0.4, **other)])
    asr = [figure.values["asr"] for figure in measured.figures(SWEEP)]
    assert sorted(asr) == [0.2, 0.4], "one label, two settings: two figures"


def test_what_a_sweep_does_no_more_is_not_what_to_expect_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (entry,) = (e for e in spec.load(SWEEP).defenses if e.label == "anp")
    now, before = json.dumps(entry.options), json.dumps({**entry.options, "steps": 7})
    given = [row(defense="anp", asr=0.2, defense_options=now)]
    given += [row(defense="anp", asr=0.4, defense_options=before, seed=1), row(defense="gone")]
    shipped(monkeypatch, given)
    assert [figure.values["asr"] for figure in measured.figures(SWEEP)] == [0.2, 0.99]
    ours = recorded.frame([row(defense="anp", defense_options=before)])
    assert len(measured.figures(SWEEP, ours)) == 3, "beside others it stands, with what differs"


def test_averages_are_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped(monkeypatch, [row("badnets", asr=0.8), row("blend", asr=0.6)])
    found = {figure.attack: figure for figure in measured.figures(SWEEP)}
    assert found[AVERAGE].values["asr"] == pytest.approx(0.7)
    built = table([row("badnets"), row("blend")], average=True, values=["asr"])
    last = built.lines[-1]
    assert AVERAGE in last.labels and last.entries[0].measured


# How rows are added


def write(path: Path, given: list[Any]) -> Path:
    pq.write_table(rows.table(given), path)
    return path


def test_rows_are_added_once_and_lose_their_notes(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", [row(notes="{}"), row(seed=1, status="failed")])
    folder = tmp_path / "measured"
    (said,) = measured.add([first], folder)
    assert said.endswith("quickstart.parquet: 1 rows")
    again = [row(asr=0.5, started_at="2026-03-03T00:00:00+00:00"), row(device="GPU Y")]
    (said,) = measured.add([write(tmp_path / "b.parquet", again)], folder)
    assert said.endswith(": 2 rows")
    found = pd.read_parquet(folder / "quickstart.parquet").set_index("device")
    assert found.loc["GPU X", "asr"] == 0.5 and found["notes"].isna().all()
    before = (folder / "quickstart.parquet").read_bytes()
    measured.add([tmp_path / "b.parquet"], folder)
    assert (folder / "quickstart.parquet").read_bytes() == before


def test_the_last_file_named_decides_and_no_clock(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{number}.parquet", [row(asr=number / 10, started_at=f"20{year}-01-01")])
        for number, year in enumerate((26, 30, 28))
    ]
    folder = tmp_path / "measured"
    for order in itertools.permutations(range(3)):
        measured.add([files[number] for number in order], folder)
        found = pd.read_parquet(folder / "quickstart.parquet")
        assert found["asr"].tolist() == [order[-1] / 10], "what is shipped counts less"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sweep": "mine"}, "mine: no such sweep"),
        ({"device": None}, "proves nothing"),
        ({"status": "failed"}, "no rows yet"),
    ],
)
def test_what_proves_nothing_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(SweepError, match=said):
        measured.add([write(tmp_path / "a.parquet", [row(**change)])], tmp_path / "measured")
    assert not (tmp_path / "measured").exists()


def test_a_recipe_is_called_what_a_sweep_file_would_call_it() -> None:
    def name(declared: Any) -> str:
        recipe = json.dumps(vars(recipes.resolve(declared, "cifar10", "resnet18")))
        return measured.recipe_name(recipe, "cifar10", "resnet18")

    for declared in recipes.RECIPES:
        same = {
            recipes.resolve(other, "cifar10", "resnet18") for other in (declared, name(declared))
        }
        assert len(same) == 1
    assert name({"base": "d-br", "epochs": 60}) == "d-br with epochs 60"
    assert name({"epochs": 3, "precision": "fp32"}) == 'fast with epochs 3, precision "fp32"'
