"""What people see while a sweep runs: the matrix filling up, or one line per cell."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeper.core.text import last_line
from sweeper.core.types import Cell
from sweeper.run.costs import Book, Sort, Sorts
from sweeper.run.estimate import spoken
from sweeper.run.job import Job
from sweeper.run.notebook import Output
from sweeper.run.progress import Progress, Relayed
from sweeper.run.work import Result

STYLE = {"ok": "green", "failed": "bold red", "timeout": "red", "diverged": "red", "blocked": "dim"}

_SHARES = {"poison_rate": "", "clean_budget": "clean "}
"""Axes that are shares -> the word before; 0 goes without saying: no attack, no clean data."""


def lives(console: Console) -> bool:
    """Whether what is shown on a console changes in place: on a terminal, or in a notebook."""
    return (console.is_terminal or console.is_jupyter) and not console.quiet


@contextlib.contextmanager
def waiting(console: Console, text: str) -> Iterator[None]:
    """Say what is waited for: on a terminal, until it is there."""
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text)
        yield


class Display:
    """A `Watcher` for people: live in a terminal or notebook, plain lines elsewhere."""

    def __init__(
        self, job: Job, console: Console, slots: int = 1, book: Book | None = None
    ) -> None:
        self.console = console
        self.total = len(job.todo)
        self.ended: Counter[str] = Counter()
        self.causes: Counter[tuple[str, str, str]] = Counter()
        self.running: dict[str, tuple[Cell, float, Progress | None]] = {}
        self.slots = slots
        self.began = time.monotonic()
        self.axes = ["attack", "defense", "stage"]
        """Axes that tell the cells of this sweep apart; the others are not said."""
        for axis in ("dataset", "model", "poison_rate", "target", "seed", "clean_budget"):
            values = {cell.axes[axis] for cell in job.plan.cells.values() if axis in cell.axes}
            if len(values - ({0} if axis in _SHARES else set())) > 1:
                self.axes.append(axis)
        self.costs = book or Book()
        self.sorts = Sorts(job.plan)
        todo = set(job.todo)
        self.left = Counter(self.sorts.of(job.plan.cells[key]) for key in todo)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.victims: dict[str, float] = {}
        self.grid: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.asr: dict[tuple[str, str], list[float]] = defaultdict(list)
        for key, cell in job.plan.cells.items():
            if cell.kind == "defend":
                self.grid[_place(cell)].append("waits" if key in todo else "stored")
        self.is_live = lives(console)
        self.live: Live | Output = Live(
            get_renderable=self._render, console=console, refresh_per_second=2, transient=True
        )
        if console.is_jupyter:
            self.live = Output(self._render, console)

    @contextlib.contextmanager
    def shown(self) -> Iterator[Display]:
        """Show it while the sweep runs; at the end, how often each failure came again."""
        if self.is_live and self.total:
            self.live.start()
        try:
            yield self
        finally:
            self.live.stop()
            for (kind, status, why), count in self.causes.items():
                if count > 1:
                    message = f"{count - 1} more {kind} cells {status} in the same way: {why}"
                    self.console.print(message, soft_wrap=True)

    def started(self, cell: Cell, progress: Progress | None = None) -> None:
        """A cell starts."""
        self.running[cell.key] = (cell, time.monotonic(), progress)

    def finished(self, cell: Cell, result: Result) -> None:
        """A cell ended or was blocked."""
        self.running.pop(cell.key, None)
        status = result["status"]
        self.ended[status] += 1
        self._count(cell, result)
        if cell.kind == "defend":
            states = self.grid[_place(cell)]
            if "waits" in states:
                states[states.index("waits")] = status
            if result.get("asr") is not None:
                self.asr[_place(cell)].append(result["asr"])
        if not self.is_live:
            self.console.print(self._line(cell, result), soft_wrap=True, highlight=False)
        elif status != "ok":
            cause = cell.kind, status, last_line(result.get("error") or "")
            self.causes[cause] += 1
            if self.causes[cause] == 1:
                self.live.console.print(self._line(cell, result), soft_wrap=True, highlight=False)

    def put_back(self, cell: Cell) -> None:
        """A cell waits again."""
        self.running.pop(cell.key, None)

    def told(self, text: str) -> None:
        """Something happened: said above what is live."""
        self.live.console.print(text, soft_wrap=True, highlight=False)

    def _count(self, cell: Cell, result: Result) -> None:
        """A cell is left no more; what it took tells what others will."""
        sort = self.sorts.of(cell)
        self.left[sort] -= 1
        seconds = result.get("seconds")
        if seconds is None or result.get("reused"):
            return
        self.seconds[cell.kind].append(seconds)
        if result["status"] == "ok":
            if cell.kind == "train":
                self.victims[cell.key] = seconds
            self.costs.add(sort, seconds, self.victims.get(cell.params.get("victim", "")))

    def _line(self, cell: Cell, result: Result) -> Text:
        """One line on a finished cell."""
        done = sum(self.ended.values())
        status = result["status"]
        text = Text(f"[{done:>{len(str(self.total))}}/{self.total}] ")
        text.append(f"{status:<8}", STYLE.get(status, ""))
        text.append(f" {cell.kind:<7} {self._words(cell)}")
        for name in ("acc", "asr"):
            if result.get(name) is not None:
                text.append(f"  {name} {100 * result[name]:.1f}")
        if result.get("seconds") is not None:
            text.append(f"  {result['seconds']:.1f} s")
        if result.get("reused"):
            text.append("  (from the store)")
        if status != "ok" and result.get("error"):
            text.append(f"  {cell.key}: {last_line(result['error'])}")
        return text

    def _render(self) -> Group:
        """The matrix, what runs now, and when it will end."""
        lines = []
        for cell, text, seconds in list(self._at_work())[: 2 * self.slots]:
            spent = "starting a process" if seconds is None else f"{seconds:.0f} s"
            words = [f"{cell.kind} {self._words(cell)}", text, spent]
            lines.append(Text(f"  {' · '.join(filter(None, words))}", style="dim"))
        for line in lines:
            line.truncate(self.console.width, overflow="ellipsis")
        states = [f"{count} {state}" for state, count in self.ended.items() if state != "ok"]
        done = f"{sum(self.ended.values())}/{self.total} cells"
        since = time.monotonic() - self.began
        left = [self._eta()] if any(self.left.values()) else []
        text = ", ".join([done, *states, f"{since:.0f} s", *left])
        return Group(self._matrix(), Text(text), *lines)

    def _at_work(self) -> Iterator[tuple[Cell, str, float | None]]:
        """The running cells, how far each is, and its seconds; None while its process starts."""
        now = time.monotonic()
        for cell, started, progress in list(self.running.values()):
            since: float | None = started
            if isinstance(progress, Relayed):
                cell, since = progress.cell, progress.since
            yield cell, progress.text if progress else "", None if since is None else now - since

    def _matrix(self) -> Table:
        """Attacks x defenses as the terminal's width allows: whole, in short, or attacks alone."""
        attacks = list(dict.fromkeys(attack for attack, _ in self.grid))
        defenses = list(dict.fromkeys(defense for _, defense in self.grid))
        side = max((len(attack) for attack in [*attacks, "ASR %"]), default=0)
        for short in (False, True):
            columns = [[self._square([(a, d)], short) for a in attacks] for d in defenses]
            least = [max(map(len, column), default=0) for column in columns]
            room = self.console.width - side - 3 * len(defenses)
            if fitting := _widths(defenses, least, room):
                least = fitting
                break
        else:
            defenses = ["all defenses"]
            columns = [[self._square([p for p in self.grid if p[0] == a], False) for a in attacks]]
            least = [len(defenses[0])]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
        table.add_column("ASR %", no_wrap=True)
        for defense, width in zip(defenses, least, strict=True):
            table.add_column(Text(_folded(defense, width)), justify="right", min_width=width)
        for attack, *squares in zip(attacks, *columns, strict=True):
            table.add_row(Text(attack), *squares)
        return table

    def _square(self, places: list[tuple[str, str]], short: bool) -> Text:
        """Mean ASR, how many cells have ended while some wait, and how many went wrong."""
        states = [state for place in places for state in self.grid.get(place, ())]
        if not states:
            return Text("-", style="dim")
        waiting = states.count("waits")
        bad = Counter(state for state in states if state in STYLE and state != "ok")
        asr = [value for place in places for value in self.asr[place]]
        mean = f"{100 * sum(asr) / len(asr):.1f}" if asr else ""
        progress = f"{len(states) - waiting}/{len(states)}" if waiting else ""
        if not (mean or progress or bad):
            progress = "stored" if "stored" in states else "ok"
        parts = [(progress or mean, "")] if short else [(mean, ""), (progress, "dim")]
        parts += [("!" if short else f"{n} {state}", STYLE[state]) for state, n in bad.items()]
        return Text("" if short else " ").join(Text(*part) for part in parts if part[0])

    def _eta(self) -> str:
        """When it ends: no sooner than the running cell that has most before it."""
        costs = {sort: self._expected(sort) for sort, count in self.left.items() if count > 0}
        known = {sort: cost for sort, cost in costs.items() if cost is not None}
        if len(known) < len(costs):
            return "measuring"
        work, longest = sum(self.left[sort] * cost for sort, cost in known.items()), 0.0
        for cell, _, seconds in self._at_work():
            cost = known.get(self.sorts.of(cell), 0.0)
            spent = min(seconds or 0.0, cost)
            work, longest = work - spent, max(longest, cost - spent)
        left = max(work / self.slots, longest)
        if left < 0.05 and self.running:
            return "longer than such cells took"
        return f"about {spoken(left)} left"

    def _expected(self, sort: Sort) -> float | None:
        """Seconds of a cell: what its sort took, else the mean of its kind so far, else of all."""
        cost = self.costs.seconds(sort)
        if cost and not cost[1]:
            return cost[0]
        costs = self.seconds.get(sort.kind) or [s for some in self.seconds.values() for s in some]
        return sum(costs) / len(costs) if costs else None

    def _words(self, cell: Cell) -> str:
        """A cell's axes in the order people say them."""
        words = []
        for axis, value in cell.axes.items():
            if axis not in self.axes or (axis in _SHARES and not value):
                continue
            if axis in _SHARES:
                share = axis == "poison_rate" or value < 1
                words.append(_SHARES[axis] + (f"{100 * value:g}%" if share else f"{value:g}"))
            elif axis in ("seed", "target"):
                words.append(f"{axis} {value}")
            else:
                words.append(str(value))
        return " ".join(words)


