"""Several nodes of Ray that are all this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray

from tests.support.places import ROOT


def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a fixture: a folder is a store that all nodes share, and no Ray is left behind."""
    monkeypatch.setenv("SWEEPER_SHARED_STORE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    yield
    ray.shutdown()
