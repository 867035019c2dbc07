"""Commands that only read wait for no library whose work was not asked for, and for no garbage."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper import cli
from sweeper.cli import app
from sweeper.core import lazily
from tests.support.commands import call, loaded

HEAVY = {
    "torch": "torch._C",
    "pandas": "pandas._libs",
    "pyarrow": "pyarrow.lib",
    "numpy": "numpy._core",
    "scipy": "scipy._lib",
    "matplotlib": "matplotlib.cbook",
    "torchvision": "torchvision",
    "sklearn": "sklearn.base",
    "ray": "ray._raylet",
    "yaml": "yaml",
    "rich": "rich",
}
"""Library -> the module of it that says it was imported, not only named."""
FILES = {"numpy", "pyarrow", "yaml"}
ROWS = FILES | {"pandas"}
READING = {
    "--version": set(),
    "--help": set(),
    "list attacks": set(),
    "list defenses": set(),
    "list datasets": set(),
    "list models": set(),
    "list sweeps": {"yaml"},
    "list analyses": FILES,
    "cluster grafana": set(),
    "describe badnets": FILES,
    "plan SWEEP --store STORE": FILES,
    "run SWEEP --store STORE": ROWS | {"rich"},  # with nothing to do
    "status SWEEP --store STORE": FILES,
    "watch SWEEP --store STORE": FILES | {"rich"},
    "du --store STORE": FILES | {"rich"},
    "gc --store STORE --sweep tiny": FILES | {"rich"},
    "rows SWEEP --store STORE": ROWS,
    "rows SWEEP --store STORE --set seeds=[0]": ROWS,
    "table SWEEP --store STORE --where attack=badnets": ROWS,
    "published": ROWS,
    "diff STORE STORE": ROWS,
    "report SWEEP --store STORE --out OUT": ROWS,
    "plot bars SWEEP --store STORE --out OUT": ROWS | {"matplotlib"},
}
"""Command -> what it may import of all that."""


@pytest.mark.parametrize("line", READING)
def test_a_command_that_reads_imports_no_more_than_it_needs(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], tmp_path: Path, line: str
) -> None:
    out = tmp_path / ("page.html" if line.startswith("report") else "figure.svg")
    places = {"SWEEP": done[0], "STORE": done[1], "OUT": out}
    words = [str(places.get(word, word)) for word in line.split()]
    if READING[line] >= FILES:  # the first asks for triggers, quantiles, networks: they are kept
        assert call(capsys, *words).code == 0
    said, found = loaded(HEAVY.values(), *words)
    assert said
    assert {name for name, module in HEAVY.items() if module in found} <= READING[line]


def test_garbage_is_seldom_looked_for_until_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, within = gc.get_threshold(), list[int]()
    there: dict[str, Callable[[], None]] = {}
    monkeypatch.setattr(lazily, "wait_for", lambda name, then=None: there.update({name: then}))
    monkeypatch.setattr(app, "main", lambda: within.append(gc.get_threshold()[0]))
    try:
        cli.main()
        assert within[0] > 10 * usual[0]
        there["torch"]()
        assert gc.get_threshold() == usual, "tensors in cycles hold memory"
    finally:
        gc.set_threshold(*usual)
