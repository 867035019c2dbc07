"""`sweeper new` writes one file: in a copy of the tree it is listed, run and contract-tested."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.cli import new
from tests.support import sweeps
from tests.support.places import ROOT


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages and tests, nothing installed, with an attack and a defense `foo`."""
    skip = shutil.ignore_patterns("__pycache__")
    for part in ("attacks", "defenses", "sweeper", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for kind in ("attack", "defense"):
        new.write(kind, "foo")
        (tmp_path / f"tests/{kind}s/test_foo.py").rename(
            tmp_path / f"tests/{kind}s/test_{kind}_foo.py"
        )
    return tmp_path


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


COMMANDS = """
import json, sys
from sweeper.cli.app import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["sweeper", *words]
    try:
        main()
    except SystemExit as left:
        assert not left.code, words
    print("---")
"""


def test_it_is_listed_and_runs(tree: Path) -> None:
    path = sweeps.write(
        tree,
        attacks=["foo", {"attack": "foo", "side": 3, "as": "wide"}],
        poison_rates=[0.1],
        seeds=1,
        defenses=["none", {"defense": "foo", "epochs": 1}],
    )
    store = tree / "store"
    run = ["run", str(path), "--store", str(store), "--executor", "inline"]
    lists = [["list", kind, "--json"] for kind in ("attacks", "defenses")]
    ran = python(tree, "-c", COMMANDS, json.dumps([*lists, run]))
    assert ran.returncode == 0, ran.stderr
    for listed in ran.stdout.split("---\n")[:2]:
        records = {record["name"]: record for record in json.loads(listed)}
        assert records["foo"]["title"] == "Foo"
    assert len(sweeps.frame(store)) == 4


@pytest.mark.slow
def test_it_is_contract_tested(tree: Path) -> None:
    for kind in ("attacks", "defenses"):
        suite = f"tests/house/test_contract_{kind}.py"
        found = python(tree, "-m", "pytest", suite, "-k", "foo", "-n0", "-p", "no:cacheprovider")
        assert found.returncode == 0 and "passed" in found.stdout, found.stdout


@pytest.mark.slow
def test_a_broken_one_fails_its_contract(tree: Path) -> None:
    path = tree / "attacks/foo.py"
    path.write_text(path.read_text().replace("out = images.clone()", "out = images"))
    suite = "tests/house/test_contract_attacks.py"
    found = python(tree, "-m", "pytest", suite, "-k", "foo", "-n0", "-p", "no:cacheprovider")
    assert found.returncode == 1 and "failed" in found.stdout, found.stdout
