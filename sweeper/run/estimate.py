"""What a sweep will take before it starts, and what it took when it has run: time, cores, GPUs."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sweeper.core import advice, machine
from sweeper.core.machine import cores
from sweeper.core.types import Cell
from sweeper.plan.matrix import shape_of
from sweeper.plan.sweep import SHAPES, Shape
from sweeper.run import calibrate, costs, record
from sweeper.run.costs import Book, Sorts
from sweeper.run.ending import Watcher
from sweeper.run.job import Job
from sweeper.run.progress import Progress
from sweeper.run.walk import Walk
from sweeper.run.work import Result
from sweeper.store.artifacts import DamagedError

Room = Callable[[Shape], int]
"""How many cells of a shape fit where they run, with no other beside them."""


def sharing(cells: Mapping[str, Cell], defended: Iterable[str]) -> Counter[str]:
    """Victim, state or stage -> how many of these defense cells hang on it."""
    walk, alike = Walk(cells, []), defaultdict[tuple[str, ...], list[str]](list)
    for key in defended:
        alike[cells[key].parents].append(key)
    users: Counter[str] = Counter()
    for keys in alike.values():
        for ancestor in walk.ancestors(keys[0]):
            users[ancestor.key] += len(keys)
    return users


@dataclass(frozen=True)
class Estimate:
    """What the cells to run will take."""

    device: str
    """Where costs were measured; empty where nothing was."""
    parallel: int
    """Cells at once, at most."""
    cell_seconds: float
    """Of all cells to run whose cost is known, added up."""
    wall_seconds: float
    """Until the last of them ends."""
    core_hours: float
    """CPU cores held, in hours."""
    gpu_hours: float
    """Likewise GPUs."""
    saved_seconds: float
    """What the whole sweep would take beyond that if every defense cell made its own victim."""
    cells_measured: int
    """Cells to run whose cost is that of cells measured on the device."""
    cells_rough: int
    """Those whose cost is only roughly known."""
    cells_unknown: int
    """Those left out of all sums."""


def estimate(job: Job, book: Book, parallel: int, room: Room | None = None) -> Estimate:
    """Add up what the cells to run will take.

    The wall time is the least there can be: that of the longest chain of cells, of all cells
    `parallel` at a time, or until the busier of CPUs and GPUs is done. It is assumed that cells of
    different shapes fill the machine beside each other, so that neither of the two waits for cells
    that only the other has room for.

    Args:
        job: The sweep.
        book: From `costs.book`, with a calibration or not.
        parallel: Cells at once, at most.
        room: How many cells of a shape fit; None: `parallel` of each.
    """
    plan, todo, sorts = job.plan, set(job.todo), Sorts(job.plan)
    seconds: dict[str, float] = {}
    sure: Counter[str] = Counter()
    ends: dict[str, float] = {}
    by_shape = dict.fromkeys(SHAPES, 0.0)
    for key, cell in plan.cells.items():
        cost = book.seconds(sorts.of(cell))
        takes = seconds[key] = cost[0] if cost else 0.0
        if key in todo:
            sure["unknown" if not cost else "rough" if cost[1] else "measured"] += 1
            before = max([ends.get(parent, 0.0) for parent in cell.parents], default=0.0)
            ends[key] = before + takes
            by_shape[shape_of(cell)] += takes
    held: dict[Shape, float] = defaultdict(float)
    for name, spent in by_shape.items():
        held[plan.sweep.resources.of(name)] += spent
    total = sum(held.values())
    cores = sum(spent * shape.cpus for shape, spent in held.items())
    bounds = [total / parallel, *ends.values()]
    if room:
        bounds.append(cores / max(1, room(Shape())))
        bounds.append(sum(held[shape] / max(1, room(shape)) for shape in held if shape.gpus))
    users = sharing(plan.cells, (k for k, cell in plan.cells.items() if cell.kind == "defend"))
    saved = sum((count - 1) * seconds[key] for key, count in users.items())
    return Estimate(
        device=book.device,
        parallel=parallel,
        cell_seconds=round(total, 3),
        wall_seconds=round(max(bounds), 3),
        core_hours=round(cores / 3600, 6),
        gpu_hours=round(sum(spent * shape.gpus for shape, spent in held.items()) / 3600, 6),
        saved_seconds=round(saved, 3),
        cells_measured=sure["measured"],
        cells_rough=sure["rough"],
        cells_unknown=sure["unknown"],
    )


def sentences(cost: Estimate, where: dict[str, Any] | None = None) -> list[str]:
    """An estimate as people read it, a sentence a line; empty where nothing is to run.

    Args:
        cost: The estimate.
        where: Store and data folder, as `advice.command` has them.
    """
    estimated = cost.cells_measured + cost.cells_rough
    if not estimated and not cost.cells_unknown:
        return []
    if not estimated:
        guess = advice.command("plan", where=where, calibrate=True)
        return [
            f"cost: unknown, no such victims stored from {cost.device or 'anywhere'};",
            f"      a guess after {calibrate.SECONDS:g} s of training: {guess}",
        ]
    held = f"{_short(3600 * cost.core_hours)} of core time"
    if cost.gpu_hours:
        held += f", {cost.gpu_hours:.3g} GPU-hours"
    head = "cost" if cost.cells_measured else "cost, a rough estimate"
    doubts = []
    if cost.cells_measured and cost.cells_rough:
        rough = f"{cost.cells_rough:,} of {estimated:,} cells"
        doubts.append(f"only roughly known for {rough}: none like them was measured")
    if cost.cells_unknown:
        total = estimated + cost.cells_unknown
        unknown = f"{cost.cells_unknown:,} of {total:,} cells"
        doubts.append(f"the cost of {unknown} is unknown and comes on top")
    about = "at least " if cost.cells_unknown else "about "
    return [
        f"{head}: {_short(cost.wall_seconds, about)}, {cost.parallel} cells at once; "
        f"{held} on {cost.device}",
        *(f"      {doubt}" for doubt in doubts),
    ]


def _short(seconds: float, about: str = "") -> str:
    """A length of time that is not 0: cells take some, however little."""
    return "less than 0.1 s" if seconds < 0.05 else f"{about}{spoken(seconds)}"


def known_costs(job: Job, *, calibrated: bool = False, elsewhere: bool = False) -> Book:
    """What the store knows of costs on this machine.

    Args:
        job: The sweep.
        calibrated: Whether to time the models the store knows no victim of; about 5 s.
        elsewhere: Whether the cells run on other machines: those most rows are from.
    """
    gpu = job.context.device != "cpu" and machine.cuda()
    kinds = ("cuda", "cpu") if gpu else ("cpu", "cuda")
    names = ("", "") if elsewhere else map(record.device_name, kinds)
    book = costs.book(job.store, job.plan, *names)
    if calibrated:
        calibrate.calibrate(job.plan, book, torch.device(kinds[0]), job.context)
    return book


def at_once(shape: Shape) -> int:
    """How many cells of a shape this machine runs at once."""
    by_cpu = cores() // shape.cpus
    if not shape.gpus:
        return max(1, by_cpu)
    return max(1, min(by_cpu, int(torch.cuda.device_count() / shape.gpus + 1e-6)))


def together(shapes: Iterable[Shape], room: Room) -> int:
    """How many cells of some shapes run at once, at most and at least one.

    As many that hold a GPU as fit, and on the CPUs they leave those that hold none; of several
    shapes of either sort the one that fits most often.
    """
    free, most = room(Shape()), 0
    for with_gpus in (True, False):
        if sort := [shape for shape in shapes if bool(shape.gpus) is with_gpus]:
            shape = max(sort, key=room)
            count = min(room(shape), max(0, free) // shape.cpus)
            free, most = free - count * shape.cpus, most + count
    return max(1, most)


class Bill:
    """A watcher that adds up what a run takes and what sharing saves it."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        """Begin to count.

        Args:
            job: The sweep.
            watcher: Who is told next.
        """
        self._job = job
        self._watcher = watcher
        self._began = time.monotonic()
        self._spent: dict[str, float] = {}
        self._ended: list[str] = []

    def started(self, cell: Cell, progress: Progress | None = None) -> None:
        """A cell starts."""
        self._watcher.started(cell, progress)

    def finished(self, cell: Cell, result: Result) -> None:
        """A cell ended or was blocked."""
        if not result.get("reused"):
            self._spent[cell.key] = result.get("seconds") or 0.0
            if cell.kind == "defend" and result["status"] == "ok":
                self._ended.append(cell.key)
        self._watcher.finished(cell, result)

    def put_back(self, cell: Cell) -> None:
        """A cell waits again."""
        self._watcher.put_back(cell)

    def told(self, text: str) -> None:
        """Something happened."""
        self._watcher.told(text)

    def sentence(self) -> str:
        """What the run took, for people; empty where no cell ran."""
        if not self._spent:
            return ""
        wall, cells, saved = self.sums().values()
        text = f" in {spoken(wall)}; {spoken(cells)} of cell time"
        return text + (f", sharing victims saved {spoken(saved)}" if saved else "")

    def sums(self) -> dict[str, float]:
        """The wall time, the time of all cells added up, and what sharing saved, in seconds."""
        return {
            "wall_seconds": round(time.monotonic() - self._began, 3),
            "cell_seconds": round(sum(self._spent.values()), 3),
            "saved_seconds": round(self.saved(), 3),
        }

    def saved(self) -> float:
        """Seconds beyond that if each defense cell that ended well had made its own victim."""
        users = sharing(self._job.plan.cells, self._ended)
        return sum((n - (key in self._spent)) * self._cost(key) for key, n in users.items())

    def _cost(self, key: str) -> float:
        """What a victim took, in this run or when the store got it."""
        if key in self._spent:
            return self._spent[key]
        cell = self._job.plan.cells[key]
        try:
            return float(self._job.store.meta(cell.kind, cell.key)["result"]["seconds"])
        except (DamagedError, KeyError):
            return 0.0


def spoken(seconds: float) -> str:
    """A length of time as people say it: 0.3 s, 85 s, 12 min, 3 h 05 min, 2.5 days, 3,678 days."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 0.95 else f"{seconds:.1f} s"
    if (minutes := round(seconds / 60)) < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    days = seconds / 86400
    return f"{days:,.0f} days" if days >= 9.95 else f"{days:.1f} days"
