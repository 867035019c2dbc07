"""What a run says to people before its cells and after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sweeper.run import fresh
from sweeper.run.estimate import Bill
from sweeper.run.job import Job
from sweeper.run.material import Context
from sweeper.store import ledger

if TYPE_CHECKING:
    from rich.console import Console

_MOST = 9
"""Labels that are listed; of more their number is told."""


def why_not(facts: Mapping[str, Any]) -> list[str]:
    """A line for each cause why cells of a plan do not apply: how many, of which methods, why."""
    lines = []
    for item in facts["why_not"]:
        some = [
            item[axis] for axis in ("attacks", "defenses", "datasets", "models") if axis in item
        ]
        who = " x ".join(map(_listed, some))
        lines.append(f"{item['cells']:>8,}  {who}{': ' if who else ''}{item['reason']}")
    return lines


def _listed(labels: Sequence[str]) -> str:
    more = [f"{len(labels) - _MOST} more"] if len(labels) > _MOST else []
    return ", ".join([*labels[:_MOST], *more])


def place(context: Context) -> dict[str, Any]:
    """Store and data folder of a run, as `advice.command` has them."""
    return {"store": context.store, "data": context.data}


def opened(job: Job, console: Console, names: Sequence[str]) -> dict[str, Any]:
    """Take what is to be fresh out of what is done, and say what a run will do.

    Returns:
        What `sweeper plan --json` has.
    """
    job.resume()
    if names:
        console.print(job.again(names))
    facts = job.summary()
    console.print(
        f"{facts['sweep']}: {facts['total']} cells, {facts['done']} done, {facts['to_run']} to "
        f"run; trainings saved by sharing victims: {facts['trainings_saved']}"
    )
    if job.hidden:
        console.print(
            f"{job.hidden} finished rows in the store are of cells this call leaves out: no table "
            "shows them until a call includes those cells again, and that call repeats none of them"
        )
    for item in facts["other_code"]:
        console.print(fresh.sentence(item, place(job.context)), soft_wrap=True)
    return facts


def ended(
    job: Job,
    counts: dict[str, int],
    bill: Bill,
    console: Console,
    tell: Callable[[dict[str, Any]], None] | None,
) -> dict[str, int]:
    """Say what a run did; its counts with what is left."""
    ran = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none"
    console.print(f"cells run: {ran}{bill.sentence()}")
    if left := len(job.todo) - sum(counts.values()):
        console.print(f"{left} cells are left; the same command runs them.")
        counts["left"] = left
    lost, states = _without_backdoor(job, console), job.unfinished()
    for line in _left_out(job):
        console.print(line, soft_wrap=True)
    if tell:
        told = {"cells": counts, "unfinished": states, **bill.sums(), "no_backdoor": lost}
        tell({"event": "end", **told})
    if states:
        count, words = sum(states.values()), [f"{n} {state}" for state, n in states.items()]
        console.print(f"unfinished rows: {count} of {job.row_count} ({', '.join(words)})")
        counts = {**counts, "unfinished": count}
    return counts


def _left_out(job: Job) -> Iterator[str]:
    """Sentences on files of the store that are damaged, or not the sweeper's."""
    if aside := job.store.aside:
        yield (
            "these files of the store were damaged and are now in its folder damaged/; what they "
            f"held is run again: {_listed(sorted(aside))}"
        )
    if foreign := job.store.foreign:
        yield (
            "these files among the rows are not the sweeper's and were left alone: "
            f"{_listed(sorted(foreign))}"
        )


def _without_backdoor(job: Job, console: Console) -> list[dict[str, Any]]:
    """Say which victims of the sweep did not take, and what helps; returned as JSON values."""
    from sweeper.tables import fair, results

    victims = fair.victims(results.frame(ledger.load(job.context.store, job.context.sweep)[0]))
    if said := fair.sentence(victims):
        console.print(said)
    return [
        {name: value for name, value in victim.items() if name != "untaken"}
        for victim in victims
        if victim["untaken"]
    ]
