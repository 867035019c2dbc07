"""The code a class runs, as a hash: of its module and of the modules beside it that it imports.

Comments, docstrings and formatting do not count, nor whether a defense is `light`, nor what is
installed: torch, and `sweeper` itself, whose engine has a hash of its own. Imports are found in the
source, those inside functions too; code that is reached in another way, and files that are no
Python, are not seen.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar, cast

from sweeper.core import kept, syntax
from sweeper.core.errors import SweepError
from sweeper.core.search import HOUSE

_METHODS = ("attacks", "defenses")
_SHIPPED = (*_METHODS, "sweeper")
_CONTRACTS = ("attacks.base", "defenses.base")
"""Part of the engine, not of the methods."""
_INSTALLED = ("site-packages", "dist-packages")
DIGITS = 12
Asked = TypeVar("Asked", bound=Callable[..., Any])
_SEEN: ContextVar[dict[Any, Any] | None] = ContextVar("_SEEN", default=None)


@contextlib.contextmanager
def still() -> Iterator[None]:
    """Take the files as they are for as long as this lasts: each is looked at once."""
    before = _SEEN.set({})
    try:
        yield
    finally:
        _SEEN.reset(before)


def _once(look: Asked) -> Asked:
    """Have a function keep its answers within `still`."""

    @functools.wraps(look)
    def asked(*given: Any) -> Any:
        seen = _SEEN.get()
        if seen is None:
            return look(*given)
        key = look, given
        if key not in seen:
            seen[key] = look(*given)
        return seen[key]

    return cast(Asked, asked)


@functools.cache
def of(*classes: type) -> str:
    """Return the hash of the code these classes run, as it was when first asked: 12 hex digits."""
    return _now(*classes)


def outside(cls: type) -> dict[str, Path]:
    """Return the code a class runs that neither ships nor is installed.

    Returns:
        Name of a module or package -> its file, or the folder of all the package.
    """
    found = {}
    for module, path in _files(cls).items():
        top, *inner = module.split(".")
        if top not in (*_SHIPPED, "__main__") and not set(_INSTALLED) & set(path.parts):
            package = len(inner) + (path.name == "__init__.py")
            found[top] = path.parents[package - 1] if package else path
    return found


@functools.cache
def engine(family: type) -> str:
    """Return the hash of what all methods stand on: training, metrics, splits, the contracts.

    Args:
        family: The model's; of `sweeper.models`, what it imports counts, other models do not.
    """
    engines = sorted(path.stem for path in (HOUSE / "sweeper/engine").glob("*.py"))
    every_task = sorted(path.stem for path in (HOUSE / "sweeper/tasks").glob("*.py"))
    roots = [f"sweeper.engine.{name}" for name in engines]
    roots += [f"sweeper.tasks.{name}" for name in every_task]
    roots += ["sweeper.data.splits", "sweeper.core.seeds", *_CONTRACTS]
    files = _reached([(name, found) for name in roots if (found := _file(HOUSE, name))], HOUSE)
    every = {**files, **_files(family)}
    return _joined({name: _read(path)[0] for name, path in every.items()})


def version(built: Any, *classes: type) -> int | str:
    """Return what a key says of the code: the version, with the hash where that does not tell all.

    It does for what ships as committed; code from outside, and code changed since the commit, has
    its hash there too: `1+0f3a59c2b7d1`.

    Args:
        built: A method, stage or model family; its `version` is the number.
        classes: Whose code it runs.

    Raises:
        SweepError: The files changed since this process imported them: it would run old code; or
            the version is no whole number.
    """
    number: int = built.version
    if type(number) is not int:
        raise SweepError(
            f"{type(built).__module__}: version: needs a whole number, not {number!r}: raise it "
            "by one where the same options give other numbers"
        )
    if of(*classes) != _now(*classes):
        raise SweepError(
            f"the code of {type(built).__module__} changed since this process imported it, which "
            "would run the old code: start anew (in a notebook: restart the kernel)"
        )
    return number if all(map(_committed, classes)) else f"{number}+{of(*classes)}"


def expect(said: int | str, *classes: type) -> None:
    """See that this process has the code a key was made with.

    Args:
        said: What `version` returned.
        classes: Whose code runs here.

    Raises:
        RuntimeError: It has other code.
    """
    planned = str(said).partition("+")[2]
    if planned and planned != of(*classes):
        raise RuntimeError(
            f"the code of {classes[0].__module__} here is not the one the sweep was planned with: "
            "it was edited meanwhile, or this machine has other files: run the command again"
        )


def of_modules(*names: str) -> str:
    """Return the hash of modules of ours, without what they import."""
    files = {name: _file(HOUSE, name) for name in names}
    return _joined({name: _read(file)[0] for name, file in files.items() if file})


@_once
def _now(*classes: type) -> str:
    """The hash of the code as the files are now."""
    hashes: dict[str, str] = {}
    for cls in classes:
        files = _files(cls)
        hashes |= {name: _read(path)[0] for name, path in files.items()}
        if not files:
            hashes[f"{cls.__module__}:{cls.__qualname__}"] = _of_loaded(cls)
    return _joined(hashes)


def _joined(hashes: dict[str, str]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:DIGITS]


# Which files


@_once
def _source(cls: type) -> Path | None:
    """The file a class stands in; None for one made in a notebook."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    path = Path(file).resolve() if file else None
    return path if path and path.suffix == ".py" and path.is_file() else None


