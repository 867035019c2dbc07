"""What the tests of commands share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeper.cli import app
from tests.support.commands import SWEEP


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep: (its file, its store)."""
    folder = tmp_path_factory.mktemp("cli")
    path, store = folder / "tiny.yaml", folder / "store"
    path.write_text(SWEEP)
    words = ["sweeper", "run", str(path), "--store", str(store), "--executor", "inline"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", words)
        app.main()
    assert not left.value.code
    return path, store
