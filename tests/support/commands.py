"""The command line in a test: a sweep of three cells, and a call of a command in this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from sweeper.cli import app

SWEEP = """
name: tiny
datasets: [{dataset: digits, train_size: 300, test_size: 100}]
models: [tiny]
attacks: [badnets]
defenses: [none, {defense: fine-tuning, epochs: 1}]
recipe: {epochs: 1}
"""


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
    """Run a command in this process, as its entry point does."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sweeper", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            app.main()
    code = left.value.code
    return Said(int(code or 0), *capsys.readouterr())
