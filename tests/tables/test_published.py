"""Published figures: what the file holds, where a table shows them, and what is marked.

`python -m tests.test_published` writes the golden files anew; read the difference first.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sweeper.core import rows
from sweeper.plan import source, spec, view
from sweeper.tables import expected, published, results, tables
from sweeper.tables import measured as measured_
from sweeper.tables.layout import Entry
from sweeper.tables.published import AVERAGE, Figure
from tests.support.places import ROOT
from tests.support.recorded import GOLDEN, SUFFIX, check_html, check_latex, row

SWEEP = "d-br-cifar10"
ATTACKS = ("badnets", "badnets-a2a", "trojan", "blend-strip", "blend-kitty", "sig", "clean-label")


def measured(given=ATTACKS, seeds=3):
    """Rows of four defenses: none as published, d-br-oracle 1.5 and d-st 6 points off; and d-br,
    for which nothing is published.
    """
    off_by = {"none": 0.0, "d-br": 0.02, "d-br-oracle": 0.015, "d-st": 0.06}
    out = []
    known = {f.cell: f for f in published.of(SWEEP)}
    for attack, seed in itertools.product(given, range(seeds)):
        for defense, off in off_by.items():
            figure = known["cifar10", attack, "d-br-oracle" if defense == "d-br" else defense]
            names = {"dataset": "cifar10", "model": "resnet18", "clean_budget": 0.0}
            noise = (seed - 1) / 1000
            out.append(
                row(
                    attack,
                    0.1,
                    defense,
                    seed,
                    **names,
                    acc_nontarget=figure.values["acc_nontarget"] - off + noise,
                    acc=figure.values["acc_nontarget"] - 2 * off,
                    asr=min(1.0, figure.values["asr"] + off),
                    device="a GPU",
                )
            )
    return out


def table(given=None, **changes):
    layout = view.of(source.read(SWEEP))
    asked = {
        "rows": layout.rows,
        "cols": layout.cols,
        "values": layout.values,
        "order": layout.order({}),
        "heads": layout.labels,
        "title": layout.caption,
        "average": layout.average,
        "figures": published.of(SWEEP),
    }
    parts = given if given is not None else [rows.table(measured())]
    return tables.build(results.frame(parts), **{**asked, **changes})


@pytest.mark.parametrize("name", published.sweeps())
def test_every_published_cell_has_a_place_in_its_sweep(name):
    sweep = spec.load(name)
    labels = {
        axis: {entry.label for entry in getattr(sweep, f"{axis}s")}
        for axis in ("dataset", "model", "attack", "defense")
    }
    foreign = []
    for figure in published.of(name):
        assert figure.dataset in labels["dataset"] and figure.model in labels["model"]
        assert figure.attack in (AVERAGE, *labels["attack"])
        if figure.attack != AVERAGE:
            assert figure.poison_rate in (None, *sweep.poison_rates)
        foreign += [figure.defense] * (figure.defense not in labels["defense"])
    assert not foreign


def test_the_file_is_clean():
    every = published.figures()
    assert len(every) > 500
    agree = {}
    for figure in every:
        assert figure.values and figure.source and figure.wording
        for metric, value in figure.values.items():
            assert 0 <= value <= 1 or metric == "seconds", figure
            same = (figure.sweep, *figure.cell, metric)
            if figure.sweep:
                assert agree.setdefault(same, value) == value, f"sources disagree on {same}"
    (cell,) = [f for f in published.of(SWEEP) if f.cell == ("cifar10", "sig", "mcr")]
    assert cell.values == pytest.approx({"acc_nontarget": 0.9182, "asr": 0.9904})
    assert "NeurIPS 2022" in cell.source
    (fast,) = [f for f in published.of("fip-runtime") if f.defense == "fip"]
    assert fast.values == {"seconds": 20.8} and fast.attack == AVERAGE


def test_what_was_chosen_on_test_data_stands_where_it_says_so():
    """All of D-BR's published cells are an oracle's; of D-ST the head is, which has none here."""
    chosen = [f for f in published.figures() if f.wording.split("; ")[-1] in ("D-BR", "D-ST")]
    kinds = {"D-BR": "d-br-oracle", "D-ST": "d-st"}
    assert all(f.defense == kinds[f.wording.split("; ")[-1]] for f in chosen)
    assert all("test ACC" in f.note for f in chosen)
    assert sum(f.defense == "d-br-oracle" for f in published.figures()) == 17


@pytest.fixture(scope="module")
def whole():
    return table()


@pytest.mark.parametrize("form", SUFFIX)
def test_golden(form, whole):
    expected_text = (GOLDEN / f"compared.{SUFFIX[form]}").read_bytes().decode()
    assert tables.render(whole, form) == expected_text
    assert tables.render(whole, form) == expected_text, "a second call differs"


def test_order_of_parts_decides_nothing():
    given = measured()
    mixed = [given[i] for i in np.random.default_rng(0).permutation(len(given))]
    parts = [rows.table(mixed[:9]), rows.table(mixed[9:40]), rows.table(mixed[40:])]
    again = table(parts[::-1])
    for form, suffix in SUFFIX.items():
        golden = (GOLDEN / f"compared.{suffix}").read_bytes().decode()
        assert tables.render(again, form) == golden


def test_every_published_cell_is_there_with_its_source():
    few = table([rows.table(measured(("badnets", "sig"), seeds=1))])
    lines = list(csv.DictReader(io.StringIO(tables.render(few, "csv"))))
    for figure in published.of(SWEEP):
        (line,) = [line for line in lines if line["attack"] == figure.attack]
        for metric, value in figure.values.items():
            stem = f"{figure.defense} {metric}"
            assert float(line[f"{stem} published"]) == value
            assert figure.source in line[f"{stem} source"]
    text = tables.render(few, "markdown")
    for name in {figure.source for figure in published.of(SWEEP)}:
        assert f"] {name}" in text
    missing = next(line for line in text.splitlines() if line.startswith("| BadNets all2all"))
    assert "| 92.79 [abcd] / · |" in re.sub(" +", " ", missing)
    average = next(line for line in text.splitlines() if line.startswith("| Average"))
    assert "| 92.46 [bc] / · |" in re.sub(" +", " ", average), "ours are of two attacks only"


def test_what_a_cell_says(whole):
    text = tables.render(whole, "markdown")
    line = next(line for line in text.splitlines() if line.startswith("| Trojan"))
    assert re.search(r"\| +92\.21 \[\w+\] / (\*\*)?90\.7 ± 0\.1 \(3\)(\*\*)? / -1\.5 \|", line)
    assert re.search(r"\| +93\.72 \[\w+\] / 87\.7 ± 0\.1 \(3\) / -6\.0≠ \|", line)
    average = next(line for line in text.splitlines() if line.startswith("| Average"))
    assert re.search(r"\| +92\.46 \[\w+\] / 92\.5 ± 0\.1 \(3\) / \+0\.0 \|", average)


shares = st.integers(0, 1000).map(lambda k: k / 1000)


@given(shares, shares, st.none() | shares)
@example(0.5, 0.52, None)
@example(0.5, 0.55, 0.05)
def test_outside_is_beyond_two_points_and_the_spread(value, mean, sd):
    entry = Entry("ok", mean, math.nan if sd is None else sd, 3, False, False)
    far = abs(round(mean - value, 9))
    assert published.outside(value, entry, "asr") == (far > 0.02 and far > (sd or 0.0))
    assert not published.outside(value, entry._replace(state="failed"), "asr")
    assert not published.outside(value, entry, "seconds")


def figure(**changes):
    given = {"sweep": "", "dataset": "digits", "model": "tiny", "attack": "badnets"}
    given |= {"poison_rate": 0.05, "defense": "anp", "values": {"acc": 0.9}, "source": "A"}
    return Figure(**{**given, "wording": "", "note": "", **changes})


def shown(known, given):
    built = tables.build(results.frame([rows.table(given)]), values=("acc",), figures=known)
    return built, {line.labels: [e.published for e in line.entries] for line in built.lines}


def test_a_figure_belongs_to_its_own_rate_and_model():
    given = [row("badnets", rate, "anp", 0, acc=0.9) for rate in (0.01, 0.05)]
    built, found = shown([figure()], given)
    assert [bool(f[0]) for f in found.values()] == [False, True] and not built.settings
    built, found = shown([figure(poison_rate=0.1, model="resnet18")], given)
    assert all(f[0] for f in found.values()), "no line has its rate: all have the figure"
    assert set(built.settings) == {
        "model resnet18, ours tiny",
        "badnets at 10 %, ours 1 %",
        "badnets at 10 %, ours 5 %",
    }
    text = tables.render(built, "markdown")
    assert "Published at another setting: model resnet18, ours tiny;" in text


def test_two_sources_of_one_figure_are_both_named():
    known = [figure(), figure(source="B"), figure(source="C", defense="fip")]
    built, found = shown(known, [row("badnets", 0.05, "anp", 0, acc=0.9)])
    assert built.sources == ("A", "B", "C")
    assert [f.sources for f in found[("badnets",)]] == [(0, 1), (2,)]
    assert "90.00 [ab] / 90.0 / +0.0" in tables.render(built, "markdown")


def test_latex_and_html_are_whole(whole):
    check_latex(tables.render(whole, "latex"))
    check_html(tables.render(whole, "html"))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles(tmp_path, whole):
    head = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
    (tmp_path / "table.tex").write_text(head + tables.render(whole, "latex") + "\\end{document}\n")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout, "the table is wider than the page"


def test_expected_is_current():
    message = (
        "a figure or a sweep changed: run `python -m sweeper.tables.expected docs/expected.md`"
    )
    assert (ROOT / "docs/expected.md").read_text(encoding="utf-8") == expected.text(), message


def test_the_commands_of_expected_run_one_cell():
    page = (ROOT / "docs/expected.md").read_text(encoding="utf-8")
    whole = page.replace("\\\n", "")
    found = re.findall(r"^    (sweeper run .*)$", whole, re.MULTILINE)
    assert len(found) == len({*published.sweeps(), *measured_.sweeps()})
    for command in found:
        _, _, name, *words = shlex.split(command)
        sweep = spec.load(name, [b for a, b in itertools.pairwise(words) if a == "--set"])
        if "attacks" in command:
            assert len(sweep.attacks) == len(sweep.defenses) == len(sweep.datasets) == 1
            assert sweep.attacks[0].options == _entry(name, sweep.attacks[0].label).options


def _entry(name, label):
    return next(entry for entry in spec.load(name).attacks if entry.label == label)


if __name__ == "__main__":
    for form, suffix in SUFFIX.items():
        (GOLDEN / f"compared.{suffix}").write_bytes(tables.render(table(), form).encode())