@_once
def _files(cls: type) -> dict[str, Path]:
    """Dotted name -> file of all modules whose code a class runs; empty without a source."""
    path, module = _source(cls), cls.__module__
    if path is None:
        return {}
    depth = module.count(".") + (path.name == "__init__.py")
    root = path.parents[depth]
    if _file(root, module) != path:  # a script, or a folder that was put into a package's path
        root = path.parent
    return _reached([(module, path)], root)


def _reached(start: list[tuple[str, Path]], root: Path) -> dict[str, Path]:
    """The modules these import, and theirs; `root` is the folder their names begin in."""
    found: dict[str, Path] = {}
    left = list(start)
    own, family = start[0][0].partition(".")[0], start[0][0].rpartition(".")[0]
    while left:
        module, path = left.pop()
        if module not in found:
            found[module] = path
            left += _beside(module, path, root, own, family)
    return found


@_once
def _beside(
    module: str, path: Path, root: Path, own: str, family: str
) -> tuple[tuple[str, Path], ...]:
    """The modules one imports whose code counts, for `_reached`: names and files."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for part in dict.fromkeys(part for name in _imports(path, package) for part in _prefixes(name)):
        top = part.partition(".")[0]
        if top == "sweeper":
            wanted = family == "sweeper.models" and part.startswith("sweeper.models")
        elif top in _METHODS:
            wanted = part not in _CONTRACTS
        else:
            wanted = top == own or root.name not in _INSTALLED
        place = HOUSE if top in _SHIPPED else root
        if wanted and (file := _file(place, part)):
            found.append((part, file))
    return tuple(found)


def _prefixes(name: str) -> Iterator[str]:
    """`a.b.c` -> a, a.b, a.b.c: importing the last runs all."""
    parts = name.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


@_once
def _file(root: Path, module: str) -> Path | None:
    """The file of a module below a folder; None where it is no module of it."""
    place = os.path.join(root, *module.split("."))
    for path in (f"{place}.py", os.path.join(place, "__init__.py")):
        if os.path.isfile(path):
            return Path(path)
    return None


def _imports(path: Path, package: str) -> Iterator[str]:
    """Dotted names a module may import; of `from a import b` both a and a.b."""
    for level, base, names in _read(path)[1]:
        if level:
            above = package.split(".")[: max(0, package.count(".") + 2 - level)]
            base = ".".join(filter(None, [*above, base]))
        yield from filter(None, (base, *(".".join(filter(None, (base, name))) for name in names)))


# What stands in them


@_once
def _read(path: Path) -> tuple[str, list[syntax.Import]]:
    """The hash of a module's source, and its imports: (level, module, names)."""
    found = path.stat()
    return _parsed(path, found.st_mtime_ns, found.st_size)


@functools.cache
def _parsed(path: Path, _time: int, _size: int) -> tuple[str, list[syntax.Import]]:
    text, name = path.read_bytes(), _reader().copy()
    name.update(text)
    file = kept.cache() / "code" / f"{name.hexdigest()}.json"
    digest, imports = kept.kept(file, lambda: syntax.parsed(text))
    return digest, imports


@functools.cache
def _reader() -> Any:
    """A hash begun with what decides how a text is read: `syntax`, and this Python."""
    return hashlib.sha256(Path(syntax.__file__).read_bytes() + sys.version.encode())


def _of_loaded(cls: type) -> str:
    """The hash of a class without a source: of the byte code of its functions, and its values."""
    words = []
    for name, value in sorted(vars(cls).items()):
        if name == "light":
            continue
        inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        if code := getattr(inner, "__code__", None):
            words.append(f"{name} {_of_bytes(code)}")
        elif isinstance(value, str | int | float | tuple | frozenset) and name[:2] != "__":
            words.append(f"{name} {_spelled(value)}")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _of_bytes(code: CodeType) -> str:
    constants = [_of_bytes(c) if isinstance(c, CodeType) else _spelled(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _spelled(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


# What is committed


@_once
def _committed(cls: type) -> bool:
    """Whether a class ships, and its code is what git has, where there is a git checkout."""
    path = _source(cls)
    if path is None or not any(path.is_relative_to(HOUSE / name) for name in _SHIPPED):
        return False
    changed = _uncommitted()
    return not any(_edited(file) for file in changed and changed.intersection(_files(cls).values()))


@functools.cache
def _uncommitted() -> frozenset[Path]:
    """Files that git says are changed or new; none without git, or where it does not have ours.

    An installed copy may lie in a repository of somebody else's, as untracked as all of its `venv`.
    """
    top = next((place for place in (HOUSE, *HOUSE.parents) if (place / ".git").exists()), None)
    if top is None or not _git("ls-files", "--", *_SHIPPED):
        return frozenset()
    what = ["status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--", *_SHIPPED]
    return frozenset(top / line[3:] for line in _git(*what).split("\0") if line)


def _edited(path: Path) -> bool:
    """Whether a changed file differs from what is committed in more than comments."""
    return _of_head(path) != _read(path)[0]


@functools.cache
def _of_head(path: Path) -> str:
    """The hash of a file as it is committed; of an empty one where it is not."""
    try:
        return syntax.parsed(_git("show", f"HEAD:./{path.relative_to(HOUSE).as_posix()}"))[0]
    except (SyntaxError, ValueError):
        return ""


def _git(*words: str) -> str:
    """What git says here; empty where it does not answer."""
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        said = subprocess.run(
            ["git", *words], cwd=HOUSE, env=quiet, capture_output=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.decode(errors="replace")
