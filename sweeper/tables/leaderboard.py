"""The parts of a site that show points: leaderboards, and the rows of a method over all sweeps."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweeper.core.names import short
from sweeper.core.text import slug
from sweeper.tables import fair
from sweeper.tables.boards import Board, Shown, Standing
from sweeper.tables.elements import Child, Html, grid, joined, tag
from sweeper.tables.layout import STATES, head, name, word
from sweeper.tables.render import SIGNS
from sweeper.tables.titles import titled

_MEASURES = ("acc", "asr", "tpr", "fpr")
"""What the page of a method shows."""
_SAID = {
    "partial": "some seeds did not end well",
    "untaken": "in at least one seed the victim carries no backdoor",
}
_UNRANKED = {
    "reference": "the reference: no defense",
    "oracle": "an oracle: chosen with test data or told of the attack",
    "reached": "reached beyond what a defense may see",
    "few": "has a value in fewer than half of the settings",
}
"""Why a defense has no rank -> in words; the key stands beside its name."""


def units(shown: str | None = None) -> str:
    """Return what numbers are, and what the signs beside them say.

    Args:
        shown: The markup they stand in, to be told of its signs alone; None: of all.
    """
    said = {
        SIGNS[sign]: text
        for sign, text in {**STATES, **_SAID}.items()
        if shown is None or html.escape(text) in shown
    }
    signs = "; ".join(f"{sign} {text}" for sign, text in said.items())
    return f"Rates are in percent.{f' {signs}.' * bool(said)}"


def called(kind: str, label: str, method: str) -> str:
    """Return what people read for a method: the short title of one that stands by its name."""
    return short(kind, method) if label == method else label


def method_path(kind: str, name: str) -> str:
    """Return where the page of a method lies in the site."""
    return f"methods/{kind}-{slug(name)}.html"


# Leaderboards


def body(boards: Sequence[Board]) -> list[Child]:
    """Return the leaderboards, and the choice between them."""
    names = _headings(boards)
    ids = [f"board-{slug(name)}" for name in names]
    options = [tag("option", name, value=id_) for id_, name in zip(ids, names, strict=True)]
    choice = tag("label", "Leaderboard", tag("select", options, id="choice"))
    return [
        tag("form", choice, id="controls", hidden=True, aria_label="Which leaderboard to show"),
        [_board(*one) for one in zip(boards, names, ids, strict=True)],
    ]


def _headings(boards: Sequence[Board]) -> list[str]:
    """What the boards are called; the sweeps are named where there would be two of one name."""

    def plain(board: Board) -> str:
        budget = f"{word('clean_budget', board.budget)}" if board.budget else "no"
        detection = " (detection)" * (board.measures[0] != "asr")
        return f"{board.dataset}, {board.model}, {budget} clean samples{detection}"

    names = [plain(board) for board in boards]
    return [
        f"{name} ({', '.join(board.sweeps)})" if names.count(name) > 1 else name
        for name, board in zip(names, boards, strict=True)
    ]


def _board(board: Board, heading: str, id_: str) -> Html:
    heads = [head(m, board.score) for m in board.measures]
    many = len({target for _, _, target in board.settings}) > 1
    read = titled("attack", {str(attack): None for attack, _, _ in board.settings})
    settings = [_setting(setting, read, many) for setting in board.settings]
    top = tag(
        "tr",
        tag("th", "defense", scope="col", rowspan=2),
        tag("th", "sees", scope="col", rowspan=2, class_="text"),
        tag("th", "rank", scope="col", rowspan=2),
        tag("th", "mean", scope="colgroup", colspan=len(heads)),
        tag("th", "settings", scope="col", rowspan=2),
        [tag("th", text, scope="colgroup", colspan=len(heads)) for text in settings],
    )
    below = tag("tr", [tag("th", h, scope="col") for h in heads * (1 + len(settings))])
    whole = max((one.counted for one in board.standings), default=0)
    lines = [_line(board, standing, whole) for standing in board.standings]
    table = tag("table", tag("thead", top, below), tag("tbody", lines), class_="list board")
    some = (
        "A defense has no mean (–) where it has no value in some setting."
        if any(one.counted < whole for one in board.standings)
        else ""
    )
    sweeps = [tag("a", s, href=f"sweeps/{s}/index.html") for s in board.sweeps]
    return tag(
        "section",
        tag("h2", heading),
        tag(
            "p", "From ", [joined(", " * bool(n), s) for n, s in enumerate(sweeps)], class_="kicker"
        ),
        tag("p", _ranked(board), class_="note"),
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=heading),
        [tag("p", note, class_="note") for note in (units(table), some, *board.notes) if note],
        id=id_,
        class_="choice",
    )


def _setting(setting: tuple[Any, ...], read: Mapping[str, str], target: bool) -> str:
    attack, rate, label = setting
    words = [read.get(str(attack), str(attack))] + [word("poison_rate", rate)] * bool(rate)
    return ", ".join([" ".join(words), *[f"target {label}"] * target])


def _ranked(board: Board) -> str:
    """How the defenses were ranked, or why they were not."""
    measure = head(board.measures[0], board.score)
    if board.ranks is None:
        return f"Not ranked: {board.why}."
    text = (
        f"Ranked by {measure} over {board.ranks.blocks} settings; average ranks closer than "
        f"{board.ranks.difference:.2f} may be chance (Nemenyi, 5 %)."
    )
    if board.ranks.left_out:
        out = ", ".join(board.ranks.left_out)
        text += f" Left out, as they have a value in fewer than half of the settings: {out}."
    if board.ranks.guessing:
        last = ", ".join(board.ranks.guessing)
        text += f" Lost too much ACC in some setting, and so last there: {last}."
    return text


def _line(board: Board, standing: Standing, whole: int) -> Html:
    label = called("defense", standing.defense, standing.name)
    link = tag("a", label, href=method_path("defense", standing.name))
    cells: list[Child] = [
        tag("td", standing.sees or "–", class_="text"),
        tag("td", tag("strong", f"{standing.rank:.2f}") if standing.rank else "–"),
        [tag("td", _number(standing.means[m])) for m in board.measures],
        tag("td", f"{standing.counted} of {whole}"),
    ]
    for setting in board.settings:
        point = board.points.get((standing.defense, *setting))
        cells += [_entry(point, m) for m in board.measures]
    why = tag("small", f" {standing.why}", title=_UNRANKED[standing.why]) if standing.why else None
    return tag("tr", tag("th", link, why, scope="row"), cells)


def _number(value: float) -> str:
    return "–" if value != value else f"{100 * value:.1f}"


def _entry(point: Mapping[str, Any] | None, measure: str) -> Html:
    """A cell: the mean over the seeds with its signs, or the sign of its state."""
    state = str(point["state"]) if point else "missing"
    if point and state == "ok":
        value = float(point[measure])
        state = "ok" if value == value else "undefined"
        if point["blind"] and measure in fair.TRIGGERED:
            state = "unknown"
        signs = [sign for sign in ("partial", "untaken") if point[sign]]
        if state == "ok":
            said = "; ".join(_SAID[sign] for sign in signs)
            text = _number(value) + "".join(SIGNS[sign] for sign in signs)
            return tag("td", text, title=said or None)
    return tag("td", SIGNS[state], title=STATES[state], class_="state")


# A method


def method_page(
    kind: str, method: str, sweeps: Iterable[Shown], described: Iterable[Child]
) -> list[Child]:
    """Return the page of a method: what is said of it, and its numbers in every sweep.

    Args:
        kind: attack | defense.
        method: Its name.
        sweeps: All of the site.
        described: What stands before the numbers.
    """
    other = "defense" if kind == "attack" else "attack"
    axes = ("dataset", "model", other, "poison_rate", "target", "clean_budget")
    lines: list[list[Child]] = []
    for sweep in sweeps:
        frame = sweep.frame
        labels = set(frame.loc[frame[f"{kind}_name"].fillna(frame[kind]) == method, kind])
        link = tag("a", sweep.name, href=f"../sweeps/{sweep.name}/index.html")
        for point in sweep.points[sweep.points[kind].isin(labels)].to_dict("records"):
            record = {str(key): value for key, value in point.items()}
            words = [str(record[kind]), *(_word(axis, record[axis]) for axis in axes)]
            entries = [_entry(record, measure) for measure in _MEASURES]
            lines.append([link, *words, str(record["runs"]), *entries])
    heads = ["sweep", "as", *map(name, axes), "seeds", *(head(m) for m in _MEASURES)]
    table = grid(heads, lines)
    return [*described, tag("h2", "Numbers"), table, tag("p", units(table), class_="note")]


def _word(axis: str, value: Any) -> str:
    return "–" if value != value else word(axis, value)
