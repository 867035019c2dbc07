"""Small things tests share: toy images, a trained toy victim, what a defense or `prepare` gets."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from attacks.badnets import BadNets
from defenses.base import Case, Defense
from sweeper import models
from sweeper.core import catalog, options, seeds
from sweeper.core.types import Facts, ImageSet, Poisoned, Role, Samples, State, Triggered
from sweeper.engine import metrics, training
from sweeper.engine import task as tasks
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Batch
from sweeper.engine.training import Hooks
from sweeper.models.base import Net

CPU = torch.device("cpu")
COLOUR = (3, 32, 32)
"""As large as images of CIFAR-10: attacks are stamped on these."""
GREY = (1, 8, 8)
QUARTER = (3, 16, 16)
"""What is drawn, trained and defended here unless told otherwise: a quarter of the work."""
RECIPE = Recipe(epochs=12, batch=32, lr=0.05, warmup=1.0, precision="fp32")
"""Trains a toy victim: single precision, no augmentation."""
PLANTED = BadNets(trigger="white", size=6)
"""The backdoor of the toy victim: a patch it learns within a second."""
KEPT = Path(__file__).with_name("victims.safetensors")
"""Toy victims of ten classes as they were once trained, by the side of their images: rounding
differs by processor, and twelve epochs make another model of that."""
_LENGTHS = ("steps", "epochs", "iterations")


def image_set(
    count: int, *, classes: int = 10, shape: tuple[int, int, int] = QUARTER, seed: int = 0
) -> ImageSet:
    """Noisy copies of one prototype a class, in an order that is random but fixed by `seed`."""
    prototypes = torch.randint(
        40, 216, (classes, shape[0], 4, 4), generator=seeds.generator("toy", classes)
    )
    whole = torch.nn.functional.interpolate(prototypes.float(), shape[1:])
    rng = seeds.generator("toy", seed)
    labels = torch.arange(count)[torch.randperm(count, generator=rng)] % classes
    noise = 40 * torch.randn(count, *shape, generator=rng)
    images = (whole[labels] + noise).clamp(0, 255).to(torch.uint8)
    return ImageSet(images, labels, tuple(f"class {number}" for number in range(classes)))


def facts(data: Samples) -> Facts:
    """What the matrix would know of this set if all of it were the attacker's."""
    counts: list[int] = []
    if data.labelled:
        counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    return Facts(
        dataset="toy",
        digest="toy",
        classes=len(data.classes),
        shape=tuple(data.inputs.shape[1:]),
        class_counts=tuple(counts),
        n_train=len(data),
        task=data.task,
    )


