"""What of a store nothing needs any more, and how it goes. No torch.

    orphans      artifacts of no sweep: of no cell of its last matrix, and of none of its rows
    set aside    what could not be read, and what --fresh moved away
    leftovers    files that were being written, artifacts without a manifest
    made good    failures of cells that ended well later, checkpoints of what is trained
    --sweep      a sweep, and what only it had

But for the last two, what came within a day stays: somebody may be at it. Nothing goes while a
sweep of the store is run. Of an artifact the manifest goes first, so it is there or it is not; of a
sweep its plan goes last, so the same command again ends what was interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs
from rich.filesize import decimal

from sweeper.core import rows
from sweeper.core.errors import SweepError, unknown
from sweeper.store.claim import claimed, describe, seen
from sweeper.store.contents import (
    ASIDE,
    AWAY,
    CHECKPOINTS,
    CLAIM,
    FAILURES,
    LEFT,
    MANIFEST,
    PLANS,
    Content,
    Contents,
    Sums,
    Thing,
    table,
)
from sweeper.store.fresh import ABOVE

DAY_NS = 24 * 3600 * 10**9
"""How long what nothing needs stays all the same."""
MADE_GOOD = "failures made good", "checkpoints of what is trained"
"""What no more comes of: it goes at once."""


@dataclass
class Waste:
    """What would go, in the order in which it does."""

    things: list[tuple[str, Thing]] = field(default_factory=list)
    """Why, and what."""
    young: int = 0
    """How many things stay for today only."""

    def sums(self) -> dict[str, dict[str, int]]:
        """Why -> files, bytes, the largest first; `all` of them last."""
        found: dict[str, Sums] = defaultdict(Sums)
        for why, thing in self.things:
            found[why].add(thing.files)
        largest = dict(sorted(found.items(), key=lambda item: -item[1].bytes))
        for _, thing in self.things:
            largest.setdefault("all", Sums()).add(thing.files)
        return {why: vars(sums) for why, sums in largest.items()}


class Garbage(Contents):
    """A store that can be tidied."""

    def waste(self, sweeps: Collection[str] = ()) -> Waste:
        """What would go.

        Args:
            sweeps: Sweeps that go, with what only they had.

        Raises:
            SweepError: There is no store or no such sweep, or it cannot be told what a sweep needs.
        """
        content = self.content()
        known = [*self._sweeps()]  # of one that has gone, and was interrupted, a folder is left
        for name in sweeps:
            if name not in known:
                raise SweepError(f"--sweep: {unknown('sweep', name, known)}")
        if not content.things:
            return Waste()
        states = {sweep: self._states(sweep) for sweep in content.sweeps}
        owners, now = self._owners(content, states, sweeps), self._now_ns()
        return _Sorting(content, owners, states, frozenset(sweeps), now).waste()

    def free(self, sweeps: Collection[str] = ()) -> Waste:
        """Delete what `waste` names; safe to interrupt and to repeat.

        Raises:
            SweepError: As `waste`; or a sweep of the store is being run.
        """
        run = uuid.uuid4().hex[:12]
        with contextlib.ExitStack() as claims:
            for sweep in self.content().sweeps:
                claims.enter_context(claimed(self, sweep, run))
            found = self.waste(sweeps)
            for _, thing in found.things:
                for info in sorted(thing.files, key=lambda f: f.base_name != MANIFEST):
                    self._delete(info.path)
            for folder in {p for _, t in found.things for p in (t.path, t.path.rpartition("/")[0])}:
                self._drop(folder)
        for sweep in sweeps:  # only now: a claim lies in its sweep's folder
            self._drop(f"sweeps/{sweep}")
        return found

    def runners(self) -> list[str]:
        """Who runs a sweep of this store, or may do so, in sentences."""
        said = []
        for sweep in self._sweeps():
            if claim := self.claim(sweep):
                lives = seen(claim)
                if lives is not False:
                    word = "is being" if lives else "may be"
                    said.append(f"sweep {sweep} {word} run by {describe(claim)}")
        return said

    def _owners(
        self,
        content: Content,
        states: Mapping[str, Mapping[str, tuple[str, str]]],
        leaving: Collection[str],
    ) -> dict[str, set[str]]:
        """Key -> the sweeps that need it; a parent stands behind its children.

        Stages and metrics that no matrix names are needed by who needs their victim.
        """
        owners: dict[str, set[str]] = {}
        there = {thing.key: thing for thing in content.things if thing.whole}
        left: list[tuple[str, str]] = []
        for sweep, found in states.items():
            named = self.named(sweep)
            if named is None and sweep not in leaving:
                raise SweepError(
                    f"store {self.root}: the plan of sweep {sweep} cannot be read, so nobody knows "
                    f"what it needs: run it again, or give it up with --sweep {sweep}"
                )
            named = named or set()
            rest = {key for row, (_, victim) in found.items() for key in (row, victim)}
            rest -= {*named, ""}
            for key in (*named, *rest):
                owners.setdefault(key, set()).add(sweep)
            left += [(key, sweep) for key in rest]  # a matrix names all parents, a row its victim
        while left:
            key, sweep = left.pop()
            parent = self._parent(there[key]) if key in there else ""
            if parent and sweep not in owners.setdefault(parent, set()):
                owners[parent].add(sweep)
                left.append((parent, sweep))
        for cells in self.replacing().values():
            for keys in cells.values():
                for key in keys:
                    owners.setdefault(key, set()).add("")  # a move under way: no sweep's alone
        below = [t for t in there.values() if t.kind in ("stage", "measure")]
        below = [thing for thing in below if thing.key not in owners]
        for thing, victim in zip(below, self._each(self._parent, below), strict=True):
            owners[thing.key] = owners.get(victim, set())
        return owners

    def _parent(self, thing: Thing) -> str:
        """The cell an artifact names as its parent; empty for none."""
        meta = self._said(f"{thing.path}/{MANIFEST}").get("meta") or {}
        about = meta if thing.kind == "measure" else meta.get("params") or {}
        return str(about.get(ABOVE.get(thing.kind, "victim")) or "")

    def _states(self, sweep: str) -> dict[str, tuple[str, str]]:
        """Key -> state and victim of each row of a sweep."""
        found = self.columns(sweep, ["victim"])
        return {key: (row["status"], row["victim"] or "") for key, row in found.items()}

    def _now_ns(self) -> int:
        """The time by the store's clock, which is what its files are dated by."""
        path = f"artifacts/.{uuid.uuid4().hex}.part"
        try:
            self._write(path, b"now")
            now: int = self._fs.get_file_info(path).mtime_ns
            self._delete(path)
        except OSError as error:
            raise SweepError(
                f"store: cannot write to {self.root}: {error.strerror or error}; name one that "
                "can be written with --store"
            ) from None
        return now

    def _drop(self, folder: str) -> None:
        """Delete a folder that holds no file."""
        selector = pafs.FileSelector(folder, allow_not_found=True, recursive=True)
        with contextlib.suppress(FileNotFoundError), self._at_work():
            if not any(info.is_file for info in self._fs.get_file_info(selector)):
                with contextlib.suppress(NotADirectoryError):
                    self._fs.delete_dir(folder)