def _pieces(name: str) -> list[str]:
    """A name in pieces that may stand on lines of their own."""
    return re.findall(r"[^-+:._]*[-+:._]*", name)[:-1] or [name]


class Lines:
    """A `Watcher` for machines: what happens as JSON values, one at a time."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell

    def started(self, cell: Cell, progress: Progress | None = None) -> None:
        """A cell starts."""
        self._tell({"event": "start", "key": cell.key, "kind": cell.kind, **cell.axes})

    def finished(self, cell: Cell, result: Result) -> None:
        """A cell ended or was blocked."""
        about = {"event": "cell", "key": cell.key, "kind": cell.kind, **cell.axes}
        self._tell({**about, **{name: result.get(name) for name in FIELDS}})

    def put_back(self, cell: Cell) -> None:
        """A cell waits again."""
        self._tell({"event": "again", "key": cell.key, "kind": cell.kind, **cell.axes})

    def told(self, text: str) -> None:
        """Something happened."""
        self._tell({"event": "note", "text": text})


FIELDS = ("status", "acc", "asr", "seconds", "reused", "error")
"""What `Lines` says of a cell that ended; null where it has none."""


def _widths(names: list[str], least: list[int], room: int) -> list[int]:
    """Widths for columns with these heads, whole where there is room; empty where they do not fit.

    Args:
        names: The heads.
        least: What each column needs below its head.
        room: For all of them.
    """
    widths = [max(w, *map(len, _pieces(name))) for name, w in zip(names, least, strict=True)]
    lack = [max(0, len(name) - w) for name, w in zip(names, widths, strict=True)]
    for place in sorted(range(len(names)), key=lack.__getitem__):
        if sum(widths) + lack[place] <= room:
            widths[place] += lack[place]
    return widths if sum(widths) <= room else []


def _folded(name: str, width: int) -> str:
    """A name in lines of at most this width, where its pieces allow."""
    lines = [""]
    for piece in _pieces(name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _place(cell: Cell) -> tuple[str, str]:
    return str(cell.axes["attack"]), str(cell.axes["defense"])
