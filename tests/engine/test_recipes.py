"""Each paper's recipe has the paper's numbers; changes and mistakes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from sweeper.core.errors import SweepError
from sweeper.engine import recipes
from sweeper.engine.recipes import RECIPES, Recipe, resolve

PLAIN: dict[str, Any] = {
    "batch": 128, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4, "gamma": 0.1,
    "warmup": 0.0, "label_smoothing": 0.0, "crop": 0, "flip": False, "rotation": 0.0, "erase": 0.0,
    "period": 0, "milestones": (), "precision": "auto", "crop_probability": 1.0,
    "rotation_probability": 1.0, "optimizer": "sgd",
}  # fmt: skip
"""What a row of the papers' table does not say otherwise."""

PAPERS = [
    # D-BR/D-ST (Chen et al., 2022), final model
    ("d-br", "cifar10", {"epochs": 200, "lr": 0.01, "schedule": "step", "milestones": (100, 150),
                         "crop": 4, "flip": True}),
    ("d-br", "cifar100", {"epochs": 200, "lr": 0.01, "schedule": "step", "milestones": (100, 150),
                          "crop": 4, "flip": True, "rotation": 15.0}),
    ("d-br", "imagenet200", {"epochs": 25, "lr": 0.001, "schedule": "step", "milestones": (15, 20),
                             "weight_decay": 1e-4, "rotation": 20.0, "flip": True}),
    # ANP (Wu and Wang, 2021)
    ("anp", "cifar10", {"epochs": 200, "lr": 0.1, "schedule": "step", "milestones": (100, 150),
                        "crop": 4, "flip": True}),
    # FIP (Karim et al., 2024)
    ("fip", "cifar10", {"epochs": 250, "lr": 0.1, "schedule": "step", "milestones": (100, 150),
                        "crop": 4, "flip": True}),
    # backdoor-toolbox (Qi et al.)
    ("backdoor-toolbox", "cifar10", {"epochs": 100, "lr": 0.1, "schedule": "step",
                                     "milestones": (50, 75), "weight_decay": 1e-4, "crop": 4,
                                     "flip": True}),
    ("backdoor-toolbox", "gtsrb", {"epochs": 100, "lr": 0.01, "schedule": "step",
                                   "milestones": (30, 60), "weight_decay": 1e-4,
                                   "rotation": 15.0}),
    ("backdoor-toolbox", "imagenette", {"epochs": 100, "lr": 0.1, "schedule": "step",
                                        "milestones": (40, 80), "weight_decay": 1e-4,
                                        "flip": True}),
    # SIBP: its milestones are never reached
    ("sibp", "cifar10", {"epochs": 30, "batch": 256, "lr": 0.01, "schedule": "step",
                         "milestones": (50, 75), "weight_decay": 1e-4, "crop": 4, "flip": True}),
    # BackdoorBench (Wu et al., 2022)
    ("backdoorbench", "cifar10", {"epochs": 100, "lr": 0.01, "schedule": "cosine", "crop": 4,
                                  "flip": True}),
    ("backdoorbench", "cifar100", {"epochs": 100, "lr": 0.01, "schedule": "cosine", "crop": 4}),
    ("backdoorbench", "gtsrb", {"epochs": 50, "lr": 0.01, "schedule": "cosine", "period": 100,
                                "crop": 4}),
    ("backdoorbench", "tiny-imagenet", {"epochs": 200, "lr": 0.01, "schedule": "cosine",
                                        "crop": 4}),
    # BackdoorBox (Li et al., 2023)
    ("backdoorbox", "cifar10", {"epochs": 200, "lr": 0.1, "schedule": "step",
                                "milestones": (150, 180), "flip": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dataset", "numbers"), PAPERS, ids=[f"{name}-{data}" for name, data, _ in PAPERS]
)
def test_a_papers_recipe_has_its_numbers(name: str, dataset: str, numbers: dict[str, Any]) -> None:
    for model in ("resnet18", "preact-resnet18"):
        assert asdict(resolve(name, dataset, model)) == {**PLAIN, **numbers}


def test_every_papers_recipe_is_among_them() -> None:
    assert set(RECIPES) - {"fast"} == {name for name, _, _ in PAPERS}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dataset", ["cifar10", "gtsrb", "digits", "mnist", "my-own"])
@pytest.mark.parametrize("model", ["resnet18", "tiny", "vit-tiny"])
def test_every_recipe_is_one_for_every_data_set_and_model(
    name: str, dataset: str, model: str
) -> None:
    assert resolve(name, dataset, model).epochs >= 1


def test_the_fast_recipe_mirrors_only_what_may_be_mirrored() -> None:
    assert resolve("fast", "cifar10", "resnet18").flip
    for dataset in ("gtsrb", "mnist", "digits", "svhn"):
        assert not resolve("fast", dataset, "resnet18").flip, f"{dataset} has signs or digits"


def test_changes() -> None:
    whole = resolve("d-br", "cifar10", "resnet18")
    changed = resolve({"base": "d-br", "epochs": 2, "milestones": [1]}, "cifar10", "resnet18")
    assert asdict(changed) == {**asdict(whole), "epochs": 2, "milestones": (1,)}
    fast = resolve("fast", "cifar10", "tiny")
    assert resolve({"lr": "1e-3"}, "cifar10", "tiny").lr == 0.001, "YAML takes 1e-3 for text"
    assert resolve({}, "cifar10", "tiny") == fast == resolve({"base": "fast"}, "cifar10", "tiny")
    assert resolve({"epochs": 5}, "cifar10", "tiny").epochs == 5


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("d-bt", "recipe: no recipe 'd-bt', did you mean 'd-br'"),
        ({"base": 3}, "recipe: no recipe '3'"),
        ({"epoch": 3}, "recipe: no option 'epoch', did you mean 'epochs'?"),
        ({"epochs": "many"}, "recipe: epochs: needs a whole number, not 'many'"),
        ({"epochs": 2.5}, "recipe: epochs: needs a whole number, not 2.5"),
        ({"epochs": True}, "recipe: epochs: needs a whole number, not True"),
        ({"lr": None}, "recipe: lr: needs a number, not None"),
        ({"lr": float("inf")}, "recipe: lr: needs a number, not inf"),
        ({"milestones": 50}, "recipe: milestones: needs a list of whole numbers, not 50"),
        ({"flip": 3}, "recipe: flip: needs true or false, not 3"),
        ({"epochs": 0}, "recipe: epochs: 0 is not a whole number >= 1"),
        ({"lr": -1}, "recipe: lr: needs a number of at least 0, not -1"),
        ({"schedule": "liner"}, "recipe: schedule: 'liner' is not one of linear, cosine, step"),
        (
            {"precision": "fp16"},
            "recipe: precision: 'fp16' is not one of auto, bf16, fp32, portable",
        ),
        ({"crop_probability": 2}, "recipe: crop_probability: needs a number of at most 1, not 2"),
    ],
    ids=str,
)
def test_mistakes(asked: Any, said: str) -> None:
    with pytest.raises(SweepError) as caught:
        resolve(asked, "cifar10", "resnet18")
    assert str(caught.value).startswith(said)


def test_all_mistakes_at_once() -> None:
    with pytest.raises(SweepError) as caught:
        resolve({"epoch": 3, "lr": "x"}, "cifar10", "resnet18")
    assert len(str(caught.value).splitlines()) == 2


def test_settings_are_fields() -> None:
    fields = set(asdict(Recipe()))
    for name, entries in recipes.RECIPES.items():
        for _, _, settings in entries:
            assert set(settings) <= fields, name
