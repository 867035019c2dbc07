"""Shapes of resources: which one a cell has, what a sweep file may say of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from defenses.base import Defense
from sweeper.core import catalog
from sweeper.core.types import Facts
from sweeper.plan import matrix, spec
from sweeper.plan.sweep import Resources, Shape
from sweeper.run import driver
from tests.support.sweeps import SMALL
from tests.support.written import loaded, refused, text

GPUS = "resources:\n  train: {gpus: 1}\n  defend: {gpus: 0.25}\n  light: {cpus: 2}\n"
FACTS = Facts("digits", "d", 10, (1, 8, 8), (100,) * 10, 1000, 100)


@pytest.mark.parametrize(
    ("declared", "train", "defend", "light"),
    [
        ({}, (1, 0), (1, 0), (1, 0)),
        ({"cpus": 2, "gpus": 0.5}, (2, 0.5), (2, 0.5), (2, 0.5)),
        ({"gpus": 0.5, "train": {"gpus": 1}}, (1, 1), (1, 0.5), (1, 0.5)),
        ({"train": {"gpus": 1}}, (1, 1), (1, 0), (1, 0)),
        ({"gpus": 1, "defend": {"gpus": 0.25}}, (1, 1), (1, 0.25), (1, 0.25)),
        ({"cpus": 4, "gpus": 1, "light": {"cpus": 2}}, (4, 1), (4, 1), (2, 0)),
    ],
    ids=str,
)
def test_a_shape_that_is_not_named_is_the_next_larger_ones(
    declared: dict[str, Any], train: Any, defend: Any, light: Any
) -> None:
    resources = Resources.model_validate(declared)
    found = [resources.of(name) for name in ("train", "defend", "light")]
    assert found == [Shape(cpus=cpus, gpus=gpus) for cpus, gpus in (train, defend, light)]
    assert resources.shapes == tuple(dict.fromkeys(found)), "each once"


MISTAKES = [
    ("unknown key of a shape", "resources:\n  cpus: 1\n  train: {gpu: 1}", 8,
     "resources.train: no key 'gpu', did you mean 'gpus' or 'cpus'? Known: cpus, gpus"),
    ("a shape in a shape", "resources:\n  train:\n    light: {cpus: 1}", 8,
     "resources.train: no key 'light'"),
    ("unknown shape", "resources: {lite: {cpus: 1}}", 6,
     "resources: no key 'lite', did you mean 'light'?"),
    ("a shape without anything", "resources:\n  gpus: 1\n  light: {}", 8,
     "resources.light: needs what its cells are given, such as {cpus: 1}, not {}"),
    ("a shape of nothing", "resources:\n  gpus: 1\n  light:", 8,
     "resources.light: needs what its cells are given, such as {cpus: 1}, not None"),
    ("a shape that is a number", "resources: {train: 1}", 6,
     "resources.train: needs what its cells are given, such as {cpus: 1}, not 1"),
    ("one and a half GPUs", "resources:\n  defend:\n    gpus: 1.5", 8,
     "resources.defend.gpus: 1.5 is neither a share of one GPU nor a whole number"),
    ("no CPU", "resources: {light: {cpus: 0}}", 6,
     "resources.light.cpus: needs a number of at least 1, not 0"),
    ("truth for a number", "resources: {light: {cpus: yes}}", 6,
     "resources.light.cpus: needs a number, not True"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "line", "said"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_in_a_shape_is_one_sentence_with_its_line(
    tmp_path: Path, extra: str, line: int, said: str
) -> None:
    (found,) = refused(tmp_path, text(extra))
    assert found.startswith(f"study.yaml:{line}: {said}"), found


def test_a_mistake_in_a_shape_that_is_set_names_the_option(tmp_path: Path) -> None:
    (found,) = refused(tmp_path, text(), "resources.light.gpus=1.5")
    assert found.startswith("--set resources.light.gpus=1.5: resources.light.gpus: 1.5 is neither")


def test_shapes_are_set_from_the_command_line(tmp_path: Path) -> None:
    asked = ("resources.light.cpus=4", "resources.gpus=0.5", "resources.train.cpus=8")
    resources = loaded(tmp_path, text(GPUS), *asked).resources
    assert resources.of("train") == Shape(cpus=8, gpus=1)
    assert resources.of("light") == Shape(cpus=4)
    assert (resources.cpus, resources.gpus) == (1, 0.5)
    alone = loaded(tmp_path, text(), "resources.light.cpus=4").resources
    assert alone.of("light") == Shape(cpus=4) and alone.of("train") == Shape()
    whole = loaded(tmp_path, text(GPUS), "resources={cpus: 1}").resources
    assert whole == Resources(), "one option takes every GPU back"


@pytest.mark.parametrize("extra", ["", GPUS, "resources: {gpus: 0.5, light: {cpus: 1}}\n"])
def test_a_sweep_that_is_kept_as_a_file_has_the_shapes_it_had(tmp_path: Path, extra: str) -> None:
    sweep = loaded(tmp_path, text(extra))
    again = loaded(tmp_path, driver.as_file(sweep))
    assert again == sweep and again.resources.shapes == sweep.resources.shapes


def plan(**changes: Any) -> matrix.Plan:
    return matrix.expand(spec.parse({**SMALL, **changes}), {"digits": FACTS})


def test_shapes_change_no_key() -> None:
    shapes = {"train": {"gpus": 1}, "defend": {"gpus": 0.25}, "light": {"cpus": 2}}
    defenses = ["none", "d-br", "fine-tuning"]
    one, other = plan(defenses=defenses), plan(defenses=defenses, resources=shapes)
    assert list(one.cells) == list(other.cells)
    assert [cell.params for cell in one.cells.values()] == [c.params for c in other.cells.values()]


def test_every_cell_says_which_shape_is_its() -> None:
    chain = {"detect": "spectral-signatures", "then": "unlearn"}
    cells = plan(attacks=["clean-label"], defenses=["clp", "d-br", chain], seeds=1).cells
    found = {
        (cell.kind, cell.axes.get("defense", "")): matrix.shape_of(cell) for cell in cells.values()
    }
    assert found == {
        ("prepare", ""): "train",
        ("train", ""): "train",
        ("stage", ""): "defend",
        ("defend", "clp"): "light",
        ("defend", "d-br"): "defend",
        ("defend", "spectral-signatures+unlearn"): "defend",
    }
    for cell in cells.values():
        old = dataclasses.replace(cell, local={})
        kind = "train" if cell.kind in ("prepare", "train") else "defend"
        assert matrix.shape_of(old) == kind, "a cell that older code packed"


LIGHT = "tests.plan.test_resources:Light"
"""A detector of one's own that takes no time."""
ACTING = "tests.plan.test_resources:Acting"
"""Likewise what acts on what is flagged."""


