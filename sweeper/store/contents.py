"""What lies in a store, by one listing: its things, what each is, what space it takes. No torch.

A thing is what is kept or goes as a whole: an artifact's folder, a file of rows, what one move took
away. Whatever has no name of ours belongs to somebody else and is none.

    sweeps/<sweep>/kept.json    cells that no matrix has and that stay: what `sweeper show` learned
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs
from rich.filesize import decimal
from tabulate import tabulate

from sweeper.core.errors import SweepError
from sweeper.plan.source import NAME
from sweeper.store.files import PROBES
from sweeper.store.fresh import Fresh
from sweeper.store.rowfiles import KEY

KINDS = {
    "train": "victims",
    "prepare": "prepared",
    "stage": "stages",
    "defend": "results of defenses",
    "measure": "metrics",
}
"""Kind of an artifact -> what people call it."""
LEFT = "leftovers"
"""Files that were being written, and artifacts without a manifest."""
ASIDE, AWAY = "set aside in damaged/", "moved away by --fresh"
CHECKPOINTS, FAILURES, PLANS, ROWS, SAMPLES = "checkpoints", "failures", "plans", "rows", "samples"
PICTURES = "pictures of triggers"
MANIFEST, CLAIM = "manifest.json", "driver.json"
_PART_NAME = r"\.[0-9a-f]{32}\.part"
_MOVED = re.compile(r"-(\d{15,})(?:\.parquet)?(?:/|$)")
"""The nanoseconds a move writes behind the name of what it takes away."""
_KEY, _SWEEP = f"(?P<key>{KEY.pattern})", f"sweeps/(?P<sweep>{NAME.pattern})"
_ROWS = rf"(?:{KEY.pattern}\.[a-z_]+|(?:compact|rows)-[\w-]+)\.parquet"
_ARTIFACT = r"(?:manifest\.json|[\w-]+-[0-9a-f]{12}\.safetensors)"
_PATTERNS = (
    (LEFT, rf"(?P<thing>(?:{_SWEEP}/)?(?:.*/)?{_PART_NAME})"),
    (LEFT, rf"(?P<thing>{PROBES}/[^/]+)"),
    *(
        (what, rf"(?P<thing>artifacts/(?P<kind>{kind})/{_KEY})/{_ARTIFACT}")
        for kind, what in KINDS.items()
    ),
    (SAMPLES, rf"(?P<thing>samples/{_KEY}\.parquet)"),
    (CHECKPOINTS, rf"(?P<thing>checkpoints/{_KEY})/{_ARTIFACT}"),
    (ROWS, rf"(?P<thing>{_SWEEP}/results/(?:parts-\d+/)?{_ROWS})"),
    (FAILURES, rf"(?P<thing>{_SWEEP}/failures/{_KEY}\.json)"),
    (PICTURES, rf"(?P<thing>{_SWEEP}/gallery\.json)"),
    (PLANS, rf"(?P<thing>{_SWEEP}/(?:sweep\.yaml|(?:plan|kept|driver)\.json))"),
    (ASIDE, r"(?P<thing>damaged/[^/]+-\d{15,})(?:/.+)?"),
    (AWAY, r"(?P<thing>replaced/[^/]+)/[^/]+-\d{15,}(?:\.parquet|/.+)?"),
    (AWAY, r"(?P<thing>replaced/[^/]+\.json)"),
)
_OURS = [(re.compile(pattern), what) for what, pattern in _PATTERNS]
"""How our paths look, and what lies there."""


@dataclass
class Thing:
    """What is kept or goes as a whole."""

    what: str
    """One of the words above."""
    path: str
    """Its folder, or its file."""
    key: str = ""
    """The cell it is of; empty for none."""
    kind: str = ""
    """Of an artifact."""
    sweep: str = ""
    """The sweep it lies in; empty for what sweeps share."""
    files: list[pafs.FileInfo] = field(default_factory=list)
    """Its files; none of a folder that is empty."""
    folder_ns: int = 0
    """When its folder changed, where it is empty; nanoseconds, by the store's clock."""

    @property
    def whole(self) -> bool:
        """Whether it is an artifact, which its manifest says."""
        return bool(self.kind) and self.what != LEFT

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(info.size for info in self.files)

    @property
    def since_ns(self) -> int:
        """When it came to be here, in nanoseconds.

        A move on a disk leaves a file its time, so what was moved has the later of that and the
        time in its name, which is its mover's.
        """
        moves = (_MOVED.search(info.path) for info in self.files)
        moved = [int(m[1]) for m in moves if m and self.what in (ASIDE, AWAY)]
        return max([self.folder_ns, *(info.mtime_ns or 0 for info in self.files), *moved])


@dataclass(frozen=True)
class Content:
    """What lies in a store."""

    things: Sequence[Thing]
    """All that is ours."""
    foreign: Sequence[pafs.FileInfo]
    """Files that have no name of ours: nobody here touches them."""

    @property
    def sweeps(self) -> list[str]:
        """The sweeps that have anything."""
        return sorted({thing.sweep for thing in self.things if thing.sweep})


