"""A file's tensors by the names another network has for them, whatever order the file has.

Names decide where they are those of the network, behind any prefix. Elsewhere structure does: both
networks are trees of modules, and parts whose tensors have the same kinds and shapes are the same
part, the largest first. Of equal parts the numbers in the names decide; where they cannot, nothing
is guessed.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sweeper.core.errors import SweepError

COUNTER = "num_batches_tracked"
"""BatchNorm's count of steps, which changes no output."""
_KINDS = ("weight", "bias", "running_mean", "running_var")
_NUMBER = re.compile(r"\d+")

Structure = tuple[tuple[str, tuple[int, ...]], ...]
"""Kind and shape of every tensor of a part, sorted."""


def fitted(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str, advice: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give the tensors of a file the names a network has for them.

    Args:
        ours: The network's tensors, in its order; the head may be left out.
        theirs: The file's, in any order.
        what: The architecture, for errors.
        advice: What to do about another architecture, for errors.

    Returns:
        Our names with the file's tensors, and what is left of the file: its head.

    Raises:
        SweepError: The file is of another network, or does not say which tensor is which.
    """
    wanted, given = _counted(ours), _counted(theirs)
    try:
        names = _prefixed(wanted, given) or _paired(_parts(wanted), _parts(given))
    except _Unpaired as error:
        raise SweepError(f"{error.said(what)}: {advice}") from None
    for name in ours:
        mean = names.get(f"{name.removesuffix(COUNTER)}running_mean")
        if name.endswith(COUNTER) and mean:  # old files have no counters
            names[name] = f"{mean.removesuffix('running_mean')}{COUNTER}"
    used = set(names.values())
    left = {name: value for name, value in given.items() if name not in used}
    return {name: theirs.get(names.get(name, ""), ours[name]) for name in ours}, left


def heads(left: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The modules of a file that can be a network's linear head, with any number of classes.

    Args:
        left: What `fitted` has left.
        like: The head's tensors: weight [K, D], bias [K].

    Returns:
        What each module's names begin with -> its tensors as the head names them.
    """
    widths = {kind: value.shape[1:] for kind, value in like.items()}
    found = {}
    for prefix in {name.rpartition(".")[0] + ".": None for name in left if "." in name}:
        module = {n.removeprefix(prefix): v for n, v in left.items() if n.startswith(prefix)}
        sizes = {kind: value.shape[1:] for kind, value in module.items() if value.ndim}
        if sizes == widths and len({len(value) for value in module.values()}) == 1:
            found[prefix] = module
    return found


def refuse(rest: Mapping[str, Tensor], what: str, advice: str) -> None:
    """Raise SweepError where tensors of a file have no place in a network."""
    for name, value in rest.items():
        raise SweepError(f"{what} has no place for {_sized(name, value)} of the file: {advice}")


def _counted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that change an output."""
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}


def _prefixed(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """Our names with theirs where theirs are ours behind one prefix; else nothing."""
    first = next(iter(ours), "")
    for name in theirs:
        prefix = name.removesuffix(first)
        if name.endswith(first) and all(
            prefix + our in theirs and theirs[prefix + our].shape == ours[our].shape for our in ours
        ):
            return {our: prefix + our for our in ours}
    return {}


@dataclass(frozen=True, eq=False)
class _Part:
    """The tensors whose names begin with the same words: a module, or one tensor."""

    words: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @functools.cached_property
    def structure(self) -> Structure:
        sized = ((_kind(name), tuple(value.shape)) for name, value in self.tensors.items())
        return tuple(sorted(sized))

    def taken_apart(self) -> list[_Part]:
        return _parts(self.tensors, self.words)


def _parts(tensors: Mapping[str, Tensor], words: tuple[str, ...] = ()) -> list[_Part]:
    """The parts of tensors whose names begin with the same words, in their order."""
    parts: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for name, value in tensors.items():
        own = _words(name)
        key = own[: len(words) + 1] if len(own) > len(words) else (*own, name)
        parts.setdefault(key, {})[name] = value
    return [_Part(key, group) for key, group in parts.items()]


def _words(name: str) -> tuple[str, ...]:
    """The words of a name; attention's in_proj_weight is the weight of an in_proj."""
    return tuple(re.sub(r"_(weight|bias)$", r".\1", name).split("."))


def _kind(name: str) -> str:
    """Weight, bias, a statistic of BatchNorm, or a tensor that is none's but its own."""
    last = _words(name)[-1]
    return last if last in _KINDS else ""


def _paired(ours: Sequence[_Part], theirs: Sequence[_Part]) -> dict[str, str]:
    """Our names with theirs: equal parts are paired, the largest first, others are taken apart.

    Raises:
        _Unpaired: A tensor of ours has no partner.
        SweepError: Parts of theirs are equal, and their names have no order.
    """
    pairs: dict[str, str] = {}
    while ours:
        size = max(len(part.structure) for part in (*ours, *theirs))
        counts = Counter(part.structure for part in ours)
        found = Counter(part.structure for part in theirs)
        settled = [s for s in counts if len(s) == size and counts[s] == found[s]]
        for structure in settled:
            mine = [part for part in ours if part.structure == structure]
            given = [part for part in theirs if part.structure == structure]
            for our, their in zip(mine, _ordered(given, mine), strict=True):
                if size == 1:
                    pairs[next(iter(our.tensors))] = next(iter(their.tensors))
                else:
                    pairs |= _paired(our.taken_apart(), their.taken_apart())
        ours, theirs = _rest(ours, size, settled), _rest(theirs, size, settled)
        if size == 1 and ours:
            raise _Unpaired(ours, theirs)
    return pairs


def _rest(parts: Iterable[_Part], size: int, settled: Sequence[Structure]) -> list[_Part]:
    """The parts that are not settled, those of this size taken apart."""
    rest = []
    for part in parts:
        if part.structure not in settled:
            apart = 1 < size == len(part.structure)
            rest += part.taken_apart() if apart else [part]
    return rest


def _ordered(theirs: Sequence[_Part], ours: Sequence[_Part]) -> list[_Part]:
    """Equal parts in the order of ours: by their numbers where only those differ, or by our names.

    Raises:
        SweepError: Neither says which is which.
    """
    if len({_NUMBER.sub("#", ".".join(part.words)) for part in theirs}) == 1:
        return sorted(theirs, key=lambda p: [int(n) for n in _NUMBER.findall(".".join(p.words))])
    named = {part.words[-1]: part for part in theirs}
    if len(named) == len(theirs) and named.keys() == {part.words[-1] for part in ours}:
        return [named[part.words[-1]] for part in ours]
    one, other, mine, *_ = (".".join(part.words) for part in (*theirs[:2], *ours))
    raise SweepError(
        f"{one} and {other} have the same shapes, and their names do not say which is {mine}: "
        "number them in the network's order, or give all tensors the names `sweeper export` writes"
    )


class _Unpaired(Exception):
    """Tensors of ours without a partner, and those of theirs."""

    def __init__(self, ours: Sequence[_Part], theirs: Sequence[_Part]) -> None:
        self.ours, self.theirs = ours, theirs

    def said(self, what: str) -> str:
        """Which tensor has which shape."""
        found = Counter(part.structure for part in self.theirs)
        ours = min(self.ours, key=lambda part: found[part.structure] > 0)
        (name, value), *_ = ours.tensors.items()
        mine = f"{name} of {what}"
        near = min(self.theirs, key=lambda part: _distance(ours, part), default=None)
        if near is None or _kind(name) != near.structure[0][0]:
            return f"the file has no tensor for {_sized(mine, value)}"
        (their, tensor), *_ = near.tensors.items()
        if number := found[ours.structure]:
            own = sum(part.structure == ours.structure for part in self.ours)
            such = f"of tensors such as {_sized(their, tensor)}"
            return f"{such} the file has {number}, {what} has {own}"
        return f"{their} is {list(tensor.shape)}, {mine} {list(value.shape)}"


def _distance(one: _Part, other: _Part) -> tuple[bool, bool, int]:
    """How far two tensors are from being the same: kind, dimensions, sides that differ."""
    (kind, shape), (other_kind, other_shape) = one.structure[0], other.structure[0]
    differ = sum(a != b for a, b in zip(shape, other_shape, strict=False))
    return kind != other_kind, len(shape) != len(other_shape), differ


def _sized(name: str, value: Tensor) -> str:
    return f"{name} {list(value.shape)}"
