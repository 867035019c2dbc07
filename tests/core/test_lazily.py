"""`import torch` that waits: tried with a package of our own, made in the test."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import pickle  # noqa: TID251  # Ray pickles what a driver gives it
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sweeper.core import lazily

SLOW = """
import builtins
builtins.slow_was_imported = getattr(builtins, "slow_was_imported", 0) + 1
import contextlib
from slow import inner, far
__version__ = "1.2"
ON = []
class Tensor:
    size = 3
class Module:
    kept = 0
    def __init__(self): self.made = True
    def named(self): return "module"
def zeros(count): return [0] * count
@contextlib.contextmanager
def no_grad():
    ON.append(True)
    yield
    ON.pop()
"""
"""The package; it counts how often it is imported."""
USER = '''
from __future__ import annotations
from collections.abc import Callable
from typing import TypeVar
import slow
from slow import Module, Tensor, inner
from slow.inner import Layer

Loss = Callable[[Tensor], Tensor]
Either = Tensor | Layer
M = TypeVar("M", bound=Module)
KINDS = (Tensor, inner.Layer)

class Net(Module):
    """A network."""
    def named(self) -> str:
        return "net of " + super().named()

class Deep(Net):
    """Derived from what waits."""

@slow.no_grad()
def still() -> bool:
    """Whether nothing is learned."""
    return bool(slow.ON)

@slow.no_grad()
def each() -> object:
    """Whether nothing is learned, twice."""
    for _ in range(2):
        yield bool(slow.ON)
'''
"""A module that imports from it as any file of ours does from torch."""


@pytest.fixture
def imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of this source while the package waits."""
    package = tmp_path / "slow"
    package.mkdir()
    (package / "__init__.py").write_text(SLOW)
    (package / "inner.py").write_text("class Layer:\n    pass\ndef flat(x): return x\n")
    (package / "far.py").write_text("value = object()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(lazily.PARTS, "slow", ("slow.inner",))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr("builtins.slow_was_imported", 0, raising=False)
    lazily.wait_for("slow")

    def load(source: str) -> ModuleType:
        (tmp_path / "user_of_slow.py").write_text(source)
        return importlib.import_module("user_of_slow")

    yield load
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("slow", "user_of_slow")
    ]:
        del sys.modules[name]


def times() -> int:
    """How often the package was imported."""
    return int(vars(builtins)["slow_was_imported"])


def test_nothing_is_imported_while_nothing_is_asked(imported: Callable[[str], ModuleType]) -> None:
    user = imported(USER)
    assert user.Either is not None and callable(user.Net)
    assert times() == 0 and lazily.waits("slow")


QUESTIONS: dict[str, Callable[[ModuleType], bool]] = {
    "a function is called": lambda user: user.slow.zeros(2) == [0, 0],
    "a class that waits is made": lambda user: user.Deep().named() == "net of module",
    "an attribute of a class is read": lambda user: user.Tensor.size == 3,
    "an instance is asked for": lambda user: not isinstance(3, user.Tensor),
    "an instance is asked for among several": lambda user: not isinstance(3, user.KINDS),
    "an alternative is asked for": lambda user: not isinstance(3, user.Either),
    "a class is asked for": lambda user: issubclass(user.Deep, user.slow.Module),
    "a function of it decorates": lambda user: user.still(),
    "a generator is decorated": lambda user: list(user.each()) == [False, False],
    "a class is hashed": lambda user: {user.Tensor: 1}[user.slow.Tensor] == 1,
    "the version is read": lambda user: user.slow.__version__ == "1.2",
    "a part is asked": lambda user: user.inner.flat(7) == 7,
    "a class is pickled": lambda user: pickle.loads(pickle.dumps(user.Net)) is user.Net,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_asked_is_answered_by_the_real_thing(
    question: str, imported: Callable[[str], ModuleType]
) -> None:
    user = imported(USER)
    assert QUESTIONS[question](user)
    assert times() == 1 and not lazily.waits("slow")
    real = sys.modules["slow"]
    assert user.slow is real and user.Tensor is real.Tensor and user.inner is real.inner
    assert type(user.Net) is type and user.Deep.__mro__[1:3] == (user.Net, real.Module)
    assert user.Net.__module__ == "user_of_slow" and user.Net.__doc__ == "A network."


@pytest.mark.parametrize(
    "line",
    (
        "from slow.far import value",
        "import slow.far",
        "from slow import zeros",
        "TOP = slow.zeros(1)",
    ),
)
def test_what_cannot_wait_is_imported_once(
    line: str, imported: Callable[[str], ModuleType]
) -> None:
    user = imported(f"import slow\nfrom slow import Tensor\n{line}\n")
    assert times() == 1 and user.slow.far.value is sys.modules["slow.far"].value
    assert sys.modules["slow.far"].__spec__ is not None
    assert user.Tensor is user.slow.Tensor


def test_a_package_that_cannot_be_imported_says_so_each_time(
    imported: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "slow/__init__.py").write_text("raise ImportError('no such library')\n")
    user = imported("import slow\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="no such library"):
            user.slow.zeros(1)


def test_a_package_that_is_there_does_not_wait(imported: Callable[[str], ModuleType]) -> None:
    finders = list(sys.meta_path)
    lazily.wait_for("contextlib")
    assert sys.meta_path == finders and not lazily.waits("contextlib") and contextlib


def test_who_waits_is_told_once_it_is_there(imported: Callable[[str], ModuleType]) -> None:
    told: list[int] = []
    sys.meta_path.pop(0)
    lazily.wait_for("slow", lambda: told.append(times()))
    user = imported(USER)
    assert not told
    user.slow.zeros(1)
    user.slow.far.value  # noqa: B018
    assert told == [1]
    lazily.wait_for("contextlib", lambda: told.append(0))
    assert told == [1, 0], "it was there before"
