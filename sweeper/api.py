"""Sweeps from Python, for notebooks; the commands call the same functions. Importing it is cheap.

import sweeper

sweep = sweeper.Sweep.from_yaml("quickstart", ["seeds=3"])
sweep.run()
rows = sweep.results()
victim = sweeper.load_victim(rows["victim"][0])
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.core import advice, search
from sweeper.core.errors import SweepError, one_key
from sweeper.core.uris import keyless

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from sweeper.models.base import Net
    from sweeper.plan.sweep import Shape
    from sweeper.plan.sweep import Sweep as Declared
    from sweeper.run.driver import Walker
    from sweeper.run.estimate import Room
    from sweeper.run.job import Job
    from sweeper.run.material import Context

STORE = "sweeps-store"
"""The store where none is named: a folder here."""
EXECUTORS = ("ray", "inline")


def place(store: str | Path | None = None) -> str:
    """A store as every process finds it, wherever it was started.

    Args:
        store: A folder or URI; default SWEEPER_STORE, or `STORE`.

    Raises:
        SweepError: It is a URI that holds keys.
    """
    named = keyless("--store", str(store or os.environ.get("SWEEPER_STORE") or STORE))
    return named if "://" in named else str(Path(named).expanduser().absolute())


@dataclass(frozen=True)
class Sweep:
    """A sweep that can be planned, run and read; made by `from_yaml` or `from_values`."""

    declared: Declared
    """What its file says, validated."""

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
        """Read a sweep file.

        Args:
            path: A file, or the name of a shipped sweep.
            overrides: `key=value` each, as after `--set`.

        Raises:
            SweepError: Every mistake of the file, one line each.
        """
        from sweeper.plan import spec

        return cls(spec.load(str(path), overrides))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Sweep:
        """Take a sweep as a mapping with the keys of a sweep file.

        Raises:
            SweepError: Every mistake, one line each.
        """
        from sweeper.plan import spec

        return cls(spec.parse(values))

    def context(
        self,
        store: str | Path | None = None,
        data: str | Path | None = None,
        *,
        here: bool = True,
    ) -> Context:
        """Where its cells run, and under what those that train do.

        Args:
            store: Where victims and rows are kept; default SWEEPER_STORE, or `STORE`.
            data: Folder of the data sets; default SWEEPER_DATA.
            here: Whether this process computes, and must have the GPU that training asks for.

        Raises:
            SweepError: It has none, or a place is a URI that holds keys.
        """
        from sweeper.engine.isolation import lacking
        from sweeper.run.driver import new_run
        from sweeper.run.material import Context

        shape = self.declared.resources.of("train")
        keyless("--data", str(data or os.environ.get("SWEEPER_DATA", "")))
        if here and (lack := lacking(shape.device)):
            raise SweepError(lack)
        return Context(
            store=place(store),
            sweep=self.declared.name,
            run=new_run(),
            data=str(Path(data).expanduser().absolute()) if data else None,
            code=search.sent() or str(Path.cwd()),
            threads=shape.cpus,
            device=shape.device,
            gpus=shape.gpus,
            timeout=self.declared.timeout,
        )

    def plan(
        self,
        *,
        store: str | Path | None = None,
        data: str | Path | None = None,
        calibrate: bool = False,
    ) -> dict[str, Any]:
        """What a run would do: cells by kind, how many are done, what sharing saves, the cost.

        Args:
            store: Where victims and rows are kept; default SWEEPER_STORE, or `STORE`.
            data: Folder of the data sets; default SWEEPER_DATA.
            calibrate: Whether to train for about 5 s to learn costs the store does not know.

        Returns:
            Counts, and `estimate`: the fields of `sweeper.run.estimate.Estimate`.

        Raises:
            SweepError: Data, models and budgets do not fit together.
        """
        from sweeper.run import driver, estimate

        job = driver.prepare(self.declared, self.context(store, data, here=False), need_data=False)
        book = estimate.known_costs(job, calibrated=calibrate)
        parallel = estimate.together(job.shapes, estimate.at_once)
        cost = estimate.estimate(job, book, parallel, estimate.at_once)
        return {**job.summary(), "estimate": dataclasses.asdict(cost)}

    def run(
        self,
        *,
        store: str | Path | None = None,
        data: str | Path | None = None,
        executor: str = "ray",
        address: str | None = None,
        fresh: Sequence[str] = (),
        quiet: bool = False,
        tell: Callable[[dict[str, Any]], None] | None = None,
        log: Sequence[str] = (),
    ) -> dict[str, int]:
        """Run what is missing.

        Args:
            store: Where victims and rows are kept; default SWEEPER_STORE, or `STORE`.
            data: Folder of the data sets; default SWEEPER_DATA.
            executor: ray, or inline: in this process, one cell at a time.
            address: A running Ray cluster; default: this machine.
            fresh: What is run again though it is done, with all below: see `sweeper run --fresh`.
            quiet: Say nothing on the way.
            tell: Is given what happens as JSON values, in place of people: `sweeper run --json`.
            log: Who keeps epochs and rows beside the store: wandb, mlflow, tensorboard.

        Returns:
            How many cells of this call ended in each state, as `left` how many a Ctrl-C left, and
            as `unfinished` how many rows of the sweep are now failed, timed out, blocked or
            missing, whoever left them so; neither where there are none.

        Raises:
            SweepError: An argument, or the sweep's parts, do not fit together, or no cell applies.
        """
        _require_executor(executor)
        from sweeper.run import driver, estimate, logs, summary
        from sweeper.run.display import Display, Lines

        logs.require(log, executor)
        job = driver.prepare(self.declared, self.context(store, data, here=False))
        _require_work(job, executor)
        console = _console(quiet or bool(tell))
        facts = summary.opened(job, console, fresh)
        book = estimate.known_costs(job, elsewhere=bool(address))
        walker: Walker = driver.inline
        room: Room = estimate.at_once
        if executor == "ray" and job.todo and address:
            walker, room = _with_ray(job, address, console, bool(log))
        slots = estimate.together(job.shapes, room) if executor == "ray" else 1
        cost = estimate.estimate(job, book, slots, room)
        for line in estimate.sentences(cost, summary.place(job.context)):
            console.print(line, soft_wrap=True)  # a terminal's own folds are not copied
        if tell:
            tell({"event": "plan", **facts, "estimate": dataclasses.asdict(cost)})
        if executor == "ray" and job.todo and not address:
            walker, room = _with_ray(job, address, console, bool(log))
            slots = estimate.together(job.shapes, room)
        display = nullcontext(Lines(tell)) if tell else Display(job, console, slots, book).shown()
        with display as shown, logs.logged(log if job.todo else (), job, shown) as watcher:
            bill = estimate.Bill(job, watcher)
            counts = dict(driver.execute(job, walker, bill))
        return summary.ended(job, counts, bill, console, tell)

    def results(
        self, *, store: str | Path | None = None, data: str | Path | None = None
    ) -> pd.DataFrame:
        """The rows of this sweep's matrix, one a defense cell that was run; rates in [0, 1].

        Args:
            store: Where they are kept; default SWEEPER_STORE, or `STORE`.
            data: Folder of the data sets, which a sweep that is not as it was run may need; default
                SWEEPER_DATA.

        Raises:
            SweepError: The sweep has not been run into this store, or is not as it was run and its
                data are not known.
        """
        from sweeper.run import present
        from sweeper.store.ledger import Ledger

        given = str(data) if data else None
        return present.of(self.declared, Ledger(place(store)), given).frame


def _console(quiet: bool) -> Console:
    """Where a run says what it does."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, quiet=quiet)
    console.soft_wrap = not console.is_terminal
    return console


