"""Points by hand, fronts, ranks and costs, and the files `sweeper plot` makes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sweeper.cli import app
from sweeper.core import rows
from sweeper.core.errors import SweepError
from sweeper.tables import plots, points, results, stats
from tests.support import invented


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    """The points of a small invented sweep."""
    return points.points(invented.frame(), {"defense": ["anp", "none"]})


def one(found: pd.DataFrame, **axes: object) -> pd.Series:
    mask = np.logical_and.reduce([found[axis] == value for axis, value in axes.items()])
    (index,) = found.index[mask]
    return found.loc[index]


def test_a_point_by_hand(found: pd.DataFrame) -> None:
    data = invented.frame()
    mine = data[(data.attack == "sig") & (data.defense == "anp") & (data.poison_rate == 0.05)]
    assert len(mine) == 2
    point = one(found, attack="sig", defense="anp", poison_rate=0.05)
    for name, values in {"asr": mine.asr, "acc_loss": mine.acc_before - mine.acc}.items():
        by_hand = stats.summarise(values.to_numpy())
        expected = (by_hand.mean, max(by_hand.low, -1.0 if "loss" in name else 0), by_hand.high, 2)
        got = tuple(point[f"{name}{end}"] for end in ("", "_low", "_high", "_n"))
        assert got == pytest.approx(expected)
    assert point.seconds == pytest.approx(mine.seconds.mean()) and point.state == "ok"
    assert list(found.defense.cat.categories[:2]) == ["anp", "none"], "the order asked for"


def test_one_seed_has_wilsons_interval() -> None:
    data = invented.frame(seeds=1)
    point = one(points.points(data), attack="badnets", defense="nad", poison_rate=0.1)
    low, high = stats.wilson(point.asr * 9000, 9000)
    assert (point.asr_low, point.asr_high) == pytest.approx((low, high))
    assert np.isnan(point.acc_loss_low), "a difference of one seed has no interval"


def test_what_did_not_end_well() -> None:
    given = invented.sweep(attacks=["badnets"], rates=[0.1], defenses=["none", "anp"], seeds=2)
    for row, status in zip(given, ("ok", "failed", "blocked", "failed"), strict=True):
        row["status"] = status
    found = points.points(results.frame([rows.table(given)]))
    none, anp = (one(found, defense=defense) for defense in ("none", "anp"))
    assert (none.state, none.partial, none.asr_n) == ("ok", True, 1)
    assert (anp.state, anp.partial, anp.asr_n) == ("failed", False, 0)
    assert np.isnan(anp.asr), "the numbers of a failed cell do not count"


def test_labels_of_two_settings_are_refused() -> None:
    given = invented.sweep(seeds=1, attacks=["badnets"])
    twin = [{**row, "key": row["key"][::-1], "defense_options": "{}"} for row in given]
    both = [{**row, "defense_options": '{"a": 1}'} for row in given] + twin
    with pytest.raises(SweepError, match="differ in defense_options"):
        points.points(results.frame([rows.table(both)]))


def cloud(**defenses: tuple[float, float]) -> pd.DataFrame:
    data = pd.DataFrame(
        [(name, loss, asr, name.endswith("oracle")) for name, (loss, asr) in defenses.items()],
        columns=["defense", "acc_loss_counted", "asr_counted", "oracle"],
    )
    data = data.assign(reached=data["defense"] == "spy", max_acc_loss=0.1)
    data = data.assign(reference=data["defense"] == "none")
    return data.astype({"defense": "category"})


def test_the_front_by_hand() -> None:
    given = cloud(
        none=(0.0, 1.0), good=(0.01, 0.1), worse=(0.02, 0.1), best=(0.05, 0.02), oracle=(0.0, 0.0),
        spy=(0.0, 0.0), guess=(0.7, 0.0),
    )  # fmt: skip
    found = points.means(given).set_index("defense")
    assert set(found.index[found.front]) == {"good", "best"}, "the oracle beats nobody"
    assert found.reference["none"] and not found.reference["good"]
    rival = points.means(cloud(none=(0.0, 0.1), good=(0.01, 0.1))).set_index("defense")
    assert rival.front.to_dict() == {"none": False, "good": True}, "no defense beats nobody"
    free = points.means(given.assign(max_acc_loss=1.0)).set_index("defense")
    assert free.front["guess"], "nothing beats the ASR of a model that guesses"
    assert points.means(cloud(a=(0.1, 0.1), b=(0.1, 0.1))).front.all(), "equals do not beat"


def test_ranks_by_hand(found: pd.DataFrame) -> None:
    about = points.ranks(found)
    grid = found.pivot_table(
        index=["attack", "poison_rate"], columns="defense", values="asr", observed=True
    )
    expected = grid.drop(columns="none").rank(axis=1).mean()
    assert about.blocks == len(grid) == 9 and not about.left_out
    assert about.rank.to_dict() == pytest.approx(expected.to_dict())
    # Demsar (JMLR 2006), table 5: q for four classifiers at 5 % is 2.569
    assert about.difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 9)), abs=1e-3)
    der = found.pivot_table(
        index=["attack", "poison_rate"], columns="defense", values="der", observed=True
    )
    best = der.drop(columns="none").mean().idxmax()
    assert points.ranks(found, "der").rank.index[0] == best, "more DER is better"


def test_the_clean_model_counts_in_no_mean_and_no_rank() -> None:
    data = invented.frame(attacks=["badnets", "sig", "none"])
    found = points.points(data)
    poisoned = points.points(data[data["attack"] != "none"])
    assert points.ranks(found).rank.to_dict() == points.ranks(poisoned).rank.to_dict()
    assert points.means(found)["y"].tolist() == points.means(poisoned)["y"].tolist()
    alone = points.points(data[data["attack"] == "none"])
    assert alone["acc_counted"].notna().all(), "there is nothing else"


def test_ranks_leave_out_what_rarely_ran(found: pd.DataFrame) -> None:
    rare = found.copy()
    rare.loc[(rare.defense == "nad") & (rare.attack != "sig"), "asr_counted"] = np.nan
    about = points.ranks(rare)
    assert about.left_out == ("nad",) and about.blocks == 9
    with pytest.raises(SweepError, match="two of each are needed"):
        points.ranks(found[found.defense == "nad"])


def test_costs_by_hand() -> None:
    data = invented.frame()
    about = points.costs(data)
    assert about.defenses.total.sum() == pytest.approx(data.seconds.sum())
    first = data.groupby("victim").victim_seconds.first()
    assert about.victims == len(first) == 18 and about.training == pytest.approx(first.sum())
    assert about.saved == pytest.approx(data.victim_seconds.sum() - first.sum())
    twice = results.frame([rows.table(invented.sweep())] * 2)
    assert points.costs(twice).saved == pytest.approx(about.saved)


@pytest.mark.parametrize("what", plots.FIGURES)
def test_figures_show_every_defense(found: pd.DataFrame, what: str, tmp_path: Path) -> None:
    figure = plots.draw(what, found)
    out = tmp_path / "figure.svg"
    plots.save(figure, out)
    text = out.read_text()
    shown = ["FT", "FP", "NAD", "ANP"]
    assert all(f"{defense}" in text for defense in shown)
    assert ("No defense" in text) == (what != "ranks"), "what has no rank is in no ranking"
    plots.save(plots.draw(what, found), again := tmp_path / "again.svg")
    assert again.read_bytes() == out.read_bytes()


def test_rate_curves_go_through_the_means(found: pd.DataFrame) -> None:
    axis = plots.draw("rates", found).axes[0]
    attack = axis.get_title()
    line = next(line for line in axis.lines if line.get_label() == "NAD")
    attack = {"BadNets": "badnets", "Blend": "blend"}[attack]
    expected = [
        100 * one(found, attack=attack, defense="nad", poison_rate=rate).asr
        for rate in invented.RATES
    ]
    assert list(line.get_ydata()) == pytest.approx(expected)
    assert list(line.get_xdata()) == pytest.approx([1, 5, 10])


def test_attacks_that_share_no_rate_stand_in_one_panel() -> None:
    data = invented.frame(rates=[0.05, 0.1], attacks=["badnets", "sig"])
    data = data[(data["attack"] == "sig") == (data["poison_rate"] == 0.1)]
    order = {"attack": ["badnets", "sig"], "defense": invented.DEFENSES[:5]}
    (axis,) = plots.draw("bars", points.points(data, order)).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["BadNets\n5 %", "SIG\n10 %"]
    assert len(axis.patches) == 2 * 5


@pytest.mark.parametrize("metric", ["asr", "acc", "acc_loss"])
@pytest.mark.parametrize("what", ["rates", "tradeoff", "bars"])
def test_an_axis_uses_its_space_and_says_where_it_begins(
    found: pd.DataFrame, what: str, metric: str
) -> None:
    figure = plots.draw(what, found, metric)
    begins, ends = figure.axes[0].get_ylim()
    values = 100 * found[metric].dropna()
    assert begins <= values.min() and ends >= values.max()
    assert (begins == 0 and ends == 100) if metric == "asr" else ends - begins < 50
    label = figure.axes[0].get_ylabel() or figure.get_supylabel()
    assert (f"axis from {begins:g}" in label) == (metric == "acc"), label


def test_a_bar_of_nothing_is_seen() -> None:
    data = invented.frame(attacks=["badnets"], rates=[0.1], seeds=1).assign(asr=0.0)
    figure = plots.draw("bars", points.points(data))
    bars = figure.axes[0].patches
    assert all(0.3 < bar.get_height() < 2 for bar in bars), "a stub"
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.0"] * len(bars), "its number"


def test_a_bar_joins_ranks_closer_than_the_difference() -> None:
    assert plots._cliques(np.array([1.0, 1.5, 2.6, 4.0]), 1.2) == [(0, 1), (1, 2)]
    assert plots._cliques(np.array([1.0, 3.0, 5.0]), 1.2) == []
    assert plots._cliques(np.array([1.0, 1.5, 2.0]), 1.2) == [(0, 2)]


@pytest.mark.parametrize(
    ("what", "changes", "metric", "sentence"),
    [
        ("pie", {}, "asr", "no figure 'pie'"),
        ("rates", {}, "asrr", "no metric 'asrr', did you mean 'asr'"),
        ("rates", {}, "tpr", "no row has a value of tpr"),
        ("rates", {"rates": [0.1]}, "asr", "no attack has two poison rates"),
        ("bars", {"datasets": ["cifar10", "gtsrb"]}, "asr", "add --where dataset=cifar10"),
    ],
)
def test_what_cannot_be_drawn(what: str, changes: dict, metric: str, sentence: str) -> None:
    with pytest.raises(SweepError, match=sentence):
        plots.draw(what, points.points(invented.frame(**changes)), metric)


def test_plot_writes_what_its_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = invented.sweep(datasets=["cifar10", "gtsrb"], attacks=["badnets"], seeds=1)
    store = invented.store(tmp_path / "store", given)
    spec = tmp_path / "invented.yaml"
    spec.write_text("name: invented\n")
    begins = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml", "gif": b""}
    for form, begin in begins.items():
        out = tmp_path / f"figure.{form}"
        words = ["sweeper", "plot", "bars", str(spec), "--store", str(store), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [*words, "--where", "dataset=gtsrb"])
        with pytest.raises(SystemExit) as left:
            app.main()
        said = capsys.readouterr()
        if begin:
            assert left.value.code == 0 and said.out.strip() == str(out), said.err
            assert out.read_bytes().startswith(begin)
        else:
            assert left.value.code == 2 and "end the name in .pdf" in said.err and not out.exists()


def test_what_is_no_share_has_no_wilson_interval() -> None:
    """BLEU and mAP of one seed: ASR is a share of sentences, or images, ACC and RA are none."""
    data = invented.frame(seeds=1).assign(task="pairs", score="BLEU")
    point = one(points.points(data), attack="badnets", defense="nad", poison_rate=0.1)
    assert np.isnan([point.acc_low, point.acc_high, point.ra_low]).all()
    assert not np.isnan([point.asr_low, point.asr_high]).any()