class Contents(Fresh):
    """A store that says what lies in it."""

    def content(self) -> Content:
        """List the whole store.

        Raises:
            SweepError: There is none, or what lies there is no store.
        """
        if self._fs.get_file_info("").type == pafs.FileType.NotFound:
            raise SweepError(
                f"store: there is no {self.root}: `sweeper run` makes one; name yours with --store"
            )
        top = {info.base_name for info in self._list("")}
        if top and not top & {"artifacts", "sweeps"}:
            raise SweepError(
                f"store: {self.root} has neither `artifacts` nor `sweeps`, so it is no store: name "
                "one with --store"
            )
        listed = self._fs.get_file_info(pafs.FileSelector("", recursive=True))
        things: dict[str, Thing] = {}
        foreign = []
        for info in listed:
            match, what = _known(f"{info.path}/{MANIFEST}" if not info.is_file else info.path)
            if match is None:
                foreign += [info] if info.is_file else []
            elif info.is_file or match.re.groupindex.get("kind"):
                thing = things.setdefault(match["thing"], _thing(match, what))
                if info.is_file:
                    thing.files.append(info)
                else:
                    thing.folder_ns = info.mtime_ns or 0
        for thing in things.values():
            if thing.kind and not any(f.base_name == MANIFEST for f in thing.files):
                thing.what = LEFT
            thing.folder_ns *= not thing.files
        return Content(list(things.values()), foreign)

    def keep(self, sweep: str, cells: Mapping[str, str]) -> None:
        """Have `sweeper gc` leave these cells be, key -> kind, though no matrix has them."""
        path = f"{self._sweep(sweep)}/kept.json"
        above = self._said(path).get("above") or {}
        self._write(path, json.dumps({"above": {**above, **cells}}).encode())

    def named(self, sweep: str) -> set[str] | None:
        """The cells a sweep's matrix has, and what `keep` kept; None where they cannot be read."""
        keys: set[str] = set()
        for name in ("plan.json", "kept.json"):
            try:
                said = json.loads(self._read(f"{self._sweep(sweep)}/{name}"))
                keys |= {*said.get("cells", ()), *said.get("above", ())}
            except FileNotFoundError:
                continue
            except (ValueError, TypeError, AttributeError, RecursionError):
                return None
        return keys

    def usage(self) -> dict[str, Any]:
        """What takes the space.

        Returns:
            store; files, bytes; what: what it is -> files, bytes; sweeps: name -> likewise of what
            lies in it and of what its matrix alone names; shared: of what several name; unnamed: of
            what none does; foreign: paths of what is not ours. The largest comes first.

        Raises:
            SweepError: There is no store.
        """
        content = self.content()
        names: dict[str, set[str]] = defaultdict(set)
        for sweep in content.sweeps:
            for key in self.named(sweep) or ():
                names[key].add(sweep)
        what: dict[str, Sums] = defaultdict(Sums)
        sweeps: dict[str, Sums] = defaultdict(Sums)
        shared, unnamed = Sums(), Sums()
        for thing in content.things:
            what[thing.what].add(thing.files)
            owners = {thing.sweep} if thing.sweep else names.get(thing.key, set())
            one = sweeps[min(owners)] if len(owners) == 1 else shared if owners else unnamed
            one.add(thing.files)
        if content.foreign:
            what["not ours"].add(content.foreign)
            unnamed.add(content.foreign)
        total = Sums()
        for sums in what.values():
            total.files, total.bytes = total.files + sums.files, total.bytes + sums.bytes
        return {
            "store": self.root,
            **vars(total),
            "what": _by_size(what),
            "sweeps": _by_size(sweeps),
            "shared": vars(shared),
            "unnamed": vars(unnamed),
            "foreign": sorted(info.path for info in content.foreign),
        }


@dataclass
class Sums:
    """Files, and what they take together."""

    files: int = 0
    """How many."""
    bytes: int = 0
    """Their size."""

    def add(self, files: Iterable[pafs.FileInfo]) -> None:
        """Count files."""
        for info in files:
            self.files, self.bytes = self.files + 1, self.bytes + info.size


def table(head: str, lines: Iterable[tuple[str, Mapping[str, int]]]) -> str:
    """Lines of files and bytes as people read them."""
    rows = [[name, f"{sums['files']:,}", decimal(sums["bytes"])] for name, sums in lines]
    return tabulate(
        rows, [head, "files", "size"], colalign=("left", "right", "right"), disable_numparse=True
    )


def text(used: Mapping[str, Any]) -> str:
    """Return `usage` as people read it."""
    if not used["files"]:
        return f"store {used['store']} is empty"
    total = ("all", {"files": used["files"], "bytes": used["bytes"]})
    rest = [("(several sweeps)", used["shared"]), ("(in no sweep's matrix)", used["unnamed"])]
    said = [
        f"store {used['store']}",
        table("what", [*used["what"].items(), total]),
        table("sweep", [*used["sweeps"].items(), *(r for r in rest if r[1]["files"]), total]),
    ]
    if foreign := used["foreign"]:
        more = f" and {len(foreign) - 5:,} more" if len(foreign) > 5 else ""
        said.append(f"not ours, and never touched: {', '.join(foreign[:5])}{more}")
    return "\n\n".join(said)


def _known(path: str) -> tuple[re.Match[str] | None, str]:
    for pattern, what in _OURS:
        if match := pattern.fullmatch(path):
            return match, what
    return None, ""


def _thing(match: re.Match[str], what: str) -> Thing:
    found = {"key": "", "kind": "", "sweep": "", **match.groupdict("")}
    key, kind, sweep = found["key"], found["kind"], found["sweep"]
    return Thing(what, found["thing"], key, kind, sweep)


def _by_size(sums: Mapping[str, Sums]) -> dict[str, dict[str, int]]:
    largest = sorted(sums.items(), key=lambda item: (-item[1].bytes, item[0]))
    return {name: dict(vars(item)) for name, item in largest}
