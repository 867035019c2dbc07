"""The graph of a sweep: how many cells, what their keys depend on, what is shared, what is left."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attacks
from attacks.badnets import BadNets
from defenses.anp import ANP
from sweeper import models
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Cell, Facts
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.plan import matrix
from sweeper.plan.matrix import Plan
from sweeper.plan.sweep import Sweep
from tests.support import staged

FACTS = Facts("digits", "d1", 10, (1, 8, 8), (90,) * 10, n_train=1000, n_reserve=100)
COLOUR = Facts("cifar10", "c1", 10, (3, 32, 32), (4500,) * 10, n_train=50000, n_reserve=5000)
BASE: dict[str, Any] = {
    "name": "study",
    "datasets": ["digits"],
    "models": ["tiny"],
    "attacks": ["badnets", "blend"],
    "poison_rates": [0.05, 0.1],
    "defenses": ["none", "fine-tuning", "fine-pruning", "anp"],
    "seeds": 3,
}
ONE = {"attacks": ["badnets"], "poison_rates": [0.1], "defenses": ["fine-tuning"], "seeds": 1}

SHARED = '''
"""Toy attacks whose state is shared."""

from dataclasses import dataclass
from attacks.badnets import BadNets


@dataclass(frozen=True, kw_only=True)
class Crafted(BadNets):
    """Its state depends on the model and the target, and starts from a clean model."""

    title = "crafted"
    presets = {}
    prepares = True
    needs_clean_model = True
    state_axes = frozenset({"model", "target"})
'''
SEEDED = SHARED.replace("Crafted", "Seeded").replace('"target"}', '"seed", "poison_rate"}')
ENCODER = (
    SHARED.replace("Crafted", "Encoder")
    .replace("needs_clean_model = True", "needs_clean_model = False")
    .replace('frozenset({"model", "target"})', "frozenset()")
)
CLEAN = '''
"""A toy clean-label attack."""

from dataclasses import dataclass
from attacks.badnets import BadNets


@dataclass(frozen=True, kw_only=True)
class CleanToy(BadNets):
    """Poisons images of the target class only."""

    title = "clean toy"
    presets = {}
    rules = ("clean",)
'''


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Toy attacks as files of a folder beside the package's own."""
    files = {
        "toy_crafted": SHARED,
        "toy_seeded": SEEDED,
        "toy_encoder": ENCODER,
        "toy_clean": CLEAN,
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(tmp_path)])
    yield


def expand(facts: Facts = FACTS, **changes: Any) -> Plan:
    sweep = Sweep.model_validate({**BASE, **changes})
    return matrix.expand(sweep, {entry.label: facts for entry in sweep.datasets})


def cells(plan: Plan, kind: str) -> list[Cell]:
    return [cell for cell in plan.cells.values() if cell.kind == kind]


def keys(**changes: Any) -> set[str]:
    return set(expand(**changes).cells)


def defend_key(facts: Facts = FACTS, **changes: Any) -> str:
    (cell,) = cells(expand(facts, **{**ONE, **changes}), "defend")
    return cell.key


def test_every_victim_is_trained_once_for_all_its_defenses() -> None:
    plan = expand()
    assert plan.counts() == {
        "prepare": 0,
        "train": 12,
        "stage": 0,
        "defend": 48,
        "not_applicable": 0,
    }, "2 attacks x 2 rates x 3 seeds are 12 victims, each with 4 defenses"
    assert plan.trainings_saved() == 36
    for cell in cells(plan, "defend"):
        assert cell.parents == (cell.params["victim"],)
        victim = plan.cells[cell.params["victim"]]
        shared = ("dataset", "model", "attack", "poison_rate", "target", "seed")
        assert all(victim.axes[axis] == cell.axes[axis] for axis in shared)


def test_a_key_is_the_hash_of_its_params() -> None:
    for cell in expand().cells.values():
        assert cell.key == seeds.digest(cell.params)
        assert all(parent in str(cell.params) for parent in cell.parents)


