"""What every defense found by its file name must keep; sentences speak to the author of a defense.

A new file in `defenses/` is tested here without an edit: all its presets, on a toy victim, through
a case that holds what `sees` declares and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.base import KINDS, SEES, Case, Defense, Needs
from sweeper import models
from sweeper.core import catalog, options, seeds
from sweeper.core.errors import AccessDenied
from sweeper.core.types import ImageSet, Outcome
from sweeper.plan import matrix
from sweeper.run import record
from tests.house import outcomes
from tests.support import toys

NAMES = catalog.names("defense")
VARIANTS = toys.variants("defense")
every = pytest.mark.parametrize("name", NAMES)
every_variant = pytest.mark.parametrize(("name", "preset"), VARIANTS)
RUNS = [
    pytest.param(*variant, marks=[pytest.mark.slow] if variant[1] else []) for variant in VARIANTS
]
"""Presets run in the slow suite; the defaults run in the fast one."""
EPOCHS = 3
"""Of a training that a defense leaves as the case's recipe has it."""
SMALL = (3, 8, 8)
"""Shape of what is only to run; numbers are those of 16 pixels."""


def build(name: str, preset: str = "") -> Defense:
    found: Defense = toys.short("defense", name, toys.asked(preset))
    return found


def check_outcome(defense: Defense, outcome: Outcome, train: int, shape: tuple[int, ...]) -> None:
    """The fields of an outcome fit the kind of the defense."""
    assert isinstance(outcome, Outcome), "defend() returns an Outcome"
    if defense.kind in ("repair", "secure training"):
        assert outcome.model is not None, f"a defense of kind `{defense.kind}` returns a model"
    if defense.kind == "detection":
        assert outcome.scores is not None or outcome.flagged is not None, (
            "a detection returns scores or flagged samples"
        )
    if defense.kind == "input filter":
        assert outcome.filter is not None, "an input filter returns `filter`"
        check_filter(outcome.filter, shape)
        assert outcome.threshold is None or isinstance(outcome.threshold, float)
    if outcome.scores is not None:
        assert outcome.scores.shape == (train,), "scores has one entry a training sample"
        assert outcome.scores.is_floating_point() and bool(outcome.scores.isfinite().all())
    if outcome.flagged is not None:
        assert outcome.flagged.shape == (train,), "flagged has one entry a training sample"
        assert outcome.flagged.dtype == torch.bool
    if outcome.model is not None:
        check_model(outcome.model, shape)
    text = json.dumps(record.plain(outcome.notes), allow_nan=False)
    assert isinstance(json.loads(text), dict), "notes are a mapping of JSON values"


