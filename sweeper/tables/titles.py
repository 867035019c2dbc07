"""What tables and figures call attacks and defenses: their titles, where that tells them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from sweeper.core import names
from sweeper.tables import fair

SHORT = 14
"""Characters of a title that may stand beside another's in the head of a column."""


def titled(
    kind: str,
    labels: Mapping[str, str | None],
    given: Mapping[str, str] | None = None,
    signs: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return what papers call the methods behind labels: `BadNets`, `FT`, `SCAn+FT`.

    A label has a title where it is a method's own name, or two of them joined by a chain; one that
    somebody chose, or that a preset made, stays. So do labels that would read alike.

    Args:
        kind: attack or defense.
        labels: Label -> the method behind it; None where no row says.
        given: Label -> what somebody wrote for it.
        signs: Label -> those that follow it.

    Returns:
        Label -> title, of those that have one.
    """
    given, signs = given or {}, signs or {}
    found = {label: _titled(kind, label, method) for label, method in labels.items()}
    read = {label: given.get(label, text) + signs.get(label, "") for label, text in found.items()}
    alike = Counter(text.casefold() for text in read.values())
    return {
        label: text
        for label, text in found.items()
        if text != label and label not in given and alike[read[label].casefold()] == 1
    }


def _titled(kind: str, label: str, method: str | None) -> str:
    """The title for one label; the label where it has none."""
    parts = label.split("+")
    if method not in (None, parts[-1]) or not names.exist(kind, parts):
        return label
    texts = [names.short(kind, part) for part in parts]
    short = len(texts) == 1 or all(len(text) <= SHORT for text in texts)
    return "+".join(texts) if short else label


def of(
    data: pd.DataFrame, heads: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, dict[str, str]]:
    """Return axis -> label -> what figures write for it, for attacks and defenses.

    Args:
        data: Rows, or points, with the columns `attack`, `attack_name` and so on.
        heads: What a sweep file's `table: labels` asks for; it comes first.
    """
    found = {}
    signs = dict.fromkeys(fair.oracles(data), "‡")
    for axis in names.KINDS:
        pairs = data[[axis, f"{axis}_name"]].astype(object).drop_duplicates(axis)
        labels = {
            str(label): None if pd.isna(method) else str(method)
            for label, method in pairs.itertuples(index=False, name=None)
        }
        given = (heads or {}).get(axis, {})
        read = titled(axis, labels, given, signs if axis == "defense" else {})
        found[axis] = {label: given.get(label) or read.get(label, label) for label in labels}
    return found
