"""What the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import SWEEP, entered


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep: (its file, its store)."""
    folder = tmp_path_factory.mktemp("cli")
    path, store = folder / "tiny.yaml", folder / "store"
    path.write_text(SWEEP)
    assert entered("run", path, "--store", store, "--executor", "inline") == 0
    return path, store
