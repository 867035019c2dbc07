"""What every attack found by its file name must keep; sentences speak to the author of an attack.

A new file in `attacks/` is tested here without an edit: all its presets and label rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.base import CONTROLS, RULES, Attack
from sweeper.core import catalog, options, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts, ImageSet, Poisoned, Role
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks
from tests.house import outcomes
from tests.support import beyond, resuming, toys

NAMES = [name for name in catalog.names("attack") if beyond.made_for("attack", name, "image")]
"""Those for images; test_contract_tasks.py asks the others, and these on other tasks."""
VARIANTS = [pair for pair in toys.variants("attack") if pair[0] in NAMES]
every = pytest.mark.parametrize("name", NAMES)
every_variant = pytest.mark.parametrize(("name", "preset"), VARIANTS)


def learns(name: str, preset: str) -> bool:
    """Whether a variant prepares a state, which costs seconds."""
    try:
        return bool(catalog.make("attack", name, toys.asked(preset)).prepares)
    except Exception:
        return False


def slow_if(slow: Callable[[str, str], bool]) -> list[Any]:
    """Every variant, some for the slow suite."""
    return [pytest.param(*v, marks=[pytest.mark.slow] if slow(*v) else []) for v in VARIANTS]


QUICK = slow_if(lambda name, preset: bool(preset) and learns(name, preset))
"""Presets of attacks that learn run in the slow suite; their defaults run in the fast one."""
quick_variant = pytest.mark.parametrize(("name", "preset"), slow_if(learns))
"""Variants of attacks that learn run in the slow suite: their defaults poison in the fast one."""
RATES = (0.1, 0.3, 1.0)


def build(name: str, preset: str = "", **more: Any) -> Attack:
    found: Attack = toys.short("attack", name, {**toys.asked(preset), **more})
    return found


def rng(name: str = "draw") -> torch.Generator:
    return seeds.generator("contract of attacks", name)


def prepared(attack: Attack, data: ImageSet, rate: float = 0.0) -> dict[str, Tensor]:
    """The attack's state; learned once for equal options and data, as a sweep does."""
    if not attack.prepares:
        return {}
    attack = at_rate(attack, rate)
    identity = (repr(attack), data.images.numpy().tobytes())
    if identity not in STATES:
        STATES[identity] = attack.prepare(data, toys.ToyLab(data))
    return {name: value.clone() for name, value in STATES[identity].items()}


def at_rate(attack: Attack, rate: float) -> Attack:
    """The attack as its prepare cell has it: with the poison rate where the state depends on it."""
    asks = "poison_rate" in attack.state_axes
    return dataclasses.replace(attack, poison_rate=rate) if asks else attack


STATES: dict[tuple[str, bytes], dict[str, Tensor]] = {}


def rate_for(attack: Attack, data: ImageSet) -> float:
    """The lowest of a few rates at which the attack applies; 0 for one without a rate."""
    if not attack.rated:
        return 0.0
    for rate in RATES:
        if attack.applies(toys.facts(data), rate) is None:
            return rate
    pytest.skip(f"the toy data do not suit it: {attack.applies(toys.facts(data), RATES[0])}")


def check_poisoned(attack: Attack, data: ImageSet, found: Poisoned, rate: float) -> None:
    """Shapes, labels and roles of a poisoned set."""
    count = len(found.labels)
    assert found.images.dtype == torch.uint8 and found.images.shape[1:] == data.images.shape[1:], (
        "poison() must return uint8 images [N, C, H, W] of the shape it was given"
    )
    assert found.labels.dtype == found.true_labels.dtype == found.index.dtype == torch.int64, (
        "labels, true_labels and index of Poisoned are int64"
    )
    assert found.role.dtype == torch.uint8 and set(found.role.tolist()) <= set(Role), (
        "role is uint8 and holds values of Role"
    )
    lengths = {len(v) for v in (found.images, found.true_labels, found.role, found.index)}
    assert lengths == {count}, "every tensor of Poisoned has one entry a sample"
    assert 0 <= int(found.labels.min()) and int(found.labels.max()) < len(data.classes), (
        "poison() gave a label that no class has"
    )
    assert torch.equal(found.true_labels, data.labels[found.index]), (
        "true_labels must be the labels of the training split at `index`"
    )
    untouched = found.role == int(Role.CLEAN)
    assert torch.equal(found.images[untouched], data.images[found.index[untouched]]), (
        "a sample with role CLEAN must keep its image bit for bit"
    )
    honest = untouched | (found.role == int(Role.COVER))
    assert torch.equal(found.labels[honest], found.true_labels[honest]), (
        "clean and cover samples keep their true label"
    )
    check_poison(attack, data, found, rate)


