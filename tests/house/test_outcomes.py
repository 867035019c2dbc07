"""The kept outcomes of all methods: complete, and another outcome under a version is found."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from defenses.anp import ANP
from sweeper.core import catalog
from tests.house import outcomes
from tests.house.test_contract_defenses import EPOCHS, build, numbers
from tests.support import toys
from tests.support.places import ROOT

HERE = outcomes.here()
Made = dict[str, Tensor]


def made(defense: Any) -> Made:
    """What the contract suite makes of a defense of the model."""
    case = toys.case(defense.sees, epochs=EPOCHS, shape=toys.QUARTER)
    return numbers(defense.defend(case))


@pytest.fixture(params=["here", "elsewhere"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compare as on the machine the outcomes were kept on, or as on another."""
    kind = {"here": outcomes.known()["made"], "elsewhere": {}}[request.param]
    monkeypatch.setattr(outcomes, "here", lambda: kind)
    return str(request.param)


def test_every_method_that_is_committed_has_its_outcome() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "attacks", "defenses"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    kept = outcomes.known()["outcomes"]
    for kind in ("attack", "defense"):
        for name in catalog.names(kind):
            if f"{kind}s/{name.replace('-', '_')}.py" in listed.stdout.splitlines():
                cells = [cell for cell in kept if cell.endswith(f"{kind} {name}")]
                assert cells, f"python -m tests.house.outcomes {name}"
    assert set(outcomes.LOOSE) <= set(kept)


def test_an_edited_method_is_found(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another constant inside ANP, as an edit of its file would leave it."""
    anp = build("anp")
    entry = outcomes.known()["outcomes"]["defense anp"]
    if machine == "elsewhere" or HERE == outcomes.known()["made"]:
        outcomes.check("defense anp", ANP.version, made(anp))
    edited = made(replace(anp, tau=anp.tau * 10))
    with pytest.raises(AssertionError, match="raise version, or regenerate with `python -m tests"):
        outcomes.check("defense anp", ANP.version, edited)
    with pytest.raises(AssertionError, match="is of version 7, its kept outcome of 2: regenerate"):
        outcomes.check("defense anp", 7, edited)
    monkeypatch.setattr(outcomes, "kept", {})
    outcomes.check("defense anp", 7, made(anp))
    assert set(outcomes.kept["defense anp"]) == set(entry)


@pytest.mark.parametrize("size", [1e-7, 1e-5])
def test_the_sketch_forgives_rounding(size: float) -> None:
    model = toys.weights(toys.victim(shape=toys.COLOUR))
    noise = toys.seeds.generator("rounding")
    near = {
        name: value * (1 + size * torch.randn(value.shape, generator=noise)).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in model.items()
    }
    assert outcomes.exact(near) != outcomes.exact(model)
    assert difference(near, model) < outcomes.TOLERANCE


def difference(one: Made, other: Made) -> float:
    pairs = zip(outcomes.sketch(one), outcomes.sketch(other), strict=True)
    return max(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize("layer", ["classifier.bias", "trunk.1.1.weight", "trunk.9.unit.0.weight"])
def test_the_sketch_sees_every_layer(layer: str) -> None:
    model = toys.weights(toys.victim(shape=toys.COLOUR))
    assert difference({**model, layer: model[layer] * 1.01}, model) > outcomes.TOLERANCE
    flipped = model[layer].clone()
    flipped.view(-1)[0] *= -1
    assert difference({**model, layer: flipped}, model) > outcomes.TOLERANCE
    assert difference({k: v for k, v in model.items() if k != layer}, model) > 0.01


def test_a_method_of_ones_own_is_kept_by_nobody() -> None:
    outcomes.check("defense my-tuning", 1, {"model": torch.zeros(1)})


def test_the_toy_victims_that_are_kept_are_backdoored_ones() -> None:
    for shape in (toys.COLOUR, toys.QUARTER):
        acc, asr = toys.oracle(10, shape)(toys.victim(10, shape))
        assert acc > 0.9 and asr > 0.9
