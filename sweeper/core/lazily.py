"""`import torch` that waits until something is asked of torch: it takes two seconds.

A command that only reads or plans never asks. Its process calls `wait_for("torch")` before it
imports the house; from then on `import torch`, `from torch import Tensor, nn` and `from torch.nn
import functional` bind stand-ins, and `class Net(nn.Module)` is one too. The first call, attribute
or comparison of any of them imports torch and puts the real things in their place, in every module.
Files say nothing of it: they import as ever, and so do those of users.

What is asked for while a module is imported is loaded at once, but for classes and `PARTS`: a
decorator of torch, or a constant made by it, at the top of a file makes every command wait.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import threading
import types
from abc import ABCMeta
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

PARTS = {
    "numpy": ("numpy.typing",),
    "torch": ("torch.nn", "torch.nn.functional", "torch.autograd", "torch.fx", "torch.overrides"),
}
"""What can wait -> its submodules that can be imported from without it."""
CONTEXTS = ("no_grad", "inference_mode")
"""What decorates functions."""
_LOCK = threading.RLock()


def wait_for(name: str, then: Callable[[], None] = lambda: None) -> None:
    """Let a package that nothing has imported yet wait, in this process.

    Args:
        name: One of `PARTS`.
        then: Called once it is there, now if it is.
    """
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Finder(name, then))


def waits(name: str) -> bool:
    """Whether a package was not needed so far."""
    return type(sys.modules.get(name)) in (_Waiting, types.NoneType)


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for a package and its parts; loads it where another submodule is asked."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name = name
        self.then = then
        self.waits = True
        """Whether nothing was asked of the package so far."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        if not (self.waits and f"{fullname}.".startswith(f"{self.name}.")):
            return None
        if fullname == self.name or fullname in PARTS[self.name]:
            return ModuleSpec(fullname, self, is_package=True)
        self.load()
        module = importlib.import_module(fullname)
        module.__spec__ = ModuleSpec(fullname, _There(module))  # importlib takes it from there
        return module.__spec__

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Waiting(spec.name, self)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: that is what waits."""

    def load(self) -> types.ModuleType:
        """Import the package and put what stands for it out of the way; once."""
        with _LOCK:
            if self.waits:
                self.waits = False
                waiting = [name for name in (self.name, *PARTS[self.name]) if name in sys.modules]
                stand_ins = {name: sys.modules.pop(name) for name in waiting}
                try:
                    for name in (self.name, *PARTS[self.name]):
                        importlib.import_module(name)
                except BaseException:
                    sys.modules.update(stand_ins)
                    self.waits = True
                    raise
                _replace(self)
                self.then()
            return sys.modules[self.name]


class _There(Loader):
    """Gives a module that was imported while its import began."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return self.module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.spec  # as it was before this import


class _Waiting(types.ModuleType):
    """Stands for a module."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self.__dict__["_finder"] = finder

    def __getattr__(self, name: str) -> Any:
        finder: _Finder = self.__dict__["_finder"]
        if finder.waits:
            if name.startswith("__") and name != "__version__":
                raise AttributeError(name)  # what an import statement looks for
            if (whole := f"{self.__name__}.{name}") in PARTS[finder.name]:
                return importlib.import_module(whole)
            if name in CONTEXTS:
                return lambda *given: _Context(lambda: getattr(self.real(), name)(*given))
            if name[0].isupper():
                made = _StandIn(finder, lambda: getattr(self.real(), name))
                return self.__dict__.setdefault(name, made)
        return getattr(self.real(), name)

    def real(self) -> types.ModuleType:
        """The module itself."""
        self.__dict__["_finder"].load()
        return sys.modules[self.__name__]


class _Context(contextlib.ContextDecorator):
    """Stands for `torch.no_grad()`: as a decorator it waits for the first call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def _recreate_cm(self) -> _Context:
        return _Context(self._make)

    def __call__(self, function: Any) -> Any:
        if not inspect.isgeneratorfunction(function):
            return super().__call__(function)

        @functools.wraps(function)
        def values(*args: Any, **kwargs: Any) -> Any:  # torch ends it between the values
            return (yield from self._make()(function)(*args, **kwargs))

        return values

    def __enter__(self) -> Any:
        self._made = self._make()
        return self._made.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._made.__exit__(*error)


class _StandIn:
    """Stands for a class: of a waiting module, or derived from one."""

    def __init__(self, finder: _Finder, make: Callable[[], Any]) -> None:
        self._finder = finder
        self._make = make
        self._made: Any = None

    def real(self) -> Any:
        """The class itself."""
        self._finder.load()  # which may make it
        if self._made is None:
            with _LOCK:
                if self._made is None:
                    self._made = self._make()
        return self._made

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (_Derived,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.real()(*args, **kwargs)

    def __getitem__(self, item: Any) -> Any:
        return _StandIn(self._finder, lambda: self.real()[item])

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self.real())

    def __subclasscheck__(self, cls: type) -> bool:
        return issubclass(cls, self.real())

    def __or__(self, other: Any) -> Any:
        return _StandIn(self._finder, lambda: self.real() | _real(other))

    def __ror__(self, other: Any) -> Any:
        return _StandIn(self._finder, lambda: _real(other) | self.real())

    def __eq__(self, other: object) -> bool:
        if self._finder.waits and type(other) is not _StandIn:
            return False  # what is there is none of what waits
        return bool(self.real() == _real(other))

    def __hash__(self) -> int:
        return hash(self.real())

    def __repr__(self) -> str:
        return repr(self.real())

    def __reduce__(self) -> tuple[Any, ...]:
        return _real, (self.real(),)


class _Late(ABCMeta):
    """Makes a stand-in of a class statement whose bases wait."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any
    ) -> Any:
        stated = namespace.pop("__orig_bases__", None)
        if stated is None:  # `_Derived` itself
            return super().__new__(cls, name, bases, namespace)

        def make() -> Any:
            own = types.new_class(name, tuple(map(_real, stated)), kwargs, namespace_of)
            return own

        def namespace_of(body: dict[str, Any]) -> None:
            body.update(namespace)

        finders = [base._finder for base in stated if type(base) is _StandIn]
        return _StandIn(finders[0], make)


class _Derived(metaclass=_Late):
    """What a class statement sees in place of a base that waits."""


def _real(thing: Any) -> Any:
    return thing.real() if type(thing) in (_StandIn, _Waiting) else thing


def _replace(finder: _Finder) -> None:
    """Put the real things into every module that holds a stand-in of a package."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        for name, value in list(names.items()):
            if type(value) in (_StandIn, _Waiting) and value.__dict__["_finder"] is finder:
                names[name] = value.real()
