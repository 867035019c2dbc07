"""What every test runs under: one thread, and decoded data in a folder of the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import torch

from tests.support import pictures

# The same examples on every machine; HYPOTHESIS_PROFILE=default looks for new ones.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

os.environ.setdefault("RAY_AUTH_MODE", "token")  # before any test imports ray


@pytest.fixture(scope="session", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two cells at one thread are faster than one at two, and sums do not depend on the machine.

    What is kept of data, networks and code is shared by the session's processes, as by those of a
    sweep.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEPER_CACHE", str(shared / "decoded"))
        yield
    torch.set_num_threads(before)


@pytest.fixture
def fruit(tmp_path: Path) -> SimpleNamespace:
    """A small Parquet data set of files; see `pictures.fruit`."""
    return pictures.fruit(tmp_path)