def _require_executor(executor: str) -> None:
    if executor not in EXECUTORS:
        known = ", ".join(EXECUTORS)
        raise SweepError(f"--executor: {executor!r} is not one of {known}: write one of them")


def _require_work(job: Job, executor: str) -> None:
    """Refuse a sweep of which no cell applies, and a GPU in this process where torch sees none."""
    from sweeper.engine.isolation import lacking
    from sweeper.run.summary import why_not

    if not job.plan.cells:
        reasons = "\n".join(why_not(job.summary()))
        raise SweepError(
            f"{job.plan.sweep.name}: none of its {job.row_count} defense cells applies, so nothing "
            f"can run; change what the reasons name:\n{reasons}"
        )
    for shape in job.shapes if executor == "inline" else ():
        if lack := lacking(shape.device):
            raise SweepError(lack)


def _is_up() -> bool:
    """Whether this process is connected to Ray already, as at a notebook's second run."""
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())


def _with_ray(
    job: Job, address: str | None, console: Console, logging: bool = False
) -> tuple[Walker, Room]:
    """Start or join Ray: what walks the cells, and how many of a shape it has room for."""
    from sweeper.run.display import lives, waiting

    if not address:  # a Ray of our own listens on loopback; read at its import
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    doing = f"joining the Ray at {address} ..." if address else "starting Ray ..."
    with nullcontext() if _is_up() else waiting(console, doing):
        try:
            from sweeper.run import rays, schedule, start, travel
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] != "ray":
                raise
            raise SweepError(
                "Ray is not installed here: `pip install 'ray[default,tune]'`, or run one cell "
                "after the other without it, with --executor inline"
            ) from None
        methods = travel.modules(job.plan.sweep) if address and not search.sent() else {}
        url = start.connect(address, job.shapes, methods)
    if url:
        token = start.token_command()
        asks = f" (token: `{token}`)" if token else ""
        console.print(f"Ray dashboard: {url}{asks}", soft_wrap=True)

    def room(shape: Shape) -> int:
        return rays.room(shape.cpus, shape.gpus)

    if not all(map(room, job.shapes)):
        console.print("Ray has no room for a cell now: waiting for nodes that have")
    ahead = schedule.AHEAD if address else 0
    live = lives(console) or logging
    walker = functools.partial(schedule.walk_with_tune, ahead=ahead, live=live)
    return walker, room