def check_poison(attack: Attack, data: ImageSet, found: Poisoned, rate: float) -> None:
    """Number, choice and labels of the poisoned samples."""
    poison = found.role == int(Role.POISON)
    given, true = found.labels[poison], found.true_labels[poison]
    wanted, number = attack.count(data.labels, rate), int(poison.sum())
    if attack.controls == "data":
        assert number == wanted, (
            f"count() promises {wanted} poisoned samples, poison() made {number}"
        )
    else:
        assert number in (0, wanted), (
            "an attack on training poisons what count() says, or nothing before the loop runs"
        )
    allowed = attack.pool(data.labels)[found.index[poison]]
    assert bool(allowed.all()), "poison() chose a sample that pool() does not allow"
    assert torch.equal(given, attack.relabel(true, len(data.classes))), (
        "poisoned samples must carry the labels relabel() says"
    )
    if attack.rule == "clean":
        assert torch.equal(found.labels, found.true_labels), (
            "under the rule `clean` no label of the training set may differ from the true one"
        )
        assert bool((given == attack.target).all()), (
            "under the rule `clean` only images of the target class are poisoned"
        )
    elif attack.rule == "all2all":
        assert bool((given != true).all()), "under all2all no class may keep its label"
    else:
        assert bool((given == attack.target).all()), (
            f"under the rule `{attack.rule}` every poisoned sample is labelled with the target"
        )


def made(
    attack: Attack, data: ImageSet, state: dict[str, Tensor], found: Poisoned
) -> dict[str, Tensor]:
    """All tensors an attack makes: its state, the poisoned set and the triggered one."""
    hit = attack.trigger_set(data, state, rng())
    records = {
        "poisoned": (found, ("images", "labels", "true_labels", "role", "index", "pattern")),
        "triggered": (hit, ("images", "labels", "true_labels", "counts", "leaks")),
    }
    groups: dict[str, Mapping[str, Tensor]] = {
        group: {name: getattr(record, name) for name in names}
        for group, (record, names) in records.items()
    }
    groups["state"] = state
    return {
        f"{group}.{field}": value
        for group, fields in groups.items()
        for field, value in fields.items()
        if value is not None
    }


@every
def test_declarations_are_from_the_closed_sets(name: str) -> None:
    cls = catalog.method("attack", name)
    assert dataclasses.is_dataclass(cls), "decorate the attack with @dataclass(frozen=True)"
    assert cls.__dataclass_params__.frozen, "an attack is frozen: options never change"
    for attribute in ("title", "paper"):
        value = getattr(cls, attribute, "")
        assert isinstance(value, str) and value, f"declare `{attribute}`, it stands in every table"
    assert cls.controls in CONTROLS, f"controls: {cls.controls!r} is not one of {CONTROLS}"
    assert cls.rules and set(cls.rules) <= set(RULES), f"rules: one or more of {RULES}"
    assert len(set(cls.rules)) == len(cls.rules), "a rule stands twice in `rules`"
    assert cls.state_axes <= {"model", "poison_rate", "target", "seed"}, (
        "state_axes names axes a state may depend on: model, poison_rate, target, seed"
    )
    assert isinstance(cls.version, int) and cls.version >= 1
    if cls.prepares:
        assert cls.prepare is not Attack.prepare, "it declares `prepares`: write prepare()"


@every
def test_source_documents_module_class_and_every_option(name: str) -> None:
    cls = catalog.method("attack", name)
    missing = toys.undocumented(cls)
    assert not missing, f"give these a docstring in the line below: {', '.join(missing)}"