def test_a_digest_with_holes_is_the_digest_of_the_whole() -> None:
    value = {"b": 'say "100 %s"', "victim": None, "a": {"z": [1, 2.5, None], "y": True}, "up": 0}
    of = seeds.digester(value, "up", "victim")
    for up, victim in ((None, "0f"), ("a1", "b2")):
        assert of(up, victim) == seeds.digest({**value, "up": up, "victim": victim})


@pytest.mark.parametrize(("version", "metrics"), [(3, 1), ("3+0f3a59c2b7d1", 1), (3, 7)])
def test_neither_an_edit_nor_a_repaired_metric_draws_anew(version: int | str, metrics: int) -> None:
    cell = next(cell for cell in expand(**ONE).cells.values() if cell.kind == "defend")
    method = {**cell.params["defense"], "version": 3}
    first = {**cell.params, "defense": method, "versions": {"metrics": 1}}
    params = {**first, "defense": {**method, "version": version}, "versions": {"metrics": metrics}}
    assert replace(cell, params=params).seed == seeds.digest(first)
    assert replace(cell, params={**params, "n_clean": 1}).seed != seeds.digest(first)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"resources": {"cpus": 4, "gpus": 0.5}},
        {"timeout": 60},
        {"attacks": ["blend", "badnets"]},
        {"defenses": ["anp", "none", "fine-pruning", "fine-tuning"]},
        {"poison_rates": [0.1, 0.05], "seeds": [2, 1, 0]},
        {"attacks": [{"attack": "badnets", "as": "patch"}, {"attack": "blend", "as": "mix"}]},
        {"defenses": ["none", {"defense": "anp", "as": "x"}, "fine-tuning", "fine-pruning"]},
        {"datasets": [{"dataset": "digits", "as": "numbers"}]},
        {"datasets": [{"dataset": "digits", "path": "elsewhere"}]},
        {"models": [{"model": "tiny", "as": "small"}]},
        {"attacks": [{"attack": "badnets", "opacity": 1, "preset": "d-br"}, "blend"]},
        {"recipe": {"base": "fast"}},
        {"poison_rates": [0.3], "attacks": [
            {"attack": "badnets", "poison_rates": [0.05, 0.1]},
            {"attack": "blend", "poison_rates": [0.1, 0.05]},
        ]},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_no_number_changes_no_key(changes: dict[str, Any]) -> None:
    assert keys(**changes) == keys()


BADNETS = {
    "rule": "all2all", "rate_base": "all", "rounding": "nearest", "trigger": "white", "size": 2,
    "margin": 1, "opacity": 0.5,
}  # fmt: skip
PRUNING = {
    "eps": 0.3, "alpha": 0.3, "inner_steps": 2, "lr": 0.1, "steps": 7, "batch": 9, "project": True,
    "threshold": 0.1, "prune_count": 3, "tau": 0.1, "averaged": False, "loss_share": 0.5,
}  # fmt: skip
RECIPE = {
    "epochs": 7, "batch": 7, "lr": 0.7, "momentum": 0.7, "nesterov": True, "weight_decay": 0.7,
    "schedule": "constant", "period": 7, "milestones": [7], "gamma": 0.7, "warmup": 0.7,
    "label_smoothing": 0.7, "crop": 7, "flip": True, "rotation": 7.0, "erase": 0.7,
    "crop_probability": 0.7, "rotation_probability": 0.7, "precision": "fp32",
    "optimizer": "adam",
}  # fmt: skip


def test_every_option_changes_the_key() -> None:
    for cls, given_ in ((BadNets, BADNETS), (ANP, PRUNING), (Recipe, RECIPE)):
        fields = {f.name for f in dataclasses.fields(cls) if not f.metadata.get("axis")}
        assert fields == set(given_), f"every option of {cls.__name__} is tried"
    white = {"attack": "badnets", "trigger": "white"}
    found = [defend_key(attacks=[white])]
    for name, value in BADNETS.items():
        found.append(defend_key(attacks=[{**white, name: value, "as": "x"}]))
    assert found.count(found[0]) == 2, "only `trigger: white` is what it was"
    assert len(set(found)) == len(found) - 1
    found = [defend_key(defenses=["anp"])]
    found += [defend_key(defenses=[{"defense": "anp", k: v}]) for k, v in PRUNING.items()]
    found += [defend_key(), *(defend_key(recipe={k: v}) for k, v in RECIPE.items())]
    assert len(set(found)) == len(found)