def _detector() -> type:
    return catalog.method("defense", "spectral-signatures")


class Light(_detector()):  # type: ignore[misc]
    """Spectral signatures, said to be light."""

    light = True


class Acting(catalog.method("defense", "unlearn")):  # type: ignore[misc]
    """Unlearning, said to be light."""

    light = True


@pytest.mark.parametrize(
    ("detect", "then", "shape"),
    [
        (LIGHT, ACTING, "light"),
        ("spectral-signatures", ACTING, "defend"),
        (LIGHT, "unlearn", "defend"),
    ],
)
def test_a_chain_is_light_where_both_its_parts_are(detect: str, then: str, shape: str) -> None:
    chain = {"detect": {"defense": detect}, "then": {"defense": then}, "as": "chain"}
    cells = plan(defenses=[chain], seeds=1).cells.values()
    assert {matrix.shape_of(cell) for cell in cells if cell.kind in ("stage", "defend")} == {shape}


def test_what_is_light_trains_nothing() -> None:
    """One core, ResNet-18 of width 32, 720 test images: 0.2 s (none) to 2.8 s (SCALE-UP)."""
    light = {name for name in catalog.names("defense") if catalog.method("defense", name).light}
    assert light == {"none", "clp", "clp-holdout", "bnp", "ep", "scale-up", "ibd-psc"}
    assert not Defense.light
    assert all(catalog.method("defense", name).kind != "secure training" for name in light)
    listed = {record["name"]: record["light"] for record in catalog.describe("defense")}
    assert {name for name, said in listed.items() if said} == light
