"""YAML as users write it: files, `--set` and options -> values, and the line each stands on.

Aliases and merges (`<<: *base`) count as what they stand for, written out: a text that would have
no end, or more values than anyone means, is refused before any of it is made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from sweeper.core.errors import SweepError

Loc = tuple[str | int, ...]
"""Where a value stands: the keys and places that lead to it."""
MOST = 100_000
"""Values of a text, aliases written out; ten times the longest list a sweep may have."""
DEEPEST = 50
"""Levels of a text, aliases written out; a sweep file has seven."""
LOADERS = tuple(dict.fromkeys((getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader)))
"""C's is ten times as fast, where PyYAML has it; the other has the better errors."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A text as read."""

    values: Any
    """What YAML makes of it."""
    node: Any
    """The nodes it was made of; None of an empty text."""

    def line(self, loc: Loc) -> int:
        """Return the line, from 1, of `loc`, or of the nearest thing around it that is there."""
        node, line = self.node, self.node.start_mark.line if self.node else 0
        for step in loc:
            if isinstance(node, yaml.MappingNode):
                found = [(k.start_mark.line, v) for k, v in node.value if k.value == step]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
                found = [(item.start_mark.line, item) for item in node.value[step : step + 1]]
            else:
                found = []
            if not found:
                break
            line, node = found[-1]  # a merged key stands before the one that overrides it
        return int(line) + 1


def parse(text: str, name: str, *, lines: bool = False) -> Document:
    """Read YAML that a user wrote.

    Args:
        text: The YAML.
        name: What an error begins with: the file, or the option with what was given.
        lines: Whether an error says the line too.

    Raises:
        SweepError: It is not YAML, has a key twice in one mapping, an alias within what it names,
            or is too large or too deep.
    """
    what = "not YAML" if lines else "the value is not YAML"

    def where(mark: Any) -> str:
        return f"{name}:{mark.line + 1}" if lines and mark else name

    try:
        for loader in LOADERS:
            try:
                _check(text, loader)
                node = yaml.compose(text, Loader=loader)
                break
            except (yaml.YAMLError, UnicodeEncodeError) as error:
                if isinstance(error, _Refused) or loader is LOADERS[-1]:
                    raise
        return Document(_Constructor().construct_document(node) if node else None, node)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        told = why if isinstance(error, _Refused) else f"{what}: {why}"
        raise SweepError(f"{where(getattr(error, 'problem_mark', None))}: {told}") from None


def flow(value: Any) -> str:
    """Return a value as it stands on one line of a sweep file."""
    line: str = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**6)
    return line.strip()[1:-1]


class _Constructor(SafeConstructor):
    """Makes values of nodes; what PyYAML slips on, as the 45th of May, is an error with a place."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Return the value of a node."""
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
            why = f"{error}; quote what is meant as text"
            raise ConstructorError(None, None, why, node.start_mark) from None


class _Refused(yaml.MarkedYAMLError):
    """What the grammar of YAML allows and no sweep means."""

    def __init__(self, event: Any, problem: str) -> None:
        super().__init__(problem=problem, problem_mark=event.start_mark)


class _Part:
    """A value that is being read, or has been."""

    def __init__(self, event: Any = None) -> None:
        self.keys: dict[str, int] | None = {} if isinstance(event, yaml.MappingStartEvent) else None
        """Of a mapping, the plain keys so far and their lines."""
        self.met = 0
        """What stands right in it so far: in a mapping keys and values by turns."""
        self.size = 1
        """Values in it, itself among them, aliases written out."""
        self.depth = 1
        """Its levels."""

    def meet(self, event: Any) -> None:
        """The next thing right in it begins: a key of it must be new."""
        if self.keys is not None and self.met % 2 == 0 and isinstance(event, yaml.ScalarEvent):
            if first := self.keys.get(event.value):
                said = f"{event.value}: stands twice, first in line {first}; remove one"
                raise _Refused(event, said)
            mark: Any = event.start_mark
            self.keys[event.value] = mark.line + 1
        self.met += 1

    def take(self, part: _Part) -> None:
        """Something right in it is read."""
        self.size += part.size
        self.depth = max(self.depth, part.depth + 1)


def _check(text: str, loader: Any) -> None:
    """Refuse what goes wrong beyond the grammar; a text is read once, and only as far as that."""
    stack, named = [_Part()], dict[str, _Part]()
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionEndEvent):
            part = stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            stack[-1].meet(event)
            part = _part(event, stack, named)
        else:
            continue
        if len(stack) + part.depth > DEEPEST:
            raise _Refused(event, f"more than {DEEPEST} levels, aliases written out: write fewer")
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(part)
        else:
            stack[-1].take(part)
        if sum(item.size for item in stack) > MOST:
            raise _Refused(event, f"more than {MOST:,} values, aliases written out: write fewer")


def _part(event: Any, stack: Sequence[_Part], named: dict[str, _Part]) -> _Part:
    """What begins with an event; of an alias what it stands for, of one of nothing anything."""
    if isinstance(event, yaml.AliasEvent):
        name = str(event.anchor)
        part = named.get(name, _Part())
        if any(part is item for item in stack):
            said = f"*{name} stands within what &{name} names, which has no end: leave it out"
            raise _Refused(event, said)
        return part
    if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
        raise _Refused(event, "half a surrogate pair is no character: leave it out")
    part = _Part(event)
    if event.anchor:
        named[event.anchor] = part
    return part