def test_a_defense_trains_as_models_of_the_data_set_are_trained() -> None:
    """Whatever the attack made of the victim's recipe: a tuning of one epoch, or none at all."""
    one = {"poison_rates": [0.1], "seeds": [0], "defenses": ["d-br"]}
    plain, tuned, longer = (
        expand(attacks=[name], recipe={"epochs": epochs}, **one)
        for name, epochs in (("badnets", 7), ("trojan-nn", 7), ("trojan-nn", 8))
    )
    for plan, victims, own in ((plain, 7, None), (tuned, 1, 7)):
        below = [*cells(plan, "stage"), *cells(plan, "defend")]
        assert {plan.cells[c.params["victim"]].params["recipe"]["epochs"] for c in below} == {
            victims
        }
        assert {c.params.get("recipe", {}).get("epochs") for c in below} == {own}
    assert not {c.key for c in cells(longer, "defend")} & {c.key for c in cells(tuned, "defend")}


def test_what_changes_a_number_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "as it is": defend_key(),
        "seed": defend_key(seeds=[1]),
        "rate": defend_key(poison_rates=[0.2]),
        "target": defend_key(targets=[1]),
        "clean budget": defend_key(clean_budgets=[40]),
        "reserve": defend_key(reserve=0.2),
        "data": defend_key(replace(FACTS, digest="d2")),
        "model": defend_key(models=["resnet18"]),
        "option of the model": defend_key(models=[{"model": "resnet18", "width": 8}]),
        "attack": defend_key(attacks=["blend"]),
        "defense": defend_key(defenses=["fine-pruning"]),
        "recipe": defend_key(recipe="d-br"),
    }
    family = models.families()["tiny"]
    from defenses.fine_tuning import FineTuning

    for what, where in {"attack": BadNets, "defense": FineTuning, "model": family}.items():
        with monkeypatch.context() as patch:
            patch.setattr(where, "version", where.version + 1)
            found[f"version of the {what}"] = defend_key()
    with monkeypatch.context() as patch:
        patch.setattr(training, "VERSION", training.VERSION + 1)
        found["version of the training loop"] = defend_key()
    assert len(set(found.values())) == len(found), found
    assert defend_key() == found["as it is"]


def test_no_place_or_host_stands_in_a_key() -> None:
    plan = expand(datasets=[{"dataset": "digits", "path": "some/where"}])
    for cell in plan.cells.values():
        assert "some/where" not in str(cell.params) and "path" not in str(cell.params)
        assert set(cell.params) >= {"kind"}


def test_all2all_has_no_target() -> None:
    both = ["badnets", {"attack": "badnets", "rule": "all2all", "as": "a2a"}]
    plan = expand(attacks=both, poison_rates=[0.1], seeds=1, targets=[0, 1, 2])
    by = [cell.axes["attack"] for cell in cells(plan, "train")]
    assert by.count("badnets") == 3 and by.count("a2a") == 1, "targets mean nothing to all2all"


def test_the_clean_model_is_one_victim_whatever_the_rates_and_targets() -> None:
    plan = expand(attacks=["none"], targets=[0, 1, 2], seeds=1)
    (victim,) = cells(plan, "train")
    assert victim.axes["poison_rate"] == 0 and victim.axes["target"] == 0
    assert len(cells(plan, "defend")) == 4


def test_a_defense_without_clean_data_is_one_cell_for_all_budgets() -> None:
    plan = expand(**{**ONE, "defenses": ["none", "fine-tuning"], "clean_budgets": [0.02, 0.05, 70]})
    found = [(c.axes["defense"], c.axes["clean_budget"]) for c in cells(plan, "defend")]
    assert sorted(found) == [
        ("fine-tuning", 0.02),
        ("fine-tuning", 0.05),
        ("fine-tuning", 70.0),
        ("none", 0.0),
    ]
    counts = [c.params["n_clean"] for c in cells(plan, "defend")]
    assert sorted(counts) == [0, 20, 50, 70]


