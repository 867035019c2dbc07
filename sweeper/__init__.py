"""Sweeps of backdoor attacks against backdoor defenses; what a notebook needs is here by name."""

from typing import TYPE_CHECKING, Any

from sweeper.core.errors import SweepError

if TYPE_CHECKING:
    from sweeper.api import Sweep, Victim, load_victim

__all__ = ["Sweep", "SweepError", "Victim", "load_victim"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import sweeper` alone is cheap."""
    if name in __all__:
        from sweeper.core import search

        search.require_ours()
        from sweeper import api

        return getattr(api, name)
    raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
