"""Training of the sources: length, rates, augmentation, and how the generators learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, nn

from attacks import input_aware
from attacks.base import Attack
from attacks.input_aware import InputAware
from attacks.parts.loop import LoopAttack
from attacks.sleeper_agent import DECAY, RETRAIN_DECAY, SleeperAgent
from sweeper.core import catalog
from sweeper.engine.recipes import RECIPES, Recipe, resolve
from sweeper.engine.training import learning_rate
from tests.reference.golden import Golden, load
from tests.support import toys

FILE = "attacks/recipes"


def row(z: Golden, attack: str, preset: str) -> dict[str, float]:
    """Column -> the number of one row, where it has one."""
    names = zip(z.arrays["attack"].tolist(), z.arrays["preset"].tolist(), strict=True)
    numbers = z["numbers"][list(names).index((attack, preset))].tolist()
    columns = z.arrays["columns"].tolist()
    return {
        column: number for column, number in zip(columns, numbers, strict=True) if number == number
    }


def compared(z: Golden, what: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Compare every number of a row; the rate is the sweep's, ours may have more."""
    columns = [name for name in theirs if name not in ("rate", "extra_is_share_of_batch")]
    z.agree(what, *([of[name] for name in columns] for of in (ours, theirs)), within=1e-12)


def of_recipe(recipe: Recipe, cifar100: Recipe) -> dict[str, float]:
    slope: dict[str, dict[str, float]] = {
        "step": {f"milestone_{n}": at for n, at in enumerate(recipe.milestones, 1)},
        "cosine": {"cosine_period": recipe.period or recipe.epochs},
        "constant": {},
    }
    return {
        **{name: getattr(recipe, name) for name in ("epochs", "lr", "batch", "momentum")},
        "weight_decay": recipe.weight_decay,
        **slope[recipe.schedule],
        "gamma": recipe.gamma,
        "crop": recipe.crop,
        "crop_probability": recipe.crop_probability,
        "rotation": recipe.rotation,
        "rotation_probability": recipe.rotation_probability if recipe.rotation else 0,
        "flip_probability": 0.5 * recipe.flip,
        "flip_on_cifar10_only": recipe.flip and not cifar100.flip,
    }


def of_attack(attack: Attack, theirs: dict[str, float]) -> dict[str, float]:
    """The recipe's numbers as the attack changes them, and the samples that keep their labels."""
    recipes = [resolve("backdoorbench", name, "resnet18") for name in ("cifar10", "cifar100")]
    ours = of_recipe(*map(attack.recipe, recipes))
    if isinstance(attack, LoopAttack):
        size, poisoned = 10_000, round(theirs["rate"] * 10_000)
        whole = size if theirs["extra_is_share_of_batch"] else poisoned
        ours["extra_ratio"] = attack.extras(poisoned, size) / whole
    return ours


def mask_rates(attack: InputAware, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The epochs after which the mask net's rate falls, one step an epoch."""
    rates = []

    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    data = toys.image_set(10, shape=(3, 8, 8))
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Adam)
        attack.prepare(data, toys.ToyLab(data))
    return {"first_stage_epochs": len(rates), **falls("mask", rates)}


def generator_rates(attack: InputAware, epochs: int = 0) -> dict[str, float]:
    """What the generator's Adam begins with, and the epochs after which its rate falls."""
    data = toys.image_set(10, shape=(3, 8, 8))
    state = InputAware(mask_epochs=0).prepare(data, toys.ToyLab(data))
    hooks: Any = attack.hooks(data, state, Generator())
    hooks.start(nn.Identity(), toys.CPU)
    hooks.recipe = attack.recipe(Recipe(epochs=epochs or 1))
    group = hooks.adam.param_groups[0]
    found = {"lr_generator": group["lr"], "beta_1": group["betas"][0], "beta_2": group["betas"][1]}
    rates = [group["lr"]]
    for epoch in range(epochs or 600):
        hooks.epoch(nn.Identity(), epoch)
        rates.append(group["lr"])
    return {**found, **falls("generator", rates)}


def falls(name: str, rates: list[float]) -> dict[str, float]:
    """The places at which a rate is lower than before."""
    at = [n for n in range(1, len(rates)) if rates[n] < rates[n - 1]]
    return {f"{name}_milestone_{number}": place for number, place in enumerate(at, 1)}


def made(name: str, preset: str) -> Any:
    return catalog.make("attack", name, {"preset": preset} if preset else {})


