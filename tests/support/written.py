"""Sweep files written for tests: a whole one in five lines, and what is said of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeper.core.errors import SweepError
from sweeper.plan import spec
from sweeper.plan.sweep import Sweep

BASE = {
    "name": "study",
    "datasets": "[digits]",
    "models": "[tiny]",
    "attacks": "[badnets]",
    "defenses": "[none, fine-tuning]",
}
"""Key -> YAML; line 1 to 5 of a file in this order."""
JARGON = re.compile(r"Input should|validation|valid \w+,|type=|dict\[|Traceback|pydantic")


def text(extra: str = "", **changes: str) -> str:
    return "\n".join(f"{key}: {value}" for key, value in {**BASE, **changes}.items()) + "\n" + extra


def refused(folder: Path, content: str, *overrides: str) -> list[str]:
    """The lines of the error, without the folder before the file."""
    path = folder / "study.yaml"
    path.write_text(content)
    with pytest.raises(SweepError) as caught:
        spec.load(str(path), overrides)
    said = str(caught.value).replace(f"{path}", "study.yaml")
    assert not JARGON.search(said), f"not the user's words: {said}"
    return said.splitlines()


def loaded(folder: Path, content: str, *overrides: str) -> Sweep:
    path = folder / "study.yaml"
    path.write_text(content)
    return spec.load(str(path), overrides)
