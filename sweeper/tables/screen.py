"""How a table reads on a terminal: the metrics under their groups, in parts as wide as it is."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from itertools import groupby

from sweeper.tables.footnotes import Style, footnotes
from sweeper.tables.layout import Table, caption, head
from sweeper.tables.render import SIGNS, column_labels, label_heads, line_texts

GAP = "  "
_CODES = re.compile(r"\x1b\[\d*m")
_SCREEN = Style(lambda text: text.replace("\n", " "), "\x1b[1m{}\x1b[0m".format, SIGNS)


def render(table: Table, width: int) -> str:
    """Return `table` for a terminal of `width` columns; it ends with a line break.

    The columns of a group stay together; a part that is one group may be wider than the terminal.
    """
    title = caption(table)
    lines = [*textwrap.wrap(title[0].upper() + title[1:] + ".", width), ""] if title else []
    for start, end in _parts(table, width):
        lines += [*_part(table, start, end), ""]
    for note in footnotes(table, _SCREEN):
        lines += textwrap.wrap(
            note, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def _size(text: str) -> int:
    return len(_CODES.sub("", text))


def _pad(text: str, width: int, left: bool = False) -> str:
    space = " " * (width - _size(text))
    return text + space if left else space + text


def _spans(table: Table) -> list[tuple[list[str], int]]:
    """The labels and the number of columns of each innermost group."""
    if not table.col_axes:
        return [([], 1)] * len(table.columns)
    runs = [list(run) for _, run in groupby(table.columns, key=lambda column: column.groups)]
    return [(column_labels(table, run[0], _SCREEN), len(run)) for run in runs]


def _widths(table: Table) -> tuple[list[int], list[int]]:
    """The widths of the label columns and of the others, heads and groups included."""
    grid = [line_texts(table, line, _SCREEN) for line in table.lines]
    heads = [*label_heads(table), *(head(column.metric, table.score) for column in table.columns)]
    sizes = [max(map(_size, column)) for column in zip(heads, *grid, strict=True)]
    wide = len(table.row_axes)
    widths = sizes[wide:]
    at = 0
    for texts, span in _spans(table):
        lack = max(map(len, texts), default=0) - sum(widths[at : at + span]) - len(GAP) * (span - 1)
        widths[at] += max(0, lack)
        at += span
    return sizes[:wide], widths


def _parts(table: Table, width: int) -> list[tuple[int, int]]:
    """The columns (from, to) of each part: as many groups as the terminal takes."""
    side, widths = _widths(table)
    room = width - sum(side) - len(GAP) * (len(side) - 1)
    parts, start, end, used = [], 0, 0, 0
    for _, span in _spans(table):
        needed = sum(size + len(GAP) for size in widths[end : end + span])
        if end > start and used + needed > room:
            parts.append((start, end))
            start, used = end, 0
        end, used = end + span, used + needed
    return [*parts, (start, end)]


def _part(table: Table, start: int, end: int) -> list[str]:
    """The lines of one part."""
    side, widths = _widths(table)
    wide, widths = len(side), widths[start:end]

    def row(texts: Sequence[str]) -> str:
        cells = [_pad(text, size, left=True) for text, size in zip(texts, side, strict=False)]
        cells += [_pad(text, size) for text, size in zip(texts[wide:], widths, strict=True)]
        return GAP.join(cells).rstrip()

    lines = []
    for level in range(len(table.col_axes)):
        at, cells, last = 0, [" " * size for size in side], None
        for texts, span in _spans(table):
            if start <= at < end:
                first = at - start
                size = sum(widths[first : first + span]) + len(GAP) * (span - 1)
                cells.append(_pad(texts[level] if texts[: level + 1] != last else "", size))
                last = texts[: level + 1]
            at += span
        lines.append(GAP.join(cells).rstrip())
    lines.append(
        row([*label_heads(table), *(head(c.metric, table.score) for c in table.columns[start:end])])
    )
    lines.append("─" * max(map(len, lines)))
    for line in table.lines:
        texts = line_texts(table, line, _SCREEN)
        lines.append(row([*texts[:wide], *texts[wide + start : wide + end]]))
    return lines
