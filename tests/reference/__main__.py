"""Runs every comparison and writes docs/reference.md from what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.reference import golden, page


def main() -> int:
    """Write the page; the exit code of the tests, which must pass."""
    golden.writing = True
    code = pytest.main([str(Path(__file__).parent), "-n0", "-q", "-m", "not slow"])
    if not code:
        golden.PAGE.write_text(page.text(golden.rows), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
