"""Runs an analysis over the victims of a sweep: for each a picture and its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeper.analyses.base import Analysis, Subject
from sweeper.core import advice
from sweeper.core.errors import SweepError, unknown
from sweeper.core.outputs import written
from sweeper.core.types import Cell
from sweeper.engine.isolation import isolated
from sweeper.engine.task import unmade
from sweeper.models.base import Net
from sweeper.plan.sweep import Sweep
from sweeper.run import driver
from sweeper.run.job import Job
from sweeper.run.material import Context, Log, Material
from sweeper.run.walk import Walk


def pictures(
    name: str,
    analysis: Analysis,
    sweep: Sweep,
    context: Context,
    out: Path,
    victim: str = "",
    after: str = "",
    log: Log | None = None,
) -> Iterator[Path]:
    """Write `<out>/<name>-<victim>.png` and `.parquet` for every victim the store has.

    Args:
        name: The analysis, for the file names.
        analysis: What to look at.
        sweep: Whose victims.
        context: Store and data.
        out: Folder, made if missing.
        victim: Only victims whose key begins so.
        after: The label of a defense: its models are looked at, made again from its cells.
        log: Told which victim comes next.

    Yields:
        The pictures' paths.

    Raises:
        SweepError: No such defense, no victim has been trained, or the folder takes no file.
    """
    from matplotlib.figure import Figure

    labels = [entry.label for entry in sweep.defenses]
    if after and after not in labels:
        raise SweepError(f"--after: {unknown('defense', after, labels)}")
    job = driver.prepare(sweep, context)
    cells = [c for c in _cells(job, after) if c.params["victim"].startswith(victim)]
    if not cells:
        raise SweepError(
            f"no victim of {sweep.name} to look at in this store; "
            f"{advice.command('run', where={'store': context.store})} trains them"
        )
    with written(out / name):  # a place that takes none is said before anything is computed
        pass
    walk = Walk(job.plan.cells, [])
    for number, cell in enumerate(cells, 1):
        work = Material(cell, walk.ancestors(cell.key), job.context, job.store)
        if why := unmade(analysis.tasks, str(work.victim.local.get("task", "image"))):
            raise SweepError(f"{name} {why}")
        if log:
            log(victim=f"{number}/{len(cells)}: {_label(work, after)}")
        with isolated(cell.seed, job.context.threads):
            subject = _subject(work, after)
            frame = analysis.compute(subject)
        path = out / f"{name}-{_slug(subject.label)}.png"
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        figure.suptitle(f"{analysis.title}\n{subject.label}", fontsize=10)
        analysis.draw(frame, figure)
        with written(path):
            frame.to_parquet(path.with_suffix(".parquet"), index=False)
            figure.savefig(path, dpi=150)
        yield path


def _cells(job: Job, after: str) -> list[Cell]:
    """One defense cell of each trained victim: the named defense's, or the best supplied."""
    by_victim: dict[str, Cell] = {}
    for cell in job.plan.cells.values():
        if cell.kind != "defend" or not job.store.has("train", cell.params["victim"]):
            continue
        if after and cell.axes["defense"] != after:
            continue
        best = by_victim.get(cell.params["victim"])
        if best is None or (cell.params["n_clean"] or 0) > (best.params["n_clean"] or 0):
            by_victim[cell.params["victim"]] = cell
    return list(by_victim.values())


def _label(work: Material, after: str) -> str:
    axes: dict[str, Any] = dict(work.victim.axes)
    words = [f"{axes['attack']} {axes['poison_rate']:g}", axes["dataset"], axes["model"]]
    return ", ".join([*words, f"seed {axes['seed']}", *([f"after {after}"] if after else [])])


def _subject(work: Material, after: str) -> Subject:
    label = _label(work, after)
    if not after:
        return Subject(work, work.model(), f"{label}, {work.victim.key[:8]}")
    parent = work.cell.params["stage"]
    state = work.store.get("stage", parent).tensors["state"] if parent else {}
    model = work.defense.defend(work.case(work.defense.sees, state)).model
    if not isinstance(model, Net):
        raise SweepError(
            f"--after {after}: it leaves no model to look at: name a repairing defense"
        )
    return Subject(work, model, f"{label}, {work.cell.key[:8]}")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
