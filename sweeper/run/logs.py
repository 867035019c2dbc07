"""`--log`: epochs and rows for W&B, MLflow or TensorBoard, through Ray Tune's own loggers.

To them a cell is a trial: its axes are the configuration, a step is an epoch, and the last step has
the numbers of its row. They run in the driver, so that a trial of ours that runs several cells is
as many of theirs, and that no worker waits for them.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import METRICS
from sweeper.core.text import last_line
from sweeper.core.types import Cell
from sweeper.run.ending import Watcher
from sweeper.run.job import Job
from sweeper.run.progress import Epoch, Progress, Relayed, title
from sweeper.run.work import Result

FOLDER = "sweeps-logs"
"""Where TensorBoard's files lie, and W&B's own, here."""
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboardX"}
"""What can be named -> the package it needs; extras of these names install it."""
SECONDS = 1.0
"""Between two looks at how far the cells are."""


def require(names: Collection[str], executor: str) -> None:
    """See that loggers of these names can work.

    Raises:
        SweepError: There is none of such a name, its package is not installed, or it needs Ray.
    """
    for name in names:
        if name not in PACKAGES:
            raise SweepError(f"--log: {unknown('logger', name, PACKAGES)}")
        lacking = [package for package in ("ray", PACKAGES[name]) if not find_spec(package)]
        if lacking:
            raise SweepError(
                f"--log {name}: {' and '.join(lacking)} is not installed here: run `pip install "
                f"'.[{name}]'` in the checkout"
            )
        if name == "wandb" and executor == "inline":
            raise SweepError(
                "--log wandb: Ray gives each of its runs a process, and --executor inline starts "
                "no Ray: leave that out, or take --log tensorboard or mlflow"
            )


def _logger(name: str, sweep: str) -> Any:
    """Tune's logger of a name, ready for the cells of a sweep."""
    from sweeper.run import rays  # noqa: F401 - sets what Ray reads at its import

    if name == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        project, mode = os.environ.get("WANDB_PROJECT"), os.environ.get("WANDB_MODE")
        place = str(Path(FOLDER).absolute())
        logger = WandbLoggerCallback(project=project or sweep, dir=place, mode=mode)
    elif name == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        logger = MLflowLoggerCallback(experiment_name=experiment or sweep)
    else:
        from ray.tune.logger import TBXLoggerCallback

        logger = TBXLoggerCallback()
    logger.setup()
    return logger


@dataclass(eq=False)
class Trial:
    """A cell as Tune's loggers ask for a trial."""

    trial_id: str
    """Of this cell in this call."""
    config: dict[str, Any]
    """What it is: its kind and axes."""
    name: str
    """For people."""
    folder: Path
    """Where what is written of it here lies."""
    experiment_dir_name: str
    """The sweep."""
    progress: Progress | None = field(default=None)
    """How far this attempt at it is."""
    told: int = 0
    """Epochs of this attempt the loggers have."""
    step: int = 0
    """Of the last thing they were told, counted over all attempts."""

    @property
    def evaluated_params(self) -> dict[str, Any]:
        """TensorBoard's hyperparameters."""
        return self.config

    @property
    def local_path(self) -> str:
        """The folder, made when a logger asks for it: not all write here."""
        self.init_local_path()
        return str(self.folder)

    def init_local_path(self) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.name


