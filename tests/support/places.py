"""Where tests find things: the checkout, and real data where this machine has some."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
DATA = Path(os.environ.get("SWEEPER_DATA") or ROOT.parent / "shared" / "data")
"""Folder of the Parquet data sets; tests that need it are marked `data`, or skip."""


def data_folder() -> Path | None:
    """The folder of the Parquet data sets, where there is one."""
    return DATA if (DATA / "cifar10" / "train.parquet").is_file() else None
