"""How a table reads in Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from tabulate import tabulate

from sweeper.core.errors import SweepError, unknown
from sweeper.tables.footnotes import Style, footnotes, letter, number, warnings
from sweeper.tables.layout import (
    PLAIN,
    STATES,
    Column,
    Entry,
    Line,
    Table,
    caption,
    head,
    label,
    name,
)

WIDTH = 130
"""Characters a LaTeX table is wide at most; a wider one has several parts, so as to be read."""


def render(table: Table, format: str) -> str:
    """Return `table` as text in `format`, one of `FORMATS`; it ends with a line break.

    Raises:
        SweepError: There is no such format.
    """
    if format not in FORMATS:
        raise SweepError(f"--format: {unknown('format', format, FORMATS)}")
    return FORMATS[format](table)


def fragment(table: Table) -> str:
    """Return the HTML `<figure>` of `table`, to be set into a page."""
    wide = len(table.row_axes)
    levels = len(table.col_axes)
    top = []
    for level in range(levels + 1):
        cells = []
        if level == 0:
            span = f' rowspan="{levels + 1}"' if levels else ""
            cells = [
                f'<th scope="col"{span}>{_HTML.escape(name)}</th>' for name in label_heads(table)
            ]
        if level < levels:
            cells += [
                f'<th scope="colgroup" colspan="{span}">{text}</th>'
                for text, span in group_spans(table, level, _HTML)
            ]
        else:
            cells += [
                f'<th scope="col">{_HTML.escape(head(c.metric, table.score))}</th>'
                for c in table.columns
            ]
        top.append(f"<tr>{''.join(cells)}</tr>")
    body = []
    for line in table.lines:
        texts = line_texts(table, line, _HTML)
        cells = [f'<th scope="row">{text}</th>' for text in texts[:wide]]
        cells += [
            f"<td>{text}</td>" if e.state == "ok" else f'<td title="{STATES[e.state]}">{text}</td>'
            for text, e in zip(texts[wide:], line.entries, strict=True)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    lines = [
        "<figure>",
        "<table>",
        f"<caption>{_HTML.escape(caption(table))}</caption>",
        *("<thead>", *top, "</thead>"),
        *("<tbody>", *body, "</tbody>"),
        "</table>",
        "<figcaption>",
        *(f"<p>{note}</p>" for note in footnotes(table, _HTML)),
        "</figcaption>",
        "</figure>",
    ]
    return "\n".join(lines) + "\n"


def _html(table: Table) -> str:
    title = _HTML.escape(caption(table) or "results")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n{fragment(table)}"
        "</body>\n</html>\n"
    )


def _markdown(table: Table) -> str:
    top = list(label_heads(table))
    for column in table.columns:
        named = [text for text in column_labels(table, column, _MARKDOWN) if text != "–"]
        top.append(" ".join([*named, head(column.metric, table.score)]))
    wide = len(table.row_axes)
    grid = tabulate(
        [line_texts(table, line, _MARKDOWN) for line in table.lines],
        headers=top,
        tablefmt="pipe",
        colalign=["left"] * wide + ["right"] * len(table.columns),
        disable_numparse=True,
    )
    title = caption(table)
    above = [_MARKDOWN.escape(title[0].upper() + title[1:] + "."), ""] if title else []
    return (
        "\n".join([*above, grid, "", *(f"- {note}" for note in footnotes(table, _MARKDOWN))]) + "\n"
    )


def _csv(table: Table) -> str:
    """Return fractions in full precision; constants are columns, and a state stands as its name.

    What a reader must be warned of is a last column, the same in all lines.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [axis for axis, _ in table.constants] + list(table.row_axes)
    untaken = ["untaken"] * any(e.untaken for line in table.lines for e in line.entries)
    notes = [" ".join(warnings(table))] * bool(warnings(table))
    for column in table.columns:
        stem = " ".join([*map(_word, column.groups), column.metric])
        parts = ["mean", "sd", "n", *untaken]
        parts += ["published", "source"] if table.sources else []
        parts += ["measured", "measured on"] if table.measured else []
        names += [f"{stem} {part}" for part in parts]
    writer.writerow(names + ["notes"] * len(notes))
    constants = [_word(value) for _, value in table.constants]
    for line in table.lines:
        cells = constants + [_word(value) for value in line.labels]
        for e in line.entries:
            value = (repr(e.mean), repr(e.sd)) if e.state == "ok" else (e.state, e.state)
            cells += [*value, str(e.n), *[str(e.untaken)] * len(untaken)]
            for sources, found in ((table.sources, e.published), (table.measured, e.measured)):
                if sources:
                    said = "; ".join(sources[i] for i in found.sources) if found else "null"
                    cells += [repr(found.value) if found else "null", said]
        writer.writerow(cells + notes)
    return out.getvalue()