def test_two_labels_of_one_cell_are_refused() -> None:
    with pytest.raises(SweepError) as caught:
        expand(**ONE, clean_budgets=[0.05, 50])
    assert str(caught.value) == (
        "clean_budget 0.05 and 50.0 are the same in every number "
        "(digits, tiny, badnets, 0.1, 0, 0, fine-tuning): leave one out"
    )
    twins = [{"attack": "badnets", "poison_rates": [0.1, 0.2], "as": "twin"}, "badnets"]
    with pytest.raises(SweepError, match="attack twin and badnets are the same in every number"):
        expand(**{**ONE, "attacks": twins})


def test_a_clean_label_attack_at_rates_its_class_cannot_give() -> None:
    clean = {"attack": "toy-clean", "rate_base": "all"}
    plan = expand(attacks=[clean], poison_rates=[0.05, 0.5, 1e-4], seeds=1)
    assert len(cells(plan, "train")) == 1, "victims that cannot be are not trained"
    reasons = {cell.axes["poison_rate"]: cell.reason for cell in plan.inapplicable}
    assert reasons == {
        0.5: "needs 450 images to poison at rate 0.5 of all, class 0 has 90: 0.1 is the most",
        1e-4: "poisons no image at rate 0.0001 of all: raise the rate",
    }
    assert len(plan.inapplicable) == 8 and plan.counts()["not_applicable"] == 8
    assert all(cell.kind == "defend" for cell in plan.inapplicable), "each has its row"


def test_a_target_the_data_do_not_have() -> None:
    plan = expand(**ONE, targets=[10])
    assert not plan.cells
    assert plan.inapplicable[0].reason == "target label 10 does not exist: labels are 0 to 9"


def test_a_defense_the_model_has_nothing_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ANP, "requires", frozenset({"batchnorm"}))
    plan = expand(COLOUR, **{**ONE, "models": ["vit-tiny", "tiny"], "defenses": ["none", "anp"]})
    (cell,) = plan.inapplicable
    assert cell.reason == "needs BatchNorm layers, vit-tiny has none"
    assert (cell.axes["model"], cell.axes["defense"]) == ("vit-tiny", "anp")
    assert len(cells(plan, "train")) == 2 and len(cells(plan, "defend")) == 3


def test_applies_is_asked_with_the_architecture_not_its_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(ANP, "applies", lambda self, needs: asked.append(needs))
    expand(**{**ONE, "models": [{"model": "tiny", "as": "small"}], "defenses": ["anp"]})
    assert asked and {(needs.model, needs.clean) for needs in asked} == {("tiny", 50)}


def test_a_budget_too_small_for_a_defense_is_said_before_the_start() -> None:
    chained = {"defense": "retrain", "detect": "scan", "as": "retrain-scan"}
    asked = {"models": ["tiny", "resnet18"], "clean_budgets": [1, 2, 50], "reserve": 0.1}
    plan = expand(**{**ONE, **asked, "defenses": ["fine-tuning", "fip", "spectre", chained]})
    axes = ("model", "defense", "clean_budget")
    few = {tuple(cell.axes[axis] for axis in axes): cell.reason for cell in plan.inapplicable}
    least = {
        (model, defense, budget): least
        for model, batch in (("tiny", 1), ("resnet18", 2))  # its last maps are of one pixel here
        for defense, least in (("fine-tuning", batch), ("fip", batch + 1), ("retrain-scan", 20))
        for budget in (1, 2, 50)
        if budget < least
    }
    assert few == {
        key: f"needs at least {count} clean images, the budget is {key[2]}: raise `clean_budgets`"
        for key, count in least.items()
    }