@every_variant
def test_options_are_json_and_build_the_same_attack_again(name: str, preset: str) -> None:
    attack = catalog.make("attack", name, toys.asked(preset))
    known = options.canonical(attack)
    assert seeds.canonical(known), "options must be JSON values: they are part of the key"
    paths = [f.name for f in dataclasses.fields(attack) if f.metadata.get("path")]
    again = {key: value for key, value in known.items() if key not in paths}
    assert catalog.make("attack", name, again) == attack or paths, (
        "the options written in a row must build the attack they came from"
    )
    assert all(key in options.names(type(attack)) for key in known), (
        "content() may only stand in for an option of its own name"
    )


@pytest.mark.parametrize(
    ("name", "preset", "classes"),
    [
        *(pytest.param(*item.values, 10, marks=item.marks) for item in QUICK),
        *((name, "", 2) for name in NAMES),
    ],
)
def test_poisons_toy_images_as_declared(name: str, preset: str, classes: int) -> None:
    shape = toys.QUARTER if learns(name, preset) else toys.COLOUR
    data, attack = toys.image_set(120, classes=classes, shape=shape), build(name, preset)
    rate, before = rate_for(attack, data), data.images.clone()
    state = prepared(attack, data, rate)
    found = attack.poison(data, rate, state, rng())
    assert torch.equal(data.images, before), "poison() must not write to the images it is given"
    check_poisoned(attack, data, found, rate)
    poison = found.role == int(Role.POISON)
    if attack.rule != "semantic" and bool(poison.any()):
        original = data.images[found.index[poison]]
        assert not torch.equal(found.images[poison], original), (
            "no poisoned image differs from its original: is the trigger stamped?"
        )
    if not preset and classes == 10:
        outcomes.check(f"attack {name}", attack.version, made(attack, data, state, found))


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name in NAMES for rule in toys.rules(name)],
)
@pytest.mark.parametrize("base", ["", "all", "non-target", "target-class"])
def test_every_rule_and_rate_base_keeps_its_labels(name: str, rule: str, base: str) -> None:
    data = toys.image_set(120, shape=toys.QUARTER)
    attack = dataclasses.replace(build(name, rule=rule, rate_base=base), target=3)
    why = attack.applies(toys.facts(data), 0.4) if attack.rated else None
    if why is not None:
        assert why.strip(), "applies() must say in words why the attack cannot be run"
        return
    if attack.prepares and base:
        return  # nothing that is learned depends on the base
    rate = 0.4 if attack.rated else 0.0
    state = prepared(attack, data, rate)
    check_poisoned(attack, data, attack.poison(data, rate, state, rng()), rate)


@quick_variant
def test_the_generator_decides_every_draw(name: str, preset: str) -> None:
    data, attack = toys.image_set(120, shape=toys.COLOUR), build(name, preset)
    rate = rate_for(attack, data)
    around = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    states = [prepared(attack, data, rate)] * 2
    if attack.prepares and not preset:  # once an attack: learning is what takes long here
        states[1] = at_rate(attack, rate).prepare(data, toys.ToyLab(data))
    assert toys.same(*states), "prepare() must give the same bits twice: draw from lab.rng(name)"
    assert all(isinstance(v, Tensor) for v in states[0].values()), "a state is named tensors only"
    found = [attack.poison(data, rate, states[0], rng()) for _ in range(2)]
    for name in ("images", "labels", "true_labels", "role", "index", "pattern"):
        one, other = (getattr(f, name) for f in found)
        assert one is other is None or torch.equal(one, other), (
            f"two runs with one generator differ in `{name}`: draw from `rng` alone"
        )
    one, other = (attack.trigger_set(data, states[0], rng()) for _ in range(2))
    assert torch.equal(one.images, other.images), "trigger_set() must draw from `rng` alone"
    assert torch.equal(torch.get_rng_state(), around[0]), (
        "the attack drew from torch's global generator: draw from `rng`"
    )
    assert np.random.get_state()[1].tobytes() == around[1], (
        "the attack drew from numpy's global generator: use seeds.numpy_generator or `rng`"
    )


