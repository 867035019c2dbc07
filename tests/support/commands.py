"""The command line in a test: a sweep of three cells, and a command called here or by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass

import pytest

from sweeper.cli import app
from tests.support.places import ROOT

SWEEP = """
name: tiny
datasets: [{dataset: digits, train_size: 300, test_size: 100}]
models: [{model: tiny, width: 4}]
attacks: [badnets]
defenses: [none, {defense: fine-tuning, epochs: 1}]
recipe: {epochs: 1}
"""


def defended(defense: str) -> str:
    """That sweep with another defense in place of fine-tuning."""
    return SWEEP.replace("{defense: fine-tuning, epochs: 1}", defense)


@dataclass
class Said:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of an error of the user's."""
        assert self.code == 2 and not self.out, self
        (line,) = self.err.splitlines()
        assert "Traceback" not in line
        return line


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    """Run a command in this process, and take what it says."""
    capsys.readouterr()
    return Said(entered(*words), *capsys.readouterr())


def entered(*words: object) -> int:
    """Run a command in this process, as its entry point does; its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["sweeper", *map(str, words)])
        app.main()
    return int(left.value.code or 0)


def loaded(modules: Collection[str], *words: object) -> tuple[str, set[str]]:
    """Run a command in a process of its own: what it printed, and which of these it imported."""
    line = [sys.executable, "-X", "importtime", "-m", "sweeper", *map(str, words)]
    ran = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    told = [text.split("|") for text in ran.stderr.splitlines()]
    assert not ran.returncode, [text for text, *more in told if not more]
    return ran.stdout, set(modules) & {parts[-1].strip() for parts in told if len(parts) == 3}
