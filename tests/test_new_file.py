"""A new method is one new file: written into a copy of the tree, it is listed, run and tested."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import sweeps

ROOT = Path(__file__).parent.parent
ATTACK = '''"""Foo: a white stripe down the left edge."""

from dataclasses import dataclass

from torch import Generator, Tensor

from attacks.base import Attack
from sweeper.types import State


@dataclass(frozen=True, kw_only=True)
class Foo(Attack):
    """Paints the left columns."""

    columns: int = 1
    """Columns painted."""

    title = "Foo"
    paper = "test"

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Paint."""
        out = images.clone()
        out[..., : self.columns] = 255
        return out
'''
DEFENSE = '''"""Foo: gives the victim back."""

from dataclasses import dataclass

from defenses.base import Case, Defense
from sweeper.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Foo(Defense):
    """Does nothing, honestly."""

    title = "Foo"
    paper = "test"
    kind = "repair"
    sees = frozenset({"model"})

    def defend(self, case: Case) -> Outcome:
        """Return the victim."""
        return Outcome(model=case.model)
'''
BROKEN = ATTACK.replace("out = images.clone()", "out = images")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages and tests, nothing installed."""
    skip = shutil.ignore_patterns("__pycache__")
    for part in ("attacks", "defenses", "sweeper", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "attacks/foo.py").write_text(ATTACK)
    (tmp_path / "defenses/foo.py").write_text(DEFENSE)
    return tmp_path


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", ["attacks", "defenses"])
def test_it_is_listed(tree: Path, kind: str) -> None:
    listed = python(tree, "-m", "sweeper.cli", "list", kind, "--json")
    records = {record["name"]: record for record in json.loads(listed.stdout)}
    assert records["foo"]["title"] == "Foo"


def test_it_runs(tree: Path) -> None:
    path = sweeps.write(
        tree,
        attacks=["foo", {"attack": "foo", "columns": 2, "as": "wide"}],
        poison_rates=[0.1],
        seeds=1,
        defenses=["none", "foo"],
    )
    store = tree / "store"
    ran = python(
        tree, "-m", "sweeper.cli", "run", str(path), "--store", str(store), "--executor", "inline"
    )
    assert ran.returncode == 0, ran.stderr
    assert len(sweeps.frame(store)) == 4


def test_it_is_contract_tested(tree: Path) -> None:
    for kind in ("attacks", "defenses"):
        suite = f"tests/test_contract_{kind}.py"
        found = python(tree, "-m", "pytest", suite, "-k", "foo", "-n0", "-p", "no:cacheprovider")
        assert found.returncode == 0 and "passed" in found.stdout, found.stdout


def test_a_broken_one_fails_its_contract(tree: Path) -> None:
    (tree / "attacks/foo.py").write_text(BROKEN)
    suite = "tests/test_contract_attacks.py"
    found = python(tree, "-m", "pytest", suite, "-k", "foo", "-n0", "-p", "no:cacheprovider")
    assert found.returncode == 1 and "failed" in found.stdout, found.stdout
