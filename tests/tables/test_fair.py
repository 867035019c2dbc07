"""Numbers that look right and are not: attacks that never took, models that guess, and spies."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pandas as pd
import pytest

from sweeper.core.errors import SweepError
from sweeper.plan import source, view
from sweeper.tables import fair, plots, points, render, report, results, screen, tables
from sweeper.tables.layout import Table
from tests.support.recorded import SUFFIX, check_html, check_latex, entry, frame, row

VICTIMS = {
    "badnets": (0.812, 0.994),
    "blend": (0.103, 0.0),
    "sig": (0.112, 0.031),
    "wanet": (0.795, 0.121),
}
"""Attack -> ACC and ASR of its victim: one of four took, two learned nothing."""
DEFENSES = ("none", "anp", "fine-tuning", "fip")


def after(defense: str, acc: float, asr: float) -> tuple[float, float]:
    """ACC and ASR a defense leaves: ANP guesses, FIP repairs."""
    return {
        "none": (acc, asr),
        "anp": (0.103, 0.0),
        "fine-tuning": (acc - 0.02, 0.95 * asr),
        "fip": (acc - 0.03, 0.02 * asr + 0.01),
    }[defense]


def sweep(
    victims: dict[str, Any] = VICTIMS, seeds: int = 1, before: bool = True, **given: Any
) -> list[dict[str, Any]]:
    """Rows of every defense on every victim, one of ten classes."""
    found = []
    for attack, took in victims.items():
        for seed in range(seeds):
            acc, asr = took[seed] if isinstance(took, list) else took
            was = {"acc_before": acc, "asr_before": asr} if before else {}
            for defense in DEFENSES:
                now = dict(zip(("acc", "asr"), after(defense, acc, asr), strict=True))
                known = {"n_classes": 10, "victim": f"{attack}{seed}", **was, **now}
                found.append(row(attack, 0.1, defense, seed, **known, **given))
    return found


def build(given: list[dict[str, Any]], **options: Any) -> Table:
    return tables.build(frame(given), rows=("attack",), **options)


def bold(built: Table) -> set[tuple[Any, ...]]:
    return {
        (line.labels[0], column.groups[0], column.metric)
        for line in built.lines
        for column, e in zip(built.columns, line.entries, strict=True)
        if e.best
    }


@pytest.mark.parametrize("before", [True, False], ids=["before", "none's own row"])
def test_an_attack_that_never_took_is_marked_and_wins_nothing(before: bool) -> None:
    built = build(sweep(before=before), average=True)
    marked = {line.labels[0] for line in built.lines if all(e.untaken for e in line.entries)}
    assert marked == {"blend", "sig", "wanet", "average"}
    assert not any(e.untaken for e in built.lines[0].entries)
    assert bold(built) == {("badnets", "fip", "asr")}, "ANP's 0.0 is that of a model that guesses"


def test_an_average_leaves_out_what_never_took_unless_asked() -> None:
    mean = entry(build(sweep(), average=True), ("average",), ("none",), "asr").mean
    assert mean == pytest.approx(0.994)
    asked = build(sweep(), average=True, untaken=True)
    whole = entry(asked, ("average",), ("none",), "asr")
    assert whole.mean == pytest.approx(sum(asr for _, asr in VICTIMS.values()) / 4)
    assert {attack for attack, *_ in bold(asked)} >= {"sig", "wanet"}
    assert entry(asked, ("sig",), ("none",), "asr").untaken == 1, "marked all the same"
    assert "in no average" not in tables.render(asked, "markdown")
    none = {attack: took for attack, took in VICTIMS.items() if attack != "badnets"}
    lines = build(sweep(none), average=True).lines
    assert [line.labels[0] for line in lines] == ["blend", "sig", "wanet"], "no average of nothing"


def test_a_cell_that_failed_on_a_victim_that_never_took_keeps_no_average_waiting() -> None:
    given = sweep()
    lost = next(r for r in given if r["attack"] == "sig" and r["defense"] == "fip")
    lost.update(status="failed", acc=None, asr=None)
    e = entry(build(given, average=True), ("average",), ("fip",), "asr")
    assert (e.state, e.partial, e.mean) == ("ok", False, pytest.approx(0.02 * 0.994 + 0.01))


def test_some_seeds_never_took() -> None:
    good, bad = (0.80, 0.99), (0.79, 0.03)
    given = sweep({"badnets": [good, bad, good], "blend": [good, good, good]}, seeds=3)
    built = build(given, average=True)
    e = entry(built, ("badnets",), ("none",), "asr")
    assert (e.n, e.untaken, e.mean) == (3, 1, pytest.approx((0.99 + 0.03 + 0.99) / 3))
    mean = entry(built, ("average",), ("none",), "asr")
    assert (mean.n, mean.untaken, mean.mean) == (3, 1, pytest.approx(0.99))
    assert entry(built, ("blend",), ("none",), "asr").untaken == 0
    text = tables.render(built, "markdown")
    assert "67.0 ± 55.4 (3, 1°)" in text and "(3, 1°): 1 of 3 seeds" in text


def test_a_mean_over_seeds_counts_those_that_took_or_all_where_none_did() -> None:
    good, bad = (0.80, 0.99), (0.79, 0.03)
    given = frame(sweep({"badnets": [good, bad, good], "blend": [bad, bad, bad]}, seeds=3))
    counted = given[fair.taken(given)].groupby("attack")["seed"].unique()
    assert set(counted["badnets"]) == {0, 2} and set(counted["blend"]) == {0, 1, 2}


def test_the_clean_model_needs_no_backdoor_but_must_have_learned() -> None:
    given = [
        row("none", 0.0, "fip", 0, acc=0.8, acc_before=acc, asr=0.1, asr_before=asr, n_classes=10)
        for acc, asr in ((0.81, 0.02),)
    ]
    assert not fair.untaken(frame(given)).any()
    assert fair.untaken(frame([{**given[0], "acc_before": 0.12}])).all()
    named = [{**given[0], "attack": "clean", "attack_name": "none"}]
    assert not fair.untaken(frame(named)).any(), "the method decides, not its label"


@pytest.mark.parametrize(
    ("acc", "classes", "nothing"),
    [(0.149, 10, True), (0.151, 10, False), (0.54, 2, True), (0.7, 2, False), (0.059, 43, True)],
)
def test_near_chance(acc: float, classes: int, nothing: bool) -> None:
    given = row("badnets", 0.1, "anp", 0, acc_before=acc, asr_before=1.0, n_classes=classes)
    assert fair.untaken(frame([given])).tolist() == [nothing]
    older = row("blend", 0.1, "anp", 0, acc_before=acc, asr_before=1.0)
    assert fair.untaken(frame([given, older])).tolist() == [nothing] * 2, "of the same data set"
    assert not fair.untaken(frame([older])).any(), "nobody says how many classes"


def rivals(**changes: Any) -> list[dict[str, Any]]:
    """A victim, and two defenses of which ANP has the lower ASR."""
    numbers = {"anp": (0.70, 0.0, 0.6, 0.9), "fip": (0.80, 0.2, 0.5, 0.8)}
    given = []
    for defense, (acc, asr, ra, der) in numbers.items():
        now = {"acc": acc, "asr": asr, "asr_all": asr, "leak": asr, "ra": ra, "der": der}
        now |= {"acc_before": 0.81, "asr_before": 1.0, "tpr": 1 - asr}
        given += [row("badnets", 0.1, defense, seed, **now | changes) for seed in range(2)]
    return given


def test_nothing_is_won_at_the_cost_of_accuracy() -> None:
    metrics = ("acc", *fair.TRIGGERED, "tpr")
    built = build(rivals(), values=metrics)
    assert {(d, m) for _, d, m in bold(built)} == {("fip", "acc"), ("anp", "tpr")}
    free = build(rivals(), values=metrics, max_acc_loss=0.12)
    won = {(d, m) for _, d, m in bold(free)}
    assert won == {("fip", "acc"), *(("anp", m) for m in (*fair.TRIGGERED, "tpr"))}
    # the note stands where something is bold, and names the metrics that are shown
    assert "in ASR, DER only where ACC fell by no more than 12 points." in tables.render(
        build(rivals(), values=("asr", "der"), max_acc_loss=0.12), "markdown"
    )
    unlimited = build(rivals(), values=("asr",), max_acc_loss=1.0)
    assert "only where ACC" not in tables.render(unlimited, "markdown")
    assert "only where ACC" not in tables.render(build(rivals(), values=("acc",)), "markdown")


def test_the_sweep_file_says_how_far_accuracy_may_fall(tmp_path: Any) -> None:
    assert view.View().max_acc_loss == 0.1 and not view.View().untaken
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ntable: {untaken: true, max_acc_loss: 0.2}\n")
    layout = view.of(source.read(str(path)))
    assert (layout.untaken, layout.max_acc_loss) == (True, 0.2)
    path.write_text("name: a\ntable: {max_acc_loss: 10}\n")
    with pytest.raises(SweepError, match="max_acc_loss"):
        view.of(source.read(str(path)))


SPY = json.dumps(["frames of its caller", "files of the store"])


def test_a_defense_that_reached_too_far_competes_no_more() -> None:
    given = sweep({"badnets": (0.812, 0.994)}, seeds=2)
    assert ("badnets", "fip", "asr") in bold(build(given))
    one = next(r for r in given if r["defense"] == "fip")
    one["seen"] = SPY
    for other in given:
        other.setdefault("seen", "[]")
    built = build(given)
    assert not any(defense == "fip" for _, defense, _ in bold(built)), "one row bars its defense"
    assert built.reached == {"fip": "frames of its caller, files of the store"}
    text = tables.render(built, "markdown")
    assert "FIP§ ASR" in text and "ANP§" not in text
    assert "- §: reached beyond what a defense may see (FIP§: frames of its caller, files" in text
    assert "evidence, no proof" in text


def test_what_was_left_behind_is_told_and_bars_nobody() -> None:
    given = sweep({"badnets": (0.812, 0.994)}, left_behind="[]")
    before = bold(build(given))
    given[-1]["left_behind"] = json.dumps(["torch.set_default_dtype"])
    built = build(given)
    assert bold(built) == before
    assert built.notes == ("Left behind in its process, with no way back: fip: "
                           "torch.set_default_dtype.",)  # fmt: skip
    assert "§" not in tables.render(built, "markdown")


@pytest.mark.parametrize("form", [*SUFFIX, "screen"])
def test_every_format_says_it(form: str) -> None:
    given = sweep(seeds=2)
    for r in given:
        r["dtype"] = "bf16" if r["attack"] == "sig" else "fp32"
    given[-1]["seen"] = SPY
    built = build(given, average=True)
    text = screen.render(built, 90) if form == "screen" else tables.render(built, form)
    flat = " ".join(re.sub(r"<.*?>|\\S", "", text).split())
    for said in ("the victim carries no backdoor", "evidence, no proof", "bf16 and fp32"):
        assert said in flat, text
    if form == "csv":
        head, *lines = csv.reader(io.StringIO(text))
        places = [i for i, name in enumerate(head) if name.endswith("untaken")]
        assert len(places) == len(built.columns)
        found = {line[head.index("attack")]: {line[i] for i in places} for line in lines}
        assert found["badnets"] == {"0"} and found["blend"] == {"2"}
        assert head[-1] == "notes" and len({line[-1] for line in lines}) == 1
    elif form == "latex":
        check_latex(text)
        assert r"(2)$^\circ$ &" in text and r"FIP$^\S$" in text
    else:
        assert "(2)°" in flat and "FIP§" in flat
    if form == "html":
        check_html(text)


def test_what_is_in_order_has_no_sign_and_no_note() -> None:
    built = build(sweep({"badnets": (0.812, 0.994)}, seen="[]", left_behind="[]", dtype="fp32"))
    text = tables.render(built, "markdown")
    assert built.notes == () and not built.reached and "°" not in text and "§" not in text
    assert "notes" not in tables.render(built, "csv").splitlines()[0]


# Points, ranks, figures and the page


def test_points_keep_the_honest_mean_beside_the_one_that_counts() -> None:
    good, bad = (0.80, 0.99), (0.79, 0.03)
    data = frame(sweep({"badnets": [good, bad], "blend": [bad, bad]}, seeds=2))
    found = points.points(data).set_index(["attack", "defense"])
    some, none = found.loc[("badnets", "none")], found.loc[("blend", "none")]
    assert (some["untaken"], some["asr"], some["asr_counted"]) == (1, pytest.approx(0.51), 0.99)
    assert none["untaken"] == 2 and none["asr"] == 0.03 and pd.isna(none["asr_counted"])
    asked = points.points(data, untaken=True).set_index(["attack", "defense"])
    assert asked.loc[("blend", "none"), "asr_counted"] == 0.03
    assert found["asr"].equals(asked["asr"])


def took(*attacks: str) -> dict[str, Any]:
    return {attack: (0.80 + i / 100, 0.99 - i / 100) for i, attack in enumerate(attacks)}


def test_a_model_that_guesses_ranks_last_and_an_untaken_victim_nowhere() -> None:
    given = sweep({**took("badnets", "blend", "trojan"), "sig": (0.8, 0.1)})
    about = points.ranks(points.points(frame(given)))
    assert about.blocks == 3 and about.guessing == ("anp",)
    assert about.rank.to_dict() == {"fip": 1.0, "fine-tuning": 2.0, "anp": 3.0}
    free = points.ranks(points.points(frame(given), untaken=True, max_acc_loss=1.0))
    assert free.blocks == 4 and free.rank.index[0] == "anp" and not free.guessing
    by_acc = points.ranks(points.points(frame(given)), "acc")
    assert by_acc.rank.index[-1] == "anp" and not by_acc.guessing
    for r in given:
        r["seen"] = SPY if r["defense"] == "fip" else None
    assert "fip" not in points.ranks(points.points(frame(given))).rank.index


def test_victims_of_which_none_took_have_no_ranks_and_small_spots_alone() -> None:
    found = points.points(frame(sweep({"sig": (0.8, 0.1), "wanet": (0.8, 0.2)})))
    with pytest.raises(SweepError, match="victims without a backdoor left out, and two of each"):
        points.ranks(found)
    (axis,) = plots.draw("tradeoff", found).axes
    spots = [line for line in axis.lines if len(line.get_xdata())]
    assert len(spots) == len(DEFENSES) and all(line.get_markersize() < 4 for line in spots)


def test_the_loss_of_older_rows_is_against_the_row_of_none() -> None:
    given = sweep(took("badnets", "blend"), before=False)
    found = points.points(frame(given)).set_index(["attack", "defense"])
    assert found.loc[("badnets", "anp"), "acc_loss"] == pytest.approx(0.8 - 0.103)


@pytest.mark.parametrize("what", plots.FIGURES)
def test_figures_say_which_victims_never_took(what: str, tmp_path: Any) -> None:
    given = sweep({**took("badnets", "blend", "trojan"), "sig": (0.8, 0.1)})
    given += [
        {**r, "poison_rate": 0.05, "key": r["key"] + "x", "victim": r["victim"] + "x"}
        for r in given
    ]
    data = frame(given)
    if what == "tradeoff":
        data = results.select(data, poison_rate=0.1)
    out = tmp_path / "a.svg"
    plots.save(plots.draw(what, points.points(data)), out)
    text = out.read_text()
    if what == "ranks":
        assert "last where it lost more than 10 points of ACC: ANP" in text
    else:
        assert "the victim carries no backdoor" in text
    sound = points.points(frame([r for r in given if r["attack"] != "sig"]))
    plots.save(plots.draw(what, sound), out)
    assert "the victim carries no backdoor" not in out.read_text()


def test_the_page_says_it() -> None:
    given = sweep(dtype="fp32")
    given[-1].update(seen=SPY, dtype="bf16")
    page = report.build(frame(given), "a", {"defense": list(DEFENSES)})
    text = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert text
    facts = json.loads(text[1])
    assert facts["points"]["untaken"].count(1) == 12 and facts["points"]["untaken"].count(0) == 4
    assert facts["notes"][0].startswith("3 of 4 victims carry no backdoor")
    assert facts["notes"][1] == "Measured with precision bf16 and fp32."
    assert "files of the store" in facts["states"]["reached"]["text"]
    for mark in ("untaken", "reached", "guessing"):
        assert facts["states"][mark]["sign"] == render.SIGNS[mark]


# What `sweeper run` says at its end


def test_the_sentence_names_a_few_victims_and_what_helps() -> None:
    found = fair.victims(frame(sweep(seeds=2)))
    assert len(found) == 8 and len([v for v in found if v["untaken"]]) == 6
    text = fair.sentence(found)
    assert text.startswith(
        "6 of 8 victims carry no backdoor (ASR below 50 %) or have learned nothing (ACC near "
        "chance): blend seed 0 (ASR 0.0, ACC 10.3), "
    )
    assert ", and 1 more. What usually helps: train longer (recipe.epochs)" in text
    assert "wanet seed 1" not in text
    assert json.loads(json.dumps(found)) == found
    assert fair.sentence(fair.victims(frame(sweep({"badnets": (0.8, 0.99)})))) == ""
    single = fair.sentence(fair.victims(frame(sweep({"badnets": (0.8, 0.1)}))))
    assert single.startswith("1 of 1 victim carries no backdoor") and " or has learned" in single


def test_a_victim_whose_training_failed_is_not_one_without_a_backdoor() -> None:
    given = [row("badnets", 0.1, d, 0, status="blocked", victim="a") for d in DEFENSES]
    assert fair.victims(frame(given)) == []