@dataclass(frozen=True)
class _Sorting:
    """What stays and what goes."""

    content: Content
    owners: Mapping[str, set[str]]
    states: Mapping[str, Mapping[str, tuple[str, str]]]
    leaving: frozenset[str]
    now_ns: int

    def waste(self) -> Waste:
        """Artifacts go parents first, so that what is left still names the rest; plans go last."""
        found = Waste()
        place = {key: number for number, key in enumerate(self.owners)}
        names = ", ".join(sorted(self.leaving))
        own, others = [], []
        for thing in self.content.things:
            if thing.sweep in self.leaving:
                if not thing.path.endswith(f"/{CLAIM}"):
                    own.append(thing)
            elif self._alone(thing):
                found.things.append((f"{thing.what} of {names} alone", thing))
            elif why := self._why(thing):
                young = why not in MADE_GOOD and self.now_ns - thing.since_ns < DAY_NS
                found.young += young
                others += [] if young else [(why, thing)]
        found.things.sort(key=lambda item: -place[item[1].key])
        own.sort(key=lambda thing: thing.what == PLANS)
        found.things += [*others, *((f"{thing.what} of {names}", thing) for thing in own)]
        return found

    def _alone(self, thing: Thing) -> bool:
        """Whether only sweeps that go need it."""
        owners = self.owners.get(thing.key, set())
        return bool(owners) and owners <= self.leaving and not thing.sweep

    def _why(self, thing: Thing) -> str:
        """Why nothing needs a thing; empty where something does."""
        if thing.what == LEFT:
            return "half-written files"
        if thing.what == ASIDE:
            return ASIDE
        if thing.what == AWAY:
            intent = f"{thing.path.removesuffix('.json')}.json"
            return "" if any(other.path == intent for other in self.content.things) else AWAY
        ready = self._ready
        if thing.what == FAILURES:
            state, _ = self.states[thing.sweep].get(thing.key, ("", ""))
            return MADE_GOOD[0] if thing.key in ready or state in rows.FINISHED else ""
        if thing.what == CHECKPOINTS and thing.key in ready:
            return MADE_GOOD[1]
        return "" if thing.sweep or self.owners.get(thing.key) else f"{thing.what} of no sweep"

    @functools.cached_property
    def _ready(self) -> set[str]:
        return {thing.key for thing in self.content.things if thing.whole}


@dataclass(frozen=True)
class Said:
    """What `sweeper gc` says."""

    store: str
    """The store, as it is called."""
    found: Waste
    """What would go, or went."""
    runners: Sequence[str]
    """Who is at work there."""
    freed: bool
    """Whether it has gone."""

    def values(self) -> dict[str, Any]:
        """As JSON values: paths too."""
        paths: dict[str, list[str]] = defaultdict(list)
        for why, thing in self.found.things:
            paths[why].append(thing.path)
        *lines, (_, every) = [*self.found.sums().items()] or [("all", vars(Sums()))]
        what = {why: {**sums, "paths": paths[why]} for why, sums in lines}
        about = {"store": self.store, "freed": self.freed, **every, "what": what}
        return {**about, "young": self.found.young, "running": list(self.runners)}

    def text(self, command: str) -> str:
        """For people.

        Args:
            command: The command that deletes, for a shell.
        """
        sums = self.found.sums()
        lines = [f"store {self.store}: nothing to free"]
        if sums:
            size = f"{decimal(sums['all']['bytes'])} in {sums['all']['files']:,} files"
            lines = [f"store {self.store}: {size} {'freed' if self.freed else 'can be freed'}", ""]
            lines += [table("what", sums.items()), ""]
        if self.found.young:
            lines.append(f"came within a day, so kept for now: {self.found.young:,}")
        lines += [f"{said}: nothing can go before it ends" for said in self.runners]
        if sums and not self.freed:
            lines.append(f"nothing has been deleted: `{command}` does it")
        return "\n".join(lines)
