"""What Prometheus reads of a running sweep, through Ray's own exporter: a watcher like the display.

`grafana.json` beside this file draws these; `sweeper cluster grafana` prints it.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from sweeper.core.types import Cell
from sweeper.run.ending import Watcher
from sweeper.run.job import Job
from sweeper.run.progress import Progress
from sweeper.run.work import Result

SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000]
"""Upper bounds of the histogram's buckets."""


class Meter:
    """Counts what happens and passes it on to who looks on."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        """Begin to count.

        Args:
            job: The sweep.
            watcher: Who is told next.
        """
        self._watcher = watcher
        self._sweep = {"sweep": job.plan.sweep.name}
        self._at_work: set[str] = set()
        self._used: set[str] = set()
        self._left = len(job.todo)
        kinds = ("sweep", "kind")
        self._ended = Counter(
            "sweeper_cells_ended", "Cells that ended, by state", (*kinds, "status")
        )
        self._seconds = Histogram("sweeper_cell_seconds", "Seconds of a cell", SECONDS, kinds)
        self._reused = Counter(
            "sweeper_victims_reused", "Defense cells whose victim served another", ("sweep",)
        )
        self._images = Counter(
            "sweeper_images_trained", "Images the training of victims saw", ("sweep", "model")
        )
        self._speed = Gauge(
            "sweeper_images_per_second", "Of the last victim's training", ("sweep", "model")
        )
        self._running = Gauge("sweeper_cells_running", "Cells at work or with Ray", ("sweep",))
        self._waiting = Gauge("sweeper_cells_left", "Cells that have not ended", ("sweep",))
        self._show()

    def started(self, cell: Cell, progress: Progress | None = None) -> None:
        """A cell starts."""
        self._at_work.add(cell.key)
        self._show()
        self._watcher.started(cell, progress)

    def finished(self, cell: Cell, result: Result) -> None:
        """A cell ended, or was blocked."""
        self._at_work.discard(cell.key)
        self._left -= 1
        kind = {**self._sweep, "kind": cell.kind}
        self._ended.inc(1, {**kind, "status": result["status"]})
        if result["seconds"] is not None and not result.get("reused"):
            self._seconds.observe(result["seconds"], kind)
        if result.get("images") and result["seconds"]:
            model = {**self._sweep, "model": str(cell.axes["model"])}
            self._images.inc(result["images"], model)
            self._speed.set(result["images"] / result["seconds"], model)
        if cell.kind == "defend" and result["status"] == "ok":
            if cell.params["victim"] in self._used:
                self._reused.inc(1, self._sweep)
            self._used.add(cell.params["victim"])
        self._show()
        self._watcher.finished(cell, result)

    def put_back(self, cell: Cell) -> None:
        """A cell waits again."""
        self._at_work.discard(cell.key)
        self._show()
        self._watcher.put_back(cell)

    def told(self, text: str) -> None:
        """Something happened."""
        self._watcher.told(text)

    def _show(self) -> None:
        self._running.set(len(self._at_work), self._sweep)
        self._waiting.set(self._left, self._sweep)