@dataclass(frozen=True)
class Victim:
    """A trained victim of a store, and what it is."""

    key: str
    """Its cell's key: the column `victim` of the rows."""
    model: Net
    """In eval mode, on the CPU; takes pixels [B, C, H, W] in [0, 1]."""
    axes: Mapping[str, Any]
    """Attack, data set, model, poison rate, target and seed, as the sweep calls them."""
    params: Mapping[str, Any]
    """All that made it: options after defaults, recipe, versions."""
    metrics: Mapping[str, Any]
    """ACC, ASR, RA and their variants on the test set, in [0, 1]; seconds of training. Older code
    measured them where no cell has needed them since."""
    shape: tuple[int, ...]
    """Of what the model is shown of one sample; (C, H, W) of an image."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""


def load_victim(key: str, *, store: str | Path | None = None) -> Victim:
    """Load a victim's model from a store.

    Args:
        key: Its key, or the key's first digits.
        store: The store; default SWEEPER_STORE, or `STORE`.

    Raises:
        SweepError: No victim, or several, have such a key, or it was written by older code.
        DamagedError: Its files are not what was written; they were set aside.
    """
    from sweeper import models
    from sweeper.core import seeds
    from sweeper.run.material import measured
    from sweeper.store.artifacts import Store

    opened = Store(place(store))
    whole = one_key(opened.keys("train"), key, f"victims of store {opened.root}")
    artifact = opened.get("train", whole)
    about, weights = artifact.meta, artifact.tensors["model"]
    if "shape" not in about:
        again = advice.command("run", where={"store": opened.root}, fresh=[whole[:8]])
        raise SweepError(
            f"victim {whole} was trained before victims kept the shape of their images: of a sweep "
            f"that has it, {again} trains it anew"
        )
    kept = ("name", "version", "weights")  # its own weights follow
    options = {k: v for k, v in about["params"]["model"].items() if k not in kept}
    shape = tuple(about["shape"])
    channels = weights["normalise.mean"].numel() if "normalise.mean" in weights else 0
    model = models.build(
        about["params"]["model"]["name"],
        options,
        classes=len(about["classes"]),
        shape=shape,
        mean=[0.0] * channels,
        std=[1.0] * channels,
        generator=seeds.generator(whole, "model"),
    )
    model.load_state_dict(dict(weights))
    return Victim(
        key=whole,
        model=model.eval(),
        axes=about["axes"],
        params=about["params"],
        metrics={**about["result"], **(measured(opened, whole) or {})},
        shape=shape,
        classes=tuple(about["classes"]),
    )