@pytest.mark.parametrize("base", RECIPES)
def test_presets_bring_their_training_under_any_recipe(base: str) -> None:
    common, here = (resolve(name, "cifar10", "resnet18") for name in ("backdoorbench", base))
    for name, preset in (
        ("wanet", "backdoorbench"),
        ("wanet", "released"),
        ("bpp", "backdoorbench"),
        ("bpp", "bpp"),
        ("input-aware", "backdoorbench"),
        ("input-aware", "iab-release"),
    ):
        attack = made(name, preset)
        ours, theirs = attack.recipe(here), attack.recipe(common)
        assert replace(ours, flip=True, period=0) == theirs, f"{name} {preset} under {base}"
        assert [learning_rate(ours, epoch, 1) for epoch in range(100)] == [0.01] * 100
        assert made(name, "").recipe(here) == here


def test_wanet_and_bpp() -> None:
    z = load(FILE)
    for name, preset, own, what in (
        ("*", "backdoorbench", "", "common recipe of BackdoorBench"),
        ("wanet", "backdoorbench", "backdoorbench", "WaNet of BackdoorBench"),
        ("wanet", "release", "released", "WaNet's release"),
        ("bpp", "backdoorbench", "backdoorbench", "BPP of BackdoorBench"),
        ("bpp", "release", "bpp", "BPP's release"),
    ):
        theirs = row(z, name, preset)
        attack = made(name if own else "badnets", own)
        compared(z, what, of_attack(attack, theirs), theirs)


def test_input_aware(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load(FILE)
    monkeypatch.setattr(input_aware, "net", lambda shape, outputs: nn.Conv2d(3, outputs, 1))
    mask = mask_rates(InputAware(), monkeypatch)
    for preset, own, what in (
        ("backdoorbench", "backdoorbench", "Input-aware of BackdoorBench"),
        ("release", "iab-release", "Input-aware's release"),
    ):
        theirs, attack = row(z, "input-aware", preset), made("input-aware", own)
        ours = of_attack(attack, theirs) | mask | generator_rates(attack)
        compared(z, what, ours, theirs)
    own_epochs = generator_rates(InputAware(), epochs=60)
    fallen = [at for name, at in own_epochs.items() if "milestone" in name]
    assert fallen == [20, 30, 40, 50], "under the sweep's recipe the steps are shares of its epochs"


def test_lira_and_wb() -> None:
    z = load(FILE)
    for name, preset, own, what in (
        ("lira", "backdoorbench", "backdoorbench", "LIRA of BackdoorBench"),
        ("lira", "release", "released", "LIRA's release"),
        ("wb", "backdoor-toolbox", "backdoor-toolbox", "WB of backdoor-toolbox"),
    ):
        attack, theirs = made(name, own), row(z, name, preset)
        whole = attack.recipe(resolve("backdoorbench", "cifar10", "resnet18"))
        share = attack.stage_one if name == "lira" else attack.alternating
        first = round(share * whole.epochs)
        if (
            name == "lira"
        ):  # both stages are one training of ours; BackdoorBench counts both as well
            counted = whole.epochs if preset == "backdoorbench" else whole.epochs - first
            falls = tuple(at - first for at in whole.milestones)
            numbers = of_attack(attack, theirs) | {"epochs": counted}
            numbers |= {f"milestone_{n}": at for n, at in enumerate(falls, 1)}
            numbers |= adam(attack)
        else:
            numbers = of_attack(attack, theirs) | {"lr_generator": attack.lr}
            numbers["beta_1"] = attack.momentum
        compared(z, what, numbers | {"first_stage_epochs": first}, theirs)


def adam(attack: Any) -> dict[str, float]:
    """What LIRA's generator learns with."""
    data = toys.image_set(10, shape=(3, 8, 8))
    hooks: Any = attack.hooks(data, attack.prepare(data, toys.ToyLab(data)), Generator())
    hooks.start(nn.Identity(), toys.CPU)
    group = hooks.adam.param_groups[0]
    return {"lr_generator": group["lr"], "beta_1": group["betas"][0], "beta_2": group["betas"][1]}


def test_sleeper_agent_and_sra() -> None:
    z, attack = load(FILE), SleeperAgent()
    ours = [attack.steps, attack.retrain_every, attack.retrain_epochs]
    names = ("crafting_steps", "retrain_every", "retrain_epochs")
    theirs = torch.stack([z[f"sleeper_{name}"] for name in names])
    z.agree("Sleeper Agent's steps and retrainings", ours, theirs)
    z.agree("shares of its crafting at which the rate falls", DECAY, "sleeper_crafting_decay")
    falls = [round(share * attack.retrain_epochs) for share in RETRAIN_DECAY]
    z.agree("epochs of its retraining at which the rate falls", falls, "sleeper_retrain_milestones")
    presets = {"vgg16-bn": "vgg", "resnet110": "resnet", "mobilenet-v2": "mobilenet"}
    factors = [made("sra", presets[name]).factor for name in z.arrays["sra_model"].tolist()]
    z.agree("SRA's factors", factors, "sra_factor")