@quick_variant
@pytest.mark.parametrize("shape", [toys.COLOUR, toys.GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("split", ["train", "cover", "test"])
def test_stamp_takes_and_gives_uint8(
    name: str, preset: str, shape: tuple[int, int, int], split: str
) -> None:
    data, attack = toys.image_set(120, shape=shape), build(name, preset)
    before = data.images.clone()
    try:
        state = prepared(attack, data)
        found = attack.stamp(data.images, split=split, state=state, rng=rng())
        again = attack.stamp(data.images, split=split, state=state, rng=rng())
    except SweepError as error:
        assert shape == toys.GREY, f"stamp() must work on 3x32x32 images: {error}"
        assert str(error).strip(), "say why the trigger does not fit"
        return
    assert found.dtype == torch.uint8, "stamp() returns uint8 images"
    assert found.shape == data.images.shape, "stamp() keeps the shape [B, C, H, W]"
    assert torch.equal(data.images, before), "stamp() must not write to the images it is given"
    assert found.data_ptr() != data.images.data_ptr(), "stamp() returns images of its own"
    assert torch.equal(found, again), "stamp() must draw from `rng` alone"
    empty = attack.stamp(data.images[:0], split=split, state=state, rng=rng())
    assert empty.shape == data.images[:0].shape, "stamp() must bear a batch of no image"


@quick_variant
def test_trigger_set_counts_what_the_rule_counts(name: str, preset: str) -> None:
    data = toys.image_set(100, shape=toys.COLOUR, seed=2)
    attack = dataclasses.replace(build(name, preset), target=0)
    state = prepared(attack, toys.image_set(120, shape=toys.COLOUR))
    found = attack.trigger_set(data, state, rng())
    size = len(found.images)
    assert found.images.dtype == torch.uint8 and found.images.shape[1:] == data.images.shape[1:]
    assert found.counts.dtype == found.leaks.dtype == torch.bool, "counts and leaks are bool"
    assert found.labels.dtype == found.true_labels.dtype == torch.int64
    assert all(len(v) == size for v in (found.labels, found.true_labels, found.counts, found.leaks))
    counted = found.counts
    assert bool((found.labels[counted] != found.true_labels[counted]).all()), (
        "an image counts for ASR although the attacker wants its true label"
    )
    assert not bool((found.counts & found.leaks).any()), "an image counts for ASR or for leak"
    assert torch.equal(found.labels, attack.target_labels(found.true_labels, len(data.classes)))
    if attack.rule == "all2all":
        assert bool(counted.all()), "under all2all every triggered image counts"
        assert torch.equal(found.labels, (found.true_labels + 1) % len(data.classes))
    elif attack.rated and attack.rule in ("all2one", "clean"):
        assert torch.equal(counted, found.true_labels != attack.target), (
            "under all2one and clean the images of the target class do not count"
        )
    if attack.rule in ("all2one", "all2all", "clean"):
        assert torch.equal(found.true_labels, data.labels), "the whole test split is triggered"
    assert len(attack.clean_test(data, state)) <= len(data)


@every
def test_applies_gives_a_reason_exactly_where_the_count_does_not_fit(name: str) -> None:
    cls = catalog.method("attack", name)
    if not cls.rated:
        assert build(name).applies(toys.facts(toys.image_set(40)), 0.0) is None
        pytest.skip("the poison rate means nothing to this attack")
    lopsided = (2, 90, 0, 8)
    known = Facts("toy", "toy", classes=4, class_counts=lopsided, n_train=100)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(lopsided))
    for rule in cls.rules:
        for base in ("", "all", "non-target", "target-class"):
            attack = build(name, rule=rule, rate_base=base)
            for rate in (1e-9, 0.02, 0.5, 1.0):
                count, pool = attack.count(labels, rate), int(attack.pool(labels).sum())
                why = attack.applies(known, rate)
                if not 0 < count <= pool:
                    assert isinstance(why, str) and why.strip(), (
                        f"applies() must refuse {count} of {pool} images ({rule}, {base}, {rate})"
                    )
                elif type(attack).applies is Attack.applies:
                    assert why is None, f"{count} of {pool} images can be poisoned, yet: {why}"
    beyond = dataclasses.replace(build(name), target=4)
    assert beyond.applies(known, 0.5), "a target label that does not exist must be refused"
    empty = dataclasses.replace(build(name), target=2)
    if empty.targeted:
        assert "target label 2 is empty" in (empty.applies(known, 0.5) or ""), (
            "a target class without training samples must be called empty"
        )
    assert build(name).applies(Facts("toy", ""), 0.5) is None, (
        "nothing is known of data that are not on this machine: applies() must not refuse them"
    )


@quick_variant
def test_hooks_and_recipe_train_a_finite_model(name: str, preset: str) -> None:
    data, attack = toys.image_set(120, shape=toys.COLOUR), build(name, preset)
    recipe = attack.recipe(toys.RECIPE)
    assert isinstance(recipe, Recipe), "recipe() returns a Recipe"
    rate = rate_for(attack, data)
    attack = dataclasses.replace(attack, poison_rate=rate)
    state = prepared(attack, data, rate)
    hooks = attack.hooks(data, state, rng("hooks"))
    assert hooks is None or isinstance(hooks, Hooks), "hooks() returns training.Hooks or None"
    assert (hooks is None) or attack.controls != "data", (
        "an attack on data alone cannot own a part of the training loop"
    )
    found = attack.poison(data, rate, state, rng())
    model = toys.network(rng("model"))
    losses = training.fit(
        model,
        found.samples,
        dataclasses.replace(recipe, epochs=1),
        key="contract",
        device=toys.CPU,
        hooks=hooks,
    )
    assert len(losses) == 1
    finite = all(bool(v.isfinite().all()) for v in model.state_dict().values())
    assert finite, "one epoch of training leaves weights that are not finite"
    if hooks is not None and not preset:
        learned = {f"learned.{item}": value for item, value in hooks.learned().items()}
        outcomes.check(f"training by {name}", attack.version, toys.weights(model) | learned)


@pytest.mark.parametrize(
    ("name", "preset"),
    [item for item in QUICK if catalog.method("attack", item.values[0]).hooks is not Attack.hooks],
)
def test_a_stopped_training_goes_on_to_the_same_bits(
    name: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, attack = toys.image_set(60, shape=toys.QUARTER), build(name, preset)
    rate = rate_for(attack, data)
    attack = dataclasses.replace(attack, poison_rate=rate)
    state = prepared(attack, data, rate)
    if attack.hooks(data, state, rng("hooks")) is None:
        pytest.skip("this variant has no hooks")
    recipe = dataclasses.replace(attack.recipe(toys.RECIPE), epochs=3)
    whole, resumed = resuming.attacked(attack, data, state, recipe, 2, monkeypatch)
    assert resumed is not None, (
        "every class of hooks names in `keeps` what it carries from epoch to epoch, or says ()"
    )
    resuming.assert_equal(whole, resumed, 2)


def test_the_suite_can_fail() -> None:
    """Each careless attack is caught by the check it breaks."""
    from attacks.badnets import BadNets

    data = toys.image_set(100)
    honest = BadNets()
    found = honest.poison(data, 0.2, {}, rng())
    check_poisoned(honest, data, found, 0.2)
    first = int((found.role == int(Role.CLEAN)).nonzero()[0])
    stained, relabelled = found.images.clone(), found.labels.clone()
    stained[first, 0, 0, 0] ^= 1
    relabelled[first] = (relabelled[first] + 1) % 10
    with pytest.raises(AssertionError, match="keep its image"):
        check_poisoned(
            honest,
            data,
            dataclasses.replace(found, samples=found.samples.changed(images=stained)),
            0.2,
        )
    with pytest.raises(AssertionError, match="keep their true label"):
        check_poisoned(
            honest,
            data,
            dataclasses.replace(found, samples=found.samples.changed(labels=relabelled)),
            0.2,
        )
    with pytest.raises(AssertionError, match="count"):
        check_poisoned(honest, data, found, 0.3)
