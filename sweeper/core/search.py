"""Where Python looks for modules: the same, in the same order, in the processes we start.

Python begins with the folder a process runs in, and so does Ray: there a folder `attacks` of the
user's would be imported in place of ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from sweeper.core.errors import SweepError

HOUSE = Path(__file__).resolve().parents[2]
"""The folder of `attacks`, `defenses` and `sweeper`."""
SENT = "SWEEPER_METHODS"
"""Variable of the environment where methods of one's own were sent to: the hash of them all."""
FOLDER = "sweeper-methods"
"""Name of the folder they lie in. Ray puts the one above before all others, of which nothing can be
imported but this, whose name is no module's: so their own folder may come last."""
Environment = Mapping[str, str | None]
"""Variables of the environment; None is one that is not set."""
_READ = ("PYTHONPATH", "PYTHONSAFEPATH")


def require_ours() -> None:
    """See that `attacks` and `defenses` are those beside this `sweeper`; imports neither.

    Raises:
        SweepError: Python finds others first.
    """
    for name in ("attacks", "defenses"):
        found = importlib.util.find_spec(name)
        inside = list(found.submodule_search_locations or ()) if found else []
        place = next(iter(inside), found.origin if found else None)
        if place and Path(place).resolve() != HOUSE / name:
            raise SweepError(
                f"{name}: {place} is imported in place of the sweeper's own {HOUSE / name}: begin "
                "commands with `sweeper`, not `python -m sweeper`, and take its folder out of "
                "PYTHONPATH; in Python, rename it or start in another folder"
            )


@contextlib.contextmanager
def shared() -> Iterator[Environment]:
    """Have the Pythons that are started meanwhile look where this one does.

    Yields:
        The environment as it was, to be `put` where they should start others as usual.
    """
    before = {name: os.environ.get(name) for name in _READ}
    folders = [place or os.getcwd() for place in sys.path]
    put(dict(zip(_READ, (os.pathsep.join(folders), "1"), strict=True)))
    try:
        yield before
    finally:
        put(before)


def put(environment: Environment) -> None:
    """Set these variables of the environment."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def sent() -> str | None:
    """Return where methods arrived that were sent to this process; None where none were."""
    if SENT not in os.environ:
        return None
    return next((str(p) for p in (Path(place, FOLDER) for place in sys.path) if p.is_dir()), None)