def test_excluded_combinations_are_left_out() -> None:
    plan = expand(
        exclude=[
            {"attack": "blend", "defense": "anp"},
            {"attack": "badnets", "poison_rate": 0.05},
            {"seed": 2},
        ]
    )
    found = [(c.axes["attack"], c.axes["poison_rate"], c.axes["defense"], c.axes["seed"])
             for c in cells(plan, "defend")]  # fmt: skip
    assert len(found) == 2 * (1 * 4 + 2 * 3)
    assert not any(a == "blend" and d == "anp" for a, _, d, _ in found)
    assert not any(a == "badnets" and r == 0.05 for a, r, _, _ in found)
    assert not any(s == 2 for *_, s in found)
    assert len(cells(plan, "train")) == 6, "victims without a defense are not trained"


def test_excluding_every_defense_of_a_victim_leaves_no_victim() -> None:
    each = [{"attack": "blend", "defense": d, "clean_budget": 0.05} for d in BASE["defenses"][1:]]
    plan = expand(exclude=[*each, {"attack": "blend", "defense": "none"}])
    assert {cell.axes["attack"] for cell in plan.cells.values()} == {"badnets"}


def test_excluding_everything_is_an_error() -> None:
    with pytest.raises(SweepError, match="exclude: leaves nothing of the sweep to run"):
        expand(exclude=[{"dataset": "digits"}])


def test_a_budget_over_the_reserve_is_an_error() -> None:
    with pytest.raises(SweepError) as caught:
        expand(clean_budgets=[0.2])
    assert str(caught.value) == (
        "clean_budgets: 0.2 is 200 images of digits, the reserve holds 100: "
        "lower the budget or raise `reserve`"
    )


def test_a_model_that_does_not_fit_the_data_is_an_error() -> None:
    with pytest.raises(SweepError, match="model vgg on data set digits: .*8"):
        expand(models=[{"model": "vgg16-bn", "as": "vgg"}])


def test_data_that_are_not_here_can_be_planned() -> None:
    plan = expand(Facts("digits", ""), attacks=["badnets", "toy-clean"])
    assert plan.unresolved == ("digits",) and len(plan.cells) == 60 and not plan.inapplicable
    both = expand(Facts("digits", ""), **{**ONE, "clean_budgets": [50, 500, 0.05]})
    assert {c.params["n_clean"] for c in cells(both, "defend")} == {50, 500, 2500}


def test_prepared_state_is_shared_as_declared() -> None:
    plan = expand(attacks=["toy-crafted"], targets=[0, 1], models=["tiny", "resnet18"])
    assert len(cells(plan, "prepare")) == 4, "2 models x 2 targets; rates and seeds share it"
    victims = [c for c in cells(plan, "train") if c.axes["attack"] == "toy-crafted"]
    assert len(victims) == 2 * 2 * 2 * 3
    assert all(plan.cells[v.params["state"]].params["target"] == v.axes["target"] for v in victims)
    clean = [c for c in cells(plan, "train") if c.axes["attack"] == "none"]
    assert len(clean) == 2, "one clean model for each architecture"
    for state in cells(plan, "prepare"):
        assert plan.cells[state.parents[0]] in clean
    assert set(cells(plan, "prepare")[0].axes) == {"dataset", "model", "attack", "target"}


def test_a_state_that_depends_on_rate_and_seed() -> None:
    plan = expand(attacks=["toy-seeded"], targets=[0, 1])
    assert len(cells(plan, "prepare")) == 6, "2 rates x 3 seeds; targets share it"
    clean = [c for c in cells(plan, "train") if c.axes["attack"] == "none"]
    assert sorted(c.axes["seed"] for c in clean) == [0, 1, 2]


def test_a_state_of_the_data_alone_is_shared_by_all_models() -> None:
    plan = expand(attacks=["toy-encoder"], models=["tiny", "resnet18"], recipe={"epochs": 3})
    (state,) = cells(plan, "prepare")
    assert not state.parents and "model" not in state.params
    again = expand(attacks=["toy-encoder"], models=["tiny"], recipe={"epochs": 4})
    assert cells(again, "prepare")[0].key == state.key, "the victims' recipe is not its own"