def _latex(table: Table) -> str:
    """Return a `table` environment for each part of the columns that fits a page; see `WIDTH`.

    A bare table is its `tabular` alone, in one part, to be set into an environment of one's own.
    """
    if table.bare:
        lines = [r"% needs \usepackage{booktabs}", *_tabular(table, 0, len(table.columns))]
        return "\n".join(lines) + "\n"
    parts = _parts(table)
    kind = "table*" if table.starred else "table"
    lines = [r"% needs \usepackage{booktabs,graphicx}"]
    for place, (start, end) in enumerate(parts, 1):
        several = f" ({place} of {len(parts)})" * (len(parts) > 1)
        mark = table.tex_label and table.tex_label + f"-{place}" * (place > 1)
        notes = footnotes(table, _LATEX) if place == len(parts) else []
        *body, _ = _tabular(table, start, end)
        lines += [
            rf"\begin{{{kind}}}",
            r"\centering",
            rf"\caption{{{_LATEX.escape(caption(table) + several)}}}",
            *[rf"\label{{{mark}}}"] * bool(mark),
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *body,
            r"\end{tabular}}",
            *(rf"\par\smallskip{{\footnotesize {note}\par}}" for note in notes),
            rf"\end{{{kind}}}",
        ]
    return "\n".join(lines) + "\n"


def _tabular(table: Table, start: int, end: int) -> list[str]:
    """Return the lines of a `tabular` of the columns from `start` to `end`."""
    wide = len(table.row_axes)
    part = replace(table, columns=table.columns[start:end])
    body = []
    for line in table.lines:
        texts = line_texts(table, line, _LATEX)
        kept = [*texts[:wide], *texts[wide + start : wide + end]]
        body.append(" & ".join(kept) + r" \\")
    return [
        rf"\begin{{tabular}}{{{'l' * wide}{'r' * len(part.columns)}}}",
        *(r"\toprule", *_latex_head(part), r"\midrule", *body, r"\bottomrule"),
        r"\end{tabular}",
    ]


def _latex_head(table: Table) -> list[str]:
    """Return the lines above the body: the groups with their rules, then the metrics."""
    wide = len(table.row_axes)
    top = []
    for level in range(len(table.col_axes)):
        cells, rules, at = [""] * wide, [], wide + 1
        for text, span in group_spans(table, level, _LATEX):
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{text}}}")
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
            at += span
        top += [" & ".join(cells).strip() + r" \\", " ".join(rules)]
    last = [*label_heads(table), *(head(column.metric, table.score) for column in table.columns)]
    return [*top, " & ".join(_LATEX.escape(text) for text in last) + r" \\"]


def _parts(table: Table) -> list[tuple[int, int]]:
    """Return the columns (from, to) of each part: as many outermost groups as `WIDTH` takes."""
    wide = len(table.row_axes)
    grid = [line_texts(table, line, _MARKDOWN) for line in table.lines]
    heads = [*label_heads(table), *(head(column.metric, table.score) for column in table.columns)]
    widths = [max(map(len, column)) + 2 for column in zip(heads, *grid, strict=True)]
    parts, start, used = [], 0, sum(widths[:wide])
    spans = [span for _, span in group_spans(table, 0, _MARKDOWN)] if table.col_axes else []
    end = 0
    for span in spans or [1] * len(table.columns):
        needed = sum(widths[wide + end : wide + end + span])
        if end > start and used + needed > WIDTH:
            parts.append((start, end))
            start, used = end, sum(widths[:wide])
        end, used = end + span, used + needed
    return [*parts, (start, end)]


def line_texts(table: Table, line: Line, style: Style) -> list[str]:
    """Return the labels and the entries of a line as text."""
    texts = [
        style.escape(label(table, axis, value))
        for axis, value in zip(table.row_axes, line.labels, strict=True)
    ]
    return texts + [
        _entry(table, column, e, style)
        for column, e in zip(table.columns, line.entries, strict=True)
    ]