def check_model(model: nn.Module, shape: tuple[int, ...]) -> None:
    """The model is finite, in eval mode, trainable, and carries nothing of the defense."""
    for name, value in model.state_dict().items():
        assert bool(value.isfinite().all()), f"{name} of the returned model is not finite"
    assert not any(module.training for module in model.modules()), (
        "a part of the returned model is in train mode: call model.eval()"
    )
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert not frozen, f"requires_grad must be True again everywhere, it is not for {frozen}"
    assert all(value.grad is None or value.is_leaf for value in model.parameters())
    for name, module in model.named_modules():
        left = [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
        assert not left, f"a hook was left on {name or 'the model'}: remove it"
    images = toys.image_set(64, shape=shape, seed=5).images.float().div(255)
    with torch.inference_mode():
        assert bool(model(images).isfinite().all()), "the returned model's logits are not finite"


def check_filter(score: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    images = toys.image_set(64, shape=shape, seed=5).images
    before = images.clone()
    found = score(images)
    assert found.shape == (64,) and found.is_floating_point(), "filter: uint8 [B, ...] -> float [B]"
    assert bool(found.isfinite().all()), "a score of the filter is not finite"
    assert torch.equal(images, before), "the filter wrote to the images it was given"
    assert torch.equal(found, score(images)), "the filter scores one input in two ways"


def tensors(given: Any) -> dict[str, Tensor]:
    """Copies of all the case was made from, to see whether the defense wrote to it."""
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        if isinstance(value, nn.Module):
            found |= {f"{name}.{key}": item for key, item in toys.weights(value).items()}
            flags = [float(m.training) for m in value.modules()]
            flags += [float(p.requires_grad) for p in value.parameters()]
            found[f"{name} flags"] = torch.tensor(flags)
        elif isinstance(value, ImageSet):
            found |= {
                f"{name}.images": value.images.clone(),
                f"{name}.labels": value.labels.clone(),
            }
    return found


def numbers(outcome: Outcome) -> dict[str, Tensor]:
    """Every tensor of an outcome by name."""
    found = {} if outcome.model is None else toys.weights(outcome.model)
    for name in ("scores", "flagged"):
        if getattr(outcome, name) is not None:
            found[f"outcome.{name}"] = getattr(outcome, name)
    if outcome.filter is not None:
        images = toys.image_set(32, shape=toys.QUARTER, seed=5).images
        found["outcome.filter"] = outcome.filter(images)
    if outcome.threshold is not None:
        found["outcome.threshold"] = torch.tensor(outcome.threshold)
    return found


def applies(
    defense: Defense, classes: int = 10, clean: int = 80, shape: tuple[int, int, int] = toys.QUARTER
) -> bool:
    held = clean if "clean" in defense.sees else 0
    return not matrix.misfit(defense, Needs(classes, shape, "tiny", True, held), "tiny")


@every
def test_declarations_are_from_the_closed_sets(name: str) -> None:
    cls = catalog.method("defense", name)
    assert dataclasses.is_dataclass(cls), "decorate the defense with @dataclass(frozen=True)"
    assert cls.__dataclass_params__.frozen, "a defense is frozen: options never change"
    for attribute in ("title", "paper"):
        value = getattr(cls, attribute, "")
        assert isinstance(value, str) and value, f"declare `{attribute}`, it stands in every table"
    assert cls.kind in KINDS, f"kind: {cls.kind!r} is not one of {KINDS}"
    assert isinstance(cls.sees, frozenset) and cls.sees <= set(SEES), f"sees: a subset of {SEES}"
    assert cls.requires <= {"batchnorm"}, "requires: batchnorm, or nothing"
    assert isinstance(cls.version, int) and cls.version >= 1
    assert ("oracle" in cls.sees) == name.endswith("-oracle"), (
        "a defense that knows what no defender does is named ...-oracle, and no other is"
    )


@every
def test_source_documents_module_class_and_every_option(name: str) -> None:
    missing = toys.undocumented(catalog.method("defense", name))
    assert not missing, f"give these a docstring in the line below: {', '.join(missing)}"


@every_variant
def test_options_are_json_and_build_the_same_defense_again(name: str, preset: str) -> None:
    defense = catalog.make("defense", name, toys.asked(preset))
    known = options.canonical(defense)
    assert seeds.canonical(known), "options must be JSON values: they are part of the key"
    assert catalog.make("defense", name, known) == defense, (
        "the options written in a row must build the defense they came from"
    )


@pytest.mark.parametrize(("name", "preset"), RUNS)
def test_defends_a_toy_victim_as_declared(name: str, preset: str) -> None:
    defense = build(name, preset)
    assert applies(defense), "a defense must run on a small network with BatchNorm and ten classes"
    stage = defense.stage()
    own = functools.partial(toys.case, epochs=EPOCHS, shape=toys.QUARTER)
    state = None if stage is None else stage.run(own(stage.sees))
    assert state is None or all(isinstance(v, Tensor) for v in state.values())
    case = own(defense.sees, state=state)
    before = tensors(case._given)
    outcome = defense.defend(case)
    assert toys.same(before, tensors(case._given)), (
        "the defense changed what it was given (weights, buffers, flags or images): work on a copy"
    )
    if outcome.model is not None and "model" in defense.sees:
        shared = {v.data_ptr() for v in case._given["model"].parameters()}
        assert shared.isdisjoint(v.data_ptr() for v in outcome.model.parameters()), (
            "the returned model shares its weights with the victim"
        )
    check_outcome(defense, outcome, len(toys.poisoned_set(shape=toys.QUARTER).labels), toys.QUARTER)
    again = defense.defend(own(defense.sees, state=state))
    assert toys.same(numbers(outcome), numbers(again)), (
        "two runs under one key differ: draw every random number from case.rng(name)"
    )
    assert record.plain(outcome.notes) == record.plain(again.notes), (
        "two runs under one key leave different notes: no times and no addresses in them"
    )
    if not preset:
        found = {**numbers(outcome), **(state or {})}
        outcomes.check(f"defense {name}", defense.version, found)


@every
@pytest.mark.parametrize(
    ("classes", "clean"),
    [
        pytest.param(2, 40, id="2-classes"),
        pytest.param(43, 129, id="43-classes", marks=pytest.mark.slow),
        pytest.param(10, 12, id="less-than-a-batch", marks=pytest.mark.slow),
        pytest.param(10, 10, id="one-image-a-class"),
    ],
)
def test_runs_with_any_number_of_classes_and_few_images(
    name: str, classes: int, clean: int
) -> None:
    defense, shape = build(name), SMALL
    if not applies(defense, classes, clean, shape):
        pytest.skip("applies() refuses it in words")
    outcome = toys.run(defense, classes=classes, clean=clean, shape=shape, epochs=EPOCHS)
    check_outcome(defense, outcome, len(toys.poisoned_set(classes, shape).labels), shape)


def check_fewest(defense: Defense, needs: Needs, run: Callable[[int], Outcome]) -> Outcome:
    """It says of fewer clean images that they are too few, and runs with as many as it needs."""
    if matrix.misfit(defense, replace(needs, clean=1000), "it"):
        pytest.skip("it refuses any number of clean images in words")
    clean = 1
    while why := matrix.misfit(defense, replace(needs, clean=clean), "it"):
        said = re.fullmatch(
            rf"needs at least (\d+) clean images, the budget is {clean}: raise `clean_budgets`", why
        )
        assert said and int(said[1]) > clean, f"least_clean() says how few it can use, not: {why}"
        clean += 1
    assert clean == defense.least_clean(needs), "the first number it applies to is the least"
    return run(clean)


HOLDERS = [pair for pair in RUNS if "clean" in catalog.method("defense", pair.values[0]).sees]
"""Variants of the defenses that see clean images."""


@pytest.mark.parametrize(("name", "preset"), HOLDERS)
def test_runs_with_the_fewest_clean_images_it_asks_for(name: str, preset: str) -> None:
    defense, shape = build(name, preset), SMALL
    outcome = check_fewest(
        defense,
        Needs(10, shape, "tiny", True, 0),
        lambda clean: toys.run(defense, clean=clean, shape=shape, epochs=EPOCHS),
    )
    check_outcome(defense, outcome, len(toys.poisoned_set(shape=shape).labels), shape)


@pytest.mark.parametrize(("name", "preset"), HOLDERS)
def test_so_it_does_where_batchnorm_needs_two(
    name: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet-18 on 8 pixels; its victim is kept, and no other test's has 11 classes."""
    small: dict[str, Any] = {"width": 4, "stem": "cifar"}
    monkeypatch.setattr(toys, "network", functools.partial(toys.network, model="resnet18", **small))
    defense, toy = build(name, preset), {"classes": 11, "shape": SMALL}
    batch = models.least_batch("resnet18", small, **toy)
    assert batch == 2
    outcome = check_fewest(
        defense,
        Needs(11, SMALL, "resnet18", True, 0, batch=batch),
        lambda clean: toys.run(defense, clean=clean, epochs=EPOCHS, **toy),
    )
    check_outcome(defense, outcome, len(toys.poisoned_set(**toy).labels), SMALL)


@every
def test_runs_on_small_grey_images(name: str) -> None:
    defense = build(name)
    if not applies(defense, shape=toys.GREY):
        pytest.skip("applies() refuses it in words")
    outcome = toys.run(defense, shape=toys.GREY, epochs=EPOCHS)
    check_outcome(defense, outcome, len(toys.poisoned_set(10, toys.GREY).labels), toys.GREY)


@dataclass(frozen=True, kw_only=True)
class Curious(Defense):
    """A toy defense that reads everything a case could hold and notes what it was refused."""

    title = "Curious"
    paper = "toy"
    kind = "repair"
    sees = frozenset()

    def defend(self, case: Case) -> Outcome:
        refused = []
        for what in SEES:
            try:
                case.fresh_model() if what == "model" else getattr(case, what)
            except AccessDenied as error:
                assert what in str(error)
                refused.append(what)
        return Outcome(notes={"refused": refused})


@pytest.mark.parametrize("seen", [(), *((what,) for what in SEES), SEES])
def test_what_is_not_declared_is_refused(seen: tuple[str, ...]) -> None:
    case = toys.case(frozenset(seen))
    refused = Curious().defend(case).notes["refused"]
    assert refused == [what for what in SEES if what not in seen]
    assert set(case._given) == set(seen), "the case must not even hold what is not declared"


def test_split_and_fit_see_no_more_than_the_clean_budget() -> None:
    case = toys.case(frozenset({"model"}))
    with pytest.raises(AccessDenied, match="clean"):
        case.split()


@pytest.mark.parametrize("classes", [2, 10, 43])
@pytest.mark.parametrize("clean", [2, 10, 43, 90, 400])
def test_split_keeps_both_parts_and_every_class_to_fit_on(classes: int, clean: int) -> None:
    case = toys.case(frozenset({"clean"}), classes=classes, clean=clean, model=nn.Identity())
    fitted, held = case.split()
    again = case.split()
    assert torch.equal(fitted.images, again[0].images) and torch.equal(held.labels, again[1].labels)
    assert len(fitted) + len(held) == clean
    assert len(fitted) > 0 and len(held) > 0, "both parts of a split must hold an image"
    whole = torch.bincount(case.clean.labels, minlength=classes)
    kept = torch.bincount(held.labels, minlength=classes)
    least = torch.minimum(torch.full_like(whole, 10), whole // 2)
    assert bool((kept >= least).all()), "each class gives 10 images, or half of what it has"
    if clean >= 2 * classes:
        assert bool((kept < whole)[whole > 0].all()), "no class may go to the hold-out whole"


def test_the_model_is_a_copy_at_every_access() -> None:
    case = toys.case(frozenset({"model"}))
    one, other = case.fresh_model(), case.fresh_model()
    assert one is not other and not toys.differing(one, other)
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert toys.differing(one, case.fresh_model()) and not toys.differing(other, case.fresh_model())


def test_the_suite_can_fail() -> None:
    """Each careless outcome is caught by the check it breaks."""
    defense = catalog.make("defense", "none", {})
    model = toys.victim()
    check_outcome(defense, Outcome(model=model), 10, toys.QUARTER)
    with pytest.raises(AssertionError, match="returns a model"):
        check_outcome(defense, Outcome(), 10, toys.QUARTER)
    with pytest.raises(AssertionError, match="train mode"):
        check_outcome(defense, Outcome(model=toys.victim().train()), 10, toys.QUARTER)
    with pytest.raises(AssertionError, match="requires_grad"):
        frozen = toys.victim().requires_grad_(False)
        check_outcome(defense, Outcome(model=frozen), 10, toys.QUARTER)
    with pytest.raises(AssertionError, match="hook"):
        hooked = toys.victim()
        hooked.trunk.register_forward_hook(lambda *_: None)
        check_outcome(defense, Outcome(model=hooked), 10, toys.QUARTER)
    with pytest.raises(AssertionError, match="one entry a training sample"):
        scored = Outcome(model=model, scores=torch.zeros(9))
        check_outcome(defense, scored, 10, toys.QUARTER)


def test_other_keys_and_other_names_draw_other_numbers() -> None:
    case = toys.case(frozenset({"clean"}))
    other = toys.case(frozenset({"clean"}), key="another cell")
    draws = [torch.rand(4, generator=g) for g in (case.rng("a"), case.rng("b"), other.rng("a"))]
    assert torch.equal(draws[0], torch.rand(4, generator=case.rng("a")))
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    fresh = case.new_model(), case.new_model("second"), case.new_model()
    assert toys.differing(fresh[0], fresh[1]) and not toys.differing(fresh[0], fresh[2])


def test_accuracy_is_the_share_classified_as_labelled() -> None:
    case = toys.case(frozenset({"model", "clean"}))
    clean = case.clean
    right = case.accuracy(case.fresh_model(), clean)
    shifted = replace(clean, labels=(clean.labels + 1) % 10)
    assert right > 0.9 and case.accuracy(case.fresh_model(), shifted) < 0.1