def test_the_clean_model_of_an_attack_is_that_of_the_sweep() -> None:
    alone = expand(attacks=["toy-crafted"])
    beside = expand(attacks=["none", "toy-crafted"])
    (clean,) = [c for c in cells(alone, "train") if c.axes["attack"] == "none"]
    found = [c for c in cells(beside, "train") if c.axes["attack"] == "none"]
    assert len(found) == 3, "one for each seed of the sweep"
    assert clean.key in {c.key for c in found}, "and seed 0's is the attack's"
    assert len(beside.cells) == len(alone.cells) + 2 + 3 * 4


def test_equal_stages_share_one_cell() -> None:
    pair = [
        "tests.support.staged:First",
        {"defense": "tests.support.staged:Second", "threshold": 0.4, "as": "b"},
    ]
    plan = expand(attacks=["badnets"], defenses=pair)
    assert plan.counts()["stage"] == 6 and plan.counts()["defend"] == 12
    for cell in cells(plan, "defend"):
        victim, stage = cell.parents
        assert plan.cells[stage].kind == "stage" and cell.params["stage"] == stage
        assert plan.cells[stage].parents == (victim,)


def test_a_stage_of_a_newer_version_is_another_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    before = defend_key(defenses=["tests.support.staged:First"])
    monkeypatch.setattr(staged.Brightness, "version", 2)
    assert defend_key(defenses=["tests.support.staged:First"]) != before


def in_order(plan: Plan) -> bool:
    seen: set[str] = set()
    for key, cell in plan.cells.items():
        if key != cell.key or not seen.issuperset(cell.parents):
            return False
        seen.add(key)
    return True


some = {"min_size": 1, "unique": True}
SWEEPS = st.fixed_dictionaries(
    {
        "attacks": st.lists(
            st.sampled_from(["none", "badnets", "blend", "toy-crafted", "toy-clean"]), **some
        ),
        "poison_rates": st.lists(st.sampled_from([0.001, 0.1, 0.5, 1.0]), **some),
        "targets": st.lists(st.integers(0, 11), max_size=3, **some),
        "clean_budgets": st.lists(st.sampled_from([0.01, 0.05, 60]), **some),
        "defenses": st.lists(
            st.sampled_from(["none", "anp", "fine-tuning", "tests.support.staged:First"]), **some
        ),
        "seeds": st.integers(1, 3),
    }
)


@settings(max_examples=50, deadline=None)
@given(SWEEPS)
def test_expansion_is_deterministic_and_in_order(changes: dict[str, Any]) -> None:
    one, two = expand(**changes), expand(**changes)
    assert list(one.cells.values()) == list(two.cells.values())
    assert one.inapplicable == two.inapplicable
    assert in_order(one), "parents stand before their children"
    needed = {parent for cell in one.cells.values() for parent in cell.parents}
    assert all(cell.kind == "defend" or key in needed for key, cell in one.cells.items()), (
        "nothing runs that no defense needs"
    )
    wanted = len(one.inapplicable) + len(cells(one, "defend"))
    shuffled = expand(**{**changes, "attacks": changes["attacks"][::-1]})
    assert set(shuffled.cells) == set(one.cells)
    assert wanted == len(shuffled.inapplicable) + len(cells(shuffled, "defend"))


def test_twenty_thousand_cells() -> None:
    rates = [round(0.02 * step, 2) for step in range(1, 26)]
    defenses = [{"defense": "anp", "steps": steps, "as": f"anp{steps}"} for steps in range(1, 20)]
    started = time.perf_counter()
    plan = expand(poison_rates=rates, defenses=defenses, seeds=20)
    print(f"{len(plan.cells)} cells in {time.perf_counter() - started:.2f} s")  # noqa: T201
    assert plan.counts()["train"] == 1000 and len(plan.cells) == 20000 and in_order(plan)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "vgg11-bn", "vit-tiny"])
def test_a_model_is_looked_at_without_drawing_its_weights(name: str) -> None:
    shape = (3, 32, 32)
    trunk, _ = models.family(name, {}).build(10, shape)
    norms = any(isinstance(m, torch.nn.BatchNorm2d) for m in trunk.modules())
    assert models.has_batchnorm(name, {}, 10, shape) == norms == (name != "vit-tiny")