def _entry(table: Table, column: Column, e: Entry, style: Style) -> str:
    """Return an entry as text, beside what others found for it."""
    signs = style.signs
    scale = 1 if column.metric in PLAIN else 100
    if e.state == "ok":
        text = f"{scale * e.mean:.1f}"
        if e.n > 1:
            text += f" {signs['pm']} {scale * e.sd:.1f}"
        some = signs["untaken"] if e.untaken else ""
        if len(table.seeds) > 1 and 0 < e.untaken < e.n:
            text, some = f"{text} ({e.n}, {e.untaken}{some})", ""
        elif len(table.seeds) > 1:
            text += f" ({e.n})"
        text = style.bold(text) if e.best else text
        text += (signs["partial"] if e.partial else "") + some
    else:
        text = signs[e.state]
    first = e.published or e.measured
    if first is None:
        return text
    parts, digits = [], 1 if scale == 1 else 2
    for found, mark in ((e.published, letter), (e.measured, number)):
        if found:
            marks = "".join(map(mark, sorted(found.sources)))
            parts.append(f"{scale * found.value:.{digits}f} [{marks}]")
    parts += [text] * table.ours
    if e.state == "ok":
        parts.append(f"{round(scale * (e.mean - first.value), 1) + 0.0:+.1f}")  # never -0.0
    return " / ".join(parts) + (signs["outside"] if e.outside else "")


def label_heads(table: Table) -> list[str]:
    """Return the heads of the label columns."""
    return [name(axis) for axis in table.row_axes]


def column_labels(table: Table, column: Column, style: Style) -> list[str]:
    """Return the labels of a column's groups as text."""
    pairs = zip(table.col_axes, column.groups, strict=True)
    return [style.escape(label(table, axis, value)) for axis, value in pairs]


def group_spans(table: Table, level: int, style: Style) -> list[tuple[str, int]]:
    """Return the text and the width of each group of columns at one level of the head."""
    runs = groupby(table.columns, key=lambda column: column.groups[: level + 1])
    spans = [list(run) for _, run in runs]
    return [(column_labels(table, span[0], style)[level], len(span)) for span in spans]


def _word(value: Any) -> str:
    """Return a label as a machine reads it."""
    return "null" if value is None else str(value)


SIGNS = {
    "missing": "·",
    "failed": "✗",
    "timeout": "⋈",
    "diverged": "∞",
    "blocked": "⊘",
    "not_applicable": "–",
    "undefined": "n/a",
    "unknown": "?",
    "mixed": "≋",
    "outside": "≠",
    "partial": "†",
    "untaken": "°",
    "guessing": "↓",
    "oracle": "‡",
    "reached": "§",
    "pm": "±",
}
_TEX_SIGNS = {
    **SIGNS,
    "missing": r"$\cdot$",
    "failed": r"$\times$",
    "timeout": r"$\bowtie$",
    "diverged": r"$\infty$",
    "blocked": r"$\oslash$",
    "not_applicable": "--",
    "mixed": r"$\approx$",
    "outside": r"$^{\neq}$",
    "partial": r"$^\dagger$",
    "untaken": r"$^\circ$",
    "oracle": r"$^\ddagger$",
    "reached": r"$^\S$",
    "pm": r"$\pm$",
}
_TEX_CODES = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "–": "--",
        "‡": r"$^\ddagger$",
        "§": r"$^\S$",
        "°": r"$^\circ$",
        "\n": " ",
    }
)
_MARKDOWN_CODES = str.maketrans({**{sign: f"\\{sign}" for sign in "\\|*`<"}, "\n": " "})

_MARKDOWN = Style(lambda text: text.translate(_MARKDOWN_CODES), "**{}**".format, SIGNS)
_LATEX = Style(lambda text: text.translate(_TEX_CODES), r"\textbf{{{}}}".format, _TEX_SIGNS)
_HTML = Style(html.escape, "<strong>{}</strong>".format, SIGNS)

CSS = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
body { color: #1a1a1a; background: #fff; }
figure { margin: 0; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; font-weight: 600; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th[scope=row], th[rowspan] { text-align: left; font-weight: 400; }
th[scope=colgroup] { text-align: center; border-bottom: 1px solid #999; }
thead { border-top: 2px solid #333; border-bottom: 1px solid #333; }
tbody { border-bottom: 2px solid #333; }
figcaption p { margin: .4rem 0; font-size: .9em; max-width: 60rem; }
"""
"""The style of the page; whoever embeds a `fragment` may set it too."""

FORMATS: Mapping[str, Callable[[Table], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "html": _html,
}
"""The formats of `render`."""
