"""Tables in each format, byte for byte: Markdown, CSV, LaTeX, HTML, and the legend."""

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sweeper.core import rows
from sweeper.tables import render, results, tables
from tests.support.recorded import (
    GOLDEN,
    SUFFIX,
    check_html,
    check_latex,
    entry,
    frame,
    recorded,
    row,
    table,
)


@pytest.mark.parametrize("form", SUFFIX)
def test_golden(form):
    expected = (GOLDEN / f"recorded.{SUFFIX[form]}").read_bytes().decode()
    built = table()
    assert tables.render(built, form) == expected
    assert tables.render(built, form) == expected, "a second call differs"


@pytest.mark.parametrize("seed", range(5))
def test_order_of_rows_decides_nothing(seed):
    given = recorded()
    mixed = [given[i] for i in np.random.default_rng(seed).permutation(len(given))]
    parts = [rows.table(mixed[:7]), rows.table(mixed[7:])]
    shuffled = frame(given).sample(frac=1, random_state=seed)
    found = [table(results.frame(parts)), table(shuffled)]
    for form in SUFFIX:
        expected = tables.render(table(), form)
        assert [tables.render(built, form) for built in found] == [expected] * 2


def test_markdown_has_no_empty_cell_and_escapes():
    lines = tables.render(table(), "markdown").splitlines()
    grid = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in grid}) == 1
    assert all(cell.strip() for line in grid for cell in line.strip("|").split("|"))
    odd = [row("a|b *c*", 0.1, "anp", 0, acc=0.5), row("<b>", 0.1, "anp", 0, acc=0.5)]
    text = tables.render(tables.build(frame(odd)), "markdown")
    assert r"a\|b \*c\*" in text
    assert r"\<b>" in text


def test_csv_keeps_full_precision():
    found = list(csv.reader(io.StringIO(tables.render(table(), "csv"))))
    assert len({len(line) for line in found}) == 1
    assert all(cell for line in found for cell in line)
    data = pd.read_csv(GOLDEN / "recorded.csv", keep_default_na=False)
    assert data["dataset"].unique().tolist() == ["digits"]
    line = data[(data["attack"] == "badnets") & (data["poison_rate"] == 0.01)].iloc[0]
    expected = entry(table(), ("badnets", 0.01), ("fip",), "asr")
    assert float(line["fip asr mean"]) == expected.mean
    assert float(line["fip asr sd"]) == expected.sd
    assert set(data["spectre acc mean"]) > {"timeout", "not_applicable"}


def test_latex():
    check_latex(tables.render(table(), "latex"))
    odd = [
        row(name, 0.1, "anp", 0, acc=0.5) for name in ("a&b_c%d#e$f", "{x}^~\\", '<y> "z"', "a|b")
    ]
    check_latex(tables.render(tables.build(frame(odd)), "latex"))


def test_latex_for_a_paper_of_ones_own():
    marked = tables.render(replace(table(), tex_label="tab:main", starred=True), "latex")
    parts = marked.split(r"\begin{table*}")[1:]
    assert len(parts) > 1 and r"\begin{table}" not in marked, "a wide table has several"
    found = [re.findall(r"\\label\{(.*)\}", part) for part in parts]
    assert found == [["tab:main"], *([f"tab:main-{n}"] for n in range(2, len(parts) + 1))]
    assert all(part.index(r"\caption") < part.index(r"\label") for part in parts)
    bare = tables.render(replace(table(), tex_label="tab:main", bare=True), "latex").splitlines()
    assert bare[0] == r"% needs \usepackage{booktabs}" and bare[-1] == r"\end{tabular}"
    assert not re.search(r"caption|\\label|\{table|box|footnotesize", "".join(bare))
    for text in (marked, "\n".join(bare)):
        check_latex(text)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles(tmp_path):
    body = tables.render(table(), "latex")
    head = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
    page = head + "%s\\end{document}\n"
    (tmp_path / "table.tex").write_text(page % body)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_html():
    text = tables.render(table(), "html")
    check_html(text)
    odd = tables.render(tables.build(frame([row("<script>&", 0.1, "a&b", 0, acc=0.5)])), "html")
    assert "<script>" not in odd
    assert "&lt;script&gt;&amp;" in odd
    assert render.fragment(table()) in text


def test_the_legend_explains_what_occurs_and_nothing_else():
    text = tables.render(table(), "markdown")
    for sign in ("·", "✗", "⋈", "∞", "⊘", "–", "n/a", "†", "‡"):
        assert f"- {sign}: " in text
    assert "Sees: No defense: nothing; ANP: model, clean;" in text
    plain = tables.build(frame([row("badnets", 0.1, "anp", 0, acc=0.5, asr=0.5)]))
    assert tables.render(plain, "markdown").splitlines()[-2:] == [
        "- Rates in percent.",
        "- Sees: ANP: model, clean.",
    ]