class Logs:
    """A watcher that tells loggers what happens, and passes it on."""

    def __init__(self, loggers: dict[str, Any], job: Job, watcher: Watcher) -> None:
        """Begin to log.

        Args:
            loggers: Tune's, by the names people give them; one that fails is left out.
            job: The sweep.
            watcher: Who is told next.
        """
        self._loggers = loggers
        self._job = job
        self._watcher = watcher
        self._trials: dict[str, Trial] = {}
        self._turn = threading.RLock()
        self._ended = threading.Event()

    def started(self, cell: Cell, progress: Progress | None = None) -> None:
        """A cell starts, for the first time or again."""
        with self._turn:
            trial = self._trials.get(cell.key)
            if trial is None:
                trial = self._trials[cell.key] = self._trial(cell)
                self._each("log_trial_start", trial)
            trial.progress, trial.told = progress, 0
        self._watcher.started(cell, progress)

    def finished(self, cell: Cell, result: Result) -> None:
        """A cell ended; one that was blocked has no trial."""
        with self._turn:
            if trial := self._trials.pop(cell.key, None):
                self._epochs(trial, result.get("epochs") or self._seen(cell.key, trial))
                numbers = result.get("metrics") or result
                self._step(trial, {n: v for n in METRICS if (v := numbers.get(n)) is not None})
                self._each("log_trial_end", trial, result["status"] != "ok")
        self._watcher.finished(cell, result)

    def put_back(self, cell: Cell) -> None:
        """A cell waits again: its trial goes on when it does."""
        self._watcher.put_back(cell)

    def told(self, text: str) -> None:
        """Something happened."""
        self._watcher.told(text)

    @contextlib.contextmanager
    def looking(self) -> Iterator[Logs]:
        """Log epochs as they come, from a thread of its own; at the end, wait for the loggers."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()
            for trial in self._trials.values():
                self._each("log_trial_end", trial, True)
            self._each("on_experiment_end", [])

    def _look(self) -> None:
        while not self._ended.wait(SECONDS):
            self._look_once()

    def _look_once(self) -> None:
        with self._turn:
            for key, trial in self._trials.items():
                self._epochs(trial, self._seen(key, trial))

    def _trial(self, cell: Cell) -> Trial:
        name, sweep = title(cell), self._job.plan.sweep.name
        folder = f"{re.sub(r'[^A-Za-z0-9.=+-]+', '_', name)[:150]}-{cell.key[:8]}"
        return Trial(
            trial_id=f"{self._job.context.run}-{cell.key[:16]}",
            config={"kind": cell.kind, "key": cell.key, **cell.axes},
            name=name,
            folder=Path(FOLDER, sweep, folder).absolute(),
            experiment_dir_name=sweep,
        )

    @staticmethod
    def _seen(key: str, trial: Trial) -> list[Epoch]:
        """What is known of a cell's epochs; several may share a process, and its progress."""
        progress = trial.progress
        if progress is None or (isinstance(progress, Relayed) and progress.cell.key != key):
            return []
        return progress.epochs

    def _epochs(self, trial: Trial, epochs: list[Epoch]) -> None:
        new, trial.told = epochs[trial.told :], max(trial.told, len(epochs))
        for epoch in new:
            self._step(trial, epoch)

    def _step(self, trial: Trial, numbers: Mapping[str, float]) -> None:
        trial.step += 1
        result = {"training_iteration": trial.step, **numbers}
        self._each("log_trial_result", trial.step, trial, result)

    def _each(self, method: str, *given: Any) -> None:
        """Tell every logger; a server that is away costs the logs, not the sweep."""
        for name, logger in list(self._loggers.items()):
            try:
                getattr(logger, method)(*given)
            except Exception as error:
                del self._loggers[name]
                why = last_line(str(error)) or type(error).__name__
                self._watcher.told(f"--log {name}: {why}: the sweep goes on without it")


@contextlib.contextmanager
def logged(
    names: Collection[str],
    job: Job,
    watcher: Watcher,
    make: Callable[[str, str], Any] = _logger,
) -> Iterator[Watcher]:
    """What a run tells of its cells, told to loggers too.

    Args:
        names: Of the loggers; none changes nothing.
        job: The sweep.
        watcher: Who looks on.
        make: Makes a logger of a name for a sweep.

    Raises:
        SweepError: One of them cannot begin: no key for its server.
    """
    loggers = {}
    for name in dict.fromkeys(names):
        try:
            loggers[name] = make(name, job.plan.sweep.name)
        except Exception as error:
            why = last_line(str(error)) or type(error).__name__
            raise SweepError(f"--log {name}: it cannot begin: {why}") from None
    if not loggers:
        yield watcher
        return
    with Logs(loggers, job, watcher).looking() as logs:
        yield logs