def measured(
    model: nn.Module,
    test: ImageSet,
    hit: Triggered,
    target: int | None = 0,
    recipe: Recipe = RECIPE,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """ACC, ASR and their variants."""
    predict = tasks.of(test).answering(model, recipe, device)
    return metrics.evaluate(predict, test, hit, target, seeds.generator("measure"))


def network(
    rng: Generator,
    *,
    classes: int = 10,
    shape: tuple[int, int, int] = COLOUR,
    model: str = "tiny",
    changes: Mapping[str, Any] | None = None,
    **given: Any,
) -> Net:
    """A small network; `tiny` with stages of 8, 16 and 32 channels unless told otherwise."""
    chosen = given or ({"width": 4} if model == "tiny" else {})
    return models.build(
        model,
        chosen,
        classes=classes,
        shape=shape,
        mean=[0.5] * shape[0],
        std=[0.25] * shape[0],
        generator=rng,
        changes=changes,
    )


@functools.cache
def _kept() -> dict[tuple[int, tuple[int, int, int]], dict[str, Tensor]]:
    """(classes, shape) -> weights of a victim that is not trained anew."""
    found: dict[tuple[int, tuple[int, int, int]], dict[str, Tensor]] = {}
    for name, value in load_file(KEPT).items():
        side, _, layer = name.partition(".")
        found.setdefault((10, (3, int(side), int(side))), {})[layer] = value
    return found


@functools.lru_cache(maxsize=16)
def _trained(classes: int, shape: tuple[int, int, int]) -> tuple[Net, Poisoned]:
    train = image_set(max(240, 6 * classes), classes=classes, shape=shape)
    poisoned = PLANTED.poison(train, 0.2, {}, seeds.generator("toy", "poison"))
    model = network(seeds.generator("toy", "model"), classes=classes, shape=shape)
    if weights := _kept().get((classes, shape)):
        model.load_state_dict(weights)
        return model, poisoned
    given = poisoned.samples
    training.fit(model, given, RECIPE, key="toy", device=CPU)
    return model, poisoned


def victim(classes: int = 10, shape: tuple[int, int, int] = QUARTER) -> Net:
    """A trained toy victim of BadNets; a copy of the caller's own, in eval mode."""
    model = network(seeds.generator("toy", "model"), classes=classes, shape=shape)
    model.load_state_dict(_trained(classes, shape)[0].state_dict())
    return model.eval()


def poisoned_set(classes: int = 10, shape: tuple[int, int, int] = QUARTER) -> Poisoned:
    """What `victim` was trained on; tensors of the caller's own."""
    found = _trained(classes, shape)[1]
    tensors = {name: value.clone() for name, value in found.samples.tensors.items()}
    names = ("true_labels", "role", "index")
    more = {name: getattr(found, name).clone() for name in names}
    return replace(found, samples=found.samples.changed(**tensors), **more)


def plain(data: Samples, **changes: Any) -> Batch:
    """All of some samples as one batch, as they are measured."""
    return replace(tasks.of(data).plain(data, CPU), **changes)


def black_box(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model as `case.queries`."""

    @torch.inference_mode()
    def ask(images: Tensor) -> Tensor:
        found: Tensor = model(images.float().div(255)).softmax(1)
        return found

    return ask


def case(
    sees: frozenset[str],
    *,
    key: str = "toy case",
    classes: int = 10,
    shape: tuple[int, int, int] = QUARTER,
    clean: ImageSet | int = 80,
    model: Net | None = None,
    state: State | None = None,
    kind: type[Case] = Case,
    **changes: Any,
) -> Case:
    """A case that holds what `sees` declares and nothing else.

    Args:
        sees: What the defense declares.
        key: Identity of the cell.
        classes: Number of classes of the toy data.
        shape: (C, H, W).
        clean: The clean budget, or how many toy images it has.
        model: The victim; default the trained toy victim.
        state: What the defense's stage left.
        kind: `Case`, or a subclass of the test.
        changes: Fields of the recipe.
    """
    held = clean
    if isinstance(held, int):
        held = image_set(held, classes=classes, shape=shape, seed=1)
    model = model or victim(classes, shape)
    given: dict[str, Any] = {"model": model, "clean": held}
    if "train" in sees:
        poisoned = poisoned_set(classes, shape)
        given["train"] = poisoned.samples.changed(positions=None)
    if "queries" in sees:
        given["queries"] = black_box(victim(classes, shape))
    if "oracle" in sees:
        given["oracle"] = oracle(classes, shape)
    return kind(
        sees=sees,
        key=key,
        device=CPU,
        recipe=replace(RECIPE, **changes),
        given={name: value for name, value in given.items() if name in sees},
        build=lambda rng, **changes: network(rng, classes=classes, shape=shape, changes=changes),
        state=state,
    )


def oracle(
    classes: int = 10, shape: tuple[int, int, int] = QUARTER
) -> Callable[[nn.Module], tuple[float, float]]:
    """ACC and ASR of any model on toy test images."""
    test = image_set(100, classes=classes, shape=shape, seed=2)
    hit = PLANTED.trigger_set(test, {}, seeds.generator("toy", "trigger"))

    def ask(model: nn.Module) -> tuple[float, float]:
        found = measured(model, test, hit)
        return float(found["acc"] or 0), float(found["asr"] or 0)

    return ask


def auroc(scores: Tensor | None, shape: tuple[int, int, int] = GREY) -> float:
    """AUROC of scores of the toy training set for its poisoned samples."""
    assert scores is not None
    poisoned = poisoned_set(shape=shape).role == int(Role.POISON)
    found = metrics.auroc(scores.double().numpy(), poisoned.numpy())
    assert found is not None
    return found


class ToyLab:
    """What an attack's `prepare` may use; see `attacks.base.Lab`."""

    def __init__(self, data: ImageSet, key: str = "toy lab") -> None:
        self.device = CPU
        self.classes = len(data.classes)
        self._shape = tuple(data.images.shape[1:])
        self._key = key

    def rng(self, name: str) -> Generator:
        """A generator of its own for each named draw."""
        return seeds.generator(self._key, name)

    def clean_model(self) -> Net:
        """A trained model."""
        return victim(self.classes, self._shape)

    def new_model(self, name: str = "model") -> Net:
        """A freshly initialised model."""
        return network(self.rng(name), classes=self.classes, shape=self._shape)

    def fit(
        self,
        model: nn.Module,
        data: ImageSet,
        hooks: Hooks | None = None,
        *,
        name: str = "",
        **changes: Any,
    ) -> None:
        """Train for one epoch."""
        recipe = replace(RECIPE, **{**changes, "epochs": 1})
        training.fit(model, data, recipe, key=self._key + name, device=CPU, hooks=hooks)

    def log(self, **progress: Any) -> None:
        """Nobody looks."""


def small(cls: type) -> dict[str, int]:
    """Options that make a method short: its fields named steps, epochs or iterations, or so ending.

    A field of 0 or 1 stays as it is: it says that something is not done, or done once.
    """
    found = {}
    for item in dataclasses.fields(cls):
        named = item.name.rpartition("_")[2] in _LENGTHS
        if item.name in options.names(cls) and named and isinstance(item.default, int):
            found[item.name] = min(item.default, 2)
    return found


def small_look(name: str) -> Any:
    """An analysis with options that make it short."""
    from sweeper.analyses import looks

    kind, few = looks.analysis(name), {"images": 50, "vectors": 3, "points": 3}
    known = {item.name for item in dataclasses.fields(kind)}
    return looks.make(name, small(kind) | {o: few[o] for o in few.keys() & known})


def short(kind: str, name: str, asked: Mapping[str, Any], **axes: Any) -> Any:
    """Build a method as a sweep file would, made short by `small`."""
    return catalog.make(kind, name, {**asked, **small(catalog.method(kind, name))}, **axes)


def variants(kind: str) -> list[tuple[str, str]]:
    """Every (method, preset) of a kind, "" for the defaults; a broken file fails in its test."""
    found = []
    for name in catalog.names(kind):
        try:
            presets = sorted(catalog.method(kind, name).presets)
        except Exception:
            presets = []
        found += [(name, ""), *((name, preset) for preset in presets)]
    return found


def rules(name: str) -> tuple[str, ...]:
    """The label rules of an attack; of a broken file one, so that it fails in its test."""
    try:
        found: tuple[str, ...] = catalog.method("attack", name).rules
    except Exception:
        found = ("all2one",)
    return found


def undocumented(cls: type) -> list[str]:
    """The module, the class, or fields of it, that have no docstring in the source."""
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    missing = [] if ast.get_docstring(tree) else ["the module"]
    (found,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    missing += [] if ast.get_docstring(found) else [cls.__name__]
    body = found.body
    own = {f.name for f in dataclasses.fields(cls)}
    for place, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            after = body[place + 1] if place + 1 < len(body) else None
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if node.target.id in own and not (text and str(after.value.value).strip()):
                missing.append(node.target.id)
    return missing


def asked(preset: str) -> dict[str, str]:
    """The options a sweep file gives for a variant."""
    return {"preset": preset} if preset else {}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two groups of tensors are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def differing(one: nn.Module, other: nn.Module) -> set[str]:
    """Names of the parameters and buffers in which two models of one shape differ."""
    left, right = one.state_dict(), other.state_dict()
    return {name for name in left if not torch.equal(left[name], right[name])}


def run(defense: Defense, **given: Any) -> Any:
    """Run a defense, with its stage first, on a toy case."""
    stage = defense.stage()
    if stage is not None:
        given["state"] = stage.run(case(stage.sees, **given))
    return defense.defend(case(defense.sees, **given))
