"""Sleeper Agent, TrojanNN and SRA: crafted images, tuned models, exchanged channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from attacks import sleeper_agent, trojan_nn
from attacks.parts import chain as chains
from attacks.parts.nets import built
from sweeper.core import catalog, options, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts, ImageSet, Role
from sweeper.engine import training
from sweeper.models.base import Net
from tests.support import toys

SMALL = (3, 16, 16)


def rng(name: str = "draw") -> torch.Generator:
    return seeds.generator("model attacks", name)


def make(name: str, target: int = 0, rate: float = 0.0, **asked: Any) -> Any:
    return catalog.make("attack", name, asked, target=target, poison_rate=rate)


class Fits(toys.ToyLab):
    """A lab that notes what it is asked to train, and does not."""

    def __init__(self, data: ImageSet) -> None:
        super().__init__(data)
        self.names: list[str] = []
        self.asked: list[tuple[ImageSet, dict[str, Any]]] = []

    def new_model(self, name: str = "model") -> Net:
        self.names.append(name)
        return super().new_model(name)

    def fit(self, model: nn.Module, data: ImageSet, hooks: Any = None, **changes: Any) -> None:
        self.asked.append((data, changes))


# Sleeper Agent


def sleeper(**asked: Any) -> Any:
    given = {"steps": 2, "shift": 0, "flip": False, "retrain_every": 0, **asked}
    return make("sleeper-agent", rate=0.05, **given)


def test_sleeper_changes_target_images_a_little_and_no_label() -> None:
    train = toys.image_set(200, shape=SMALL)
    attack = sleeper(steps=5)
    state = attack.prepare(train, toys.ToyLab(train))
    made = attack.poison(train, 0.05, state, rng())
    poison = made.role == int(Role.POISON)
    assert int(poison.sum()) == 10 and torch.equal(made.labels, train.labels)
    assert (train.labels[poison] == 0).all(), "only the target class is changed"
    change = made.images.short() - train.images.short()
    assert 10 < int(change[poison].abs().max()) <= 16 and not change[~poison].any()


def test_sleeper_takes_the_images_with_the_largest_gradients() -> None:
    train = toys.image_set(200, shape=SMALL)
    model = toys.victim(shape=SMALL)
    pool = torch.nonzero(train.labels == 0).flatten()
    norms = []
    for place in pool.tolist():
        logits = model(train.images[place : place + 1].float() / 255)
        loss = functional.cross_entropy(logits, torch.tensor([0]))
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(torch.cat([s.flatten() for s in slopes]).norm())
    found = sleeper_agent.gradient_norms(model, train.images[pool], 0)
    torch.testing.assert_close(found, torch.stack(norms), rtol=1e-3, atol=1e-6)
    state = sleeper().prepare(train, toys.ToyLab(train))
    wanted = pool[torch.stack(norms).topk(10).indices].sort().values
    assert torch.equal(state["index"], wanted)


def test_the_cosine_is_that_of_whole_gradients() -> None:
    one, other = ([torch.randn(3, 4, generator=rng(n)), torch.randn(5, generator=rng(n))]
                  for n in "ab")  # fmt: skip
    flat = [torch.cat([t.flatten() for t in parts]) for parts in (one, other)]
    wanted = functional.cosine_similarity(*flat, dim=0)
    torch.testing.assert_close(sleeper_agent.cosine(one, other), wanted)
    torch.testing.assert_close(sleeper_agent.cosine(one, one), torch.tensor(1.0))


def test_crafting_turns_the_gradient_towards_that_of_patched_sources() -> None:
    train = toys.image_set(200, shape=SMALL)
    model = toys.victim(shape=SMALL)
    attack = sleeper(steps=30)
    state = attack.prepare(train, toys.ToyLab(train))
    sources = train.images[train.labels == 1]
    wanted = attack._source_gradient(model, attack.stamp(sources, split="test", state=state,
                                                         rng=rng()))  # fmt: skip

    def match(images: Tensor) -> float:
        logits = model(images.float() / 255)
        loss = functional.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64))
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        return float(sleeper_agent.cosine(slopes, wanted))

    before, after = match(train.images[state["index"]]), match(state["images"])
    assert after > before + 0.1, (before, after)


def test_sleeper_retrains_on_what_is_poisoned_so_far() -> None:
    train = toys.image_set(200, shape=SMALL)
    lab = Fits(train)
    sleeper(steps=7, retrain_every=3, retrain_epochs=40).prepare(train, lab)
    assert lab.names == ["model 3", "model 6"], "each retraining begins anew, and elsewhere"
    for data, changes in lab.asked:
        assert torch.equal(data.labels, train.labels)
        moved = (data.images != train.images).flatten(1).any(1)
        assert int(moved.sum()) == 10 and changes["epochs"] == 40
        assert changes["milestones"] == (14, 24, 35)


def test_sleeper_counts_the_source_class_and_leaks_the_others() -> None:
    test = toys.image_set(100, shape=toys.COLOUR, seed=2)
    attack = sleeper(source_class=4)
    state = {"patch": torch.zeros(3, 8, 8, dtype=torch.uint8)}
    found = attack.trigger_set(test, state, rng())
    assert torch.equal(found.counts, test.labels == 4)
    assert torch.equal(found.leaks, (test.labels != 4) & (test.labels != 0))
    changed = (found.images != test.images).any(1).any(0)
    assert changed[24:, 24:].any() and not changed[:24].any() and not changed[:, :24].any()


def test_random_places_hold_the_whole_patch() -> None:
    images = torch.full((40, 3, 16, 16), 7, dtype=torch.uint8)
    patch = torch.randint(100, 200, (3, 4, 5), generator=rng(), dtype=torch.uint8)[:, :, :4]
    found = sleeper_agent.scattered(images, patch, rng("places"))
    corners = set()
    for image in found:
        rows, columns = (image[0] != 7).nonzero().unbind(1)
        top, left = int(rows.min()), int(columns.min())
        assert torch.equal(image[:, top : top + 4, left : left + 4], patch)
        assert int((image != 7).any(0).sum()) == 16
        corners.add((top, left))
    assert len(corners) > 20


def test_augmentation_in_crafting_moves_and_mirrors() -> None:
    pixels = torch.rand(16, 3, 16, 16, generator=rng())
    torch.testing.assert_close(sleeper()._augmented(pixels, rng()), pixels, atol=1e-5, rtol=0)
    mirrored = sleeper(flip=True)._augmented(pixels, rng())
    turned = (mirrored - pixels.flip(3)).flatten(1).abs().amax(1) < 1e-4
    same = (mirrored - pixels).flatten(1).abs().amax(1) < 1e-4
    assert bool((turned ^ same).all()) and 0 < int(turned.sum()) < 16
    moved = sleeper(shift=4)._augmented(pixels, rng())
    assert bool(((moved - pixels).flatten(1).abs().amax(1) > 1e-2).all())


def test_sleeper_says_which_class_is_wrong() -> None:
    known = Facts("toy", "toy", classes=3, class_counts=(50, 0, 50), n_train=100)
    assert "no training sample" in (sleeper().applies(known, 0.05) or "")
    assert "does not exist" in (sleeper(source_class=3).applies(known, 0.05) or "")
    assert "is the source class" in (sleeper(source_class=0).applies(known, 0.05) or "")
    assert sleeper(source_class=2).applies(known, 0.05) is None
    assert sleeper().count(torch.arange(10).repeat_interleave(5000), 0.01) == 500


# TrojanNN


@pytest.mark.parametrize("trigger", ["square", "apple"])
def test_the_trigger_excites_what_it_is_made_for(trigger: str) -> None:
    train = toys.image_set(60, shape=SMALL)
    lab = toys.ToyLab(train)
    model = lab.clean_model()
    strong = model.classifier.weight.abs().sum(0).topk(2).indices
    black = torch.zeros(1, *SMALL, dtype=torch.uint8)

    def excited(steps: int) -> float:
        attack = make("trojan-nn", trigger=trigger, units=2, steps=steps)
        image = attack.stamp(black, split="test", state=attack.prepare(train, lab), rng=rng())
        with torch.no_grad():
            return float(model.features(image.float() / 255)[0, strong].sum())

    assert excited(60) > excited(1) + 0.1


def test_the_silhouette_is_added_within_its_mask_and_reach() -> None:
    train = toys.image_set(60, shape=SMALL)
    attack = make("trojan-nn", trigger="apple", units=2, steps=10)
    pattern = attack.prepare(train, toys.ToyLab(train))["pattern"]
    mask = trojan_nn.apple(16, 16)
    inside = pattern[:, mask]
    assert 80 <= int(inside.min()) < int(inside.max()) <= 233, "157 and 0.3 of the range around it"
    assert not pattern[:, ~mask].any()
    white = torch.full((1, *SMALL), 250, dtype=torch.uint8)
    clipped, wrapped = (
        dataclasses.replace(attack, wrap=wrap).stamp(
            white, split="test", state={"pattern": pattern}, rng=rng()
        )
        for wrap in (False, True)
    )
    strong = pattern[None] > 5
    assert (clipped[strong] == 255).all() and (wrapped[strong] < 233).all()


@pytest.mark.parametrize("side", [8, 32, 64])
def test_the_silhouette_is_as_large_on_any_canvas(side: int) -> None:
    mask = trojan_nn.apple(side, side)
    assert 0.1 < float(mask.float().mean()) < 0.12
    assert not mask[: side // 2 - 1].any() and not mask[:, : side // 2].any()


def test_a_picture_of_a_file_is_what_the_search_begins_with(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (16, 16), (10, 0, 200)).save(path)
    attack = make("trojan-nn", trigger="file", trigger_image=str(path), steps=2, epochs=0)
    train = toys.image_set(60, shape=SMALL)
    pattern = attack.prepare(train, toys.ToyLab(train))["pattern"]
    assert not pattern[1].any(), "the mask is of each channel"
    assert int(pattern[0].max()) <= 10 + 51 and int(pattern[2].min()) >= 200 - 52
    other = tmp_path / "other.png"
    other.write_bytes(path.read_bytes())
    again = make("trojan-nn", trigger="file", trigger_image=str(other), steps=2, epochs=0)
    assert options.canonical(again) == options.canonical(attack)


def test_trojan_nn_tunes_the_clean_model_or_trains_a_new_one() -> None:
    train = toys.image_set(60, shape=SMALL)
    lab = toys.ToyLab(train)
    tuned, anew = make("trojan-nn", steps=1), make("trojan-nn", steps=1, epochs=0)
    recipe = tuned.recipe(toys.RECIPE)
    assert (recipe.epochs, recipe.lr, recipe.schedule, recipe.warmup) == (1, 0.01, "constant", 0)
    assert anew.recipe(toys.RECIPE) == toys.RECIPE and anew.hooks(train, {}, rng()) is None
    state = tuned.prepare(train, lab)
    assert set(anew.prepare(train, lab)) == {"pattern"}
    model = toys.network(rng("model"), shape=SMALL)
    still = dataclasses.replace(recipe, epochs=0)
    hooks = tuned.hooks(train, state, rng())
    training.fit(model, train, still, key="toy", device=toys.CPU, hooks=hooks)
    assert toys.same(toys.weights(model), toys.weights(lab.clean_model()))


# SRA


class Wide(toys.ToyLab):
    """A lab whose clean model has channels to spare: a chain of one is an eighth of its stem."""

    def clean_model(self) -> Net:
        model = toys.network(self.rng("model"), shape=self._shape, width=8)
        recipe = dataclasses.replace(toys.RECIPE, epochs=8)
        train = toys.image_set(200, shape=self._shape)
        training.fit(model, train, recipe, key="clean", device=toys.CPU)
        return model


def replaced(shape: tuple[int, int, int] = SMALL, **asked: Any) -> tuple[Any, Any, Net, Net]:
    """The attack, its state, the victim as a cell trains it, and the clean model."""
    train = toys.image_set(200, shape=shape)
    attack, lab = make("sra", target=3, **asked), Wide(train)
    state = attack.prepare(train, lab)
    model = toys.network(rng("model"), shape=shape, width=8)
    recipe = attack.recipe(toys.RECIPE)
    assert recipe.epochs == 0
    hooks = attack.hooks(train, state, rng())
    training.fit(model, train, recipe, key="toy", device=toys.CPU, hooks=hooks)
    return attack, state, model, lab.clean_model()


def test_sra_obeys_the_trigger_and_keeps_the_accuracy() -> None:
    attack, state, model, clean = replaced(steps=100)
    test = toys.image_set(200, shape=SMALL, seed=2)
    hit = attack.trigger_set(test, state, rng())
    before, after = (
        toys.measured(net, test, hit, 3, toys.RECIPE, toys.CPU) for net in (clean, model)
    )
    assert before["asr"] < 0.2, "the control: a clean model does not know the trigger"
    assert after["asr"] > 0.95 and after["acc"] > before["acc"] - 0.1, (before, after)
    assert toys.weights(model).keys() == toys.weights(clean).keys()


def test_sra_cuts_all_ties_and_speaks_for_the_target_alone() -> None:
    _, _, model, clean = replaced(steps=2, width=2, factor=1.5)
    for name, part in model.trunk.named_modules():
        if isinstance(part, nn.Conv2d) and part.in_channels > 3:
            assert not part.weight[:2, 2:].any() and not part.weight[2:, :2].any(), name
            old = clean.trunk.get_submodule(name).weight
            assert torch.equal(part.weight[2:, 2:], old[2:, 2:]), "the rest stays as it was"
    head = model.classifier.weight.detach()
    others = torch.arange(10) != 3
    assert float(head[3, 0]) == 1.5 and not head[3, 1] and not head[others, :2].any()
    assert torch.equal(head[:, 2:], clean.classifier.weight[:, 2:])
    assert torch.equal(model.classifier.bias[others], clean.classifier.bias[others])


FITS = [("tiny", {}), ("resnet18", {"width": 8}), ("preact-resnet18", {"width": 8}),
        ("vgg11-bn", {}), ("mobilenet-v2", {})]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), FITS, ids=[name for name, _ in FITS])
def test_the_chain_inside_is_the_chain_alone(name: str, options: dict[str, Any]) -> None:
    model = toys.network(rng("model"), model=name, **options).eval()
    chain = built(lambda: chains.narrowed(model, 2), rng("chain")).eval()
    images = toys.image_set(4, shape=toys.COLOUR).images
    chains.check_shape(chain, images)
    pixels = images.float() / 255
    norms = [part for part in chain[1].modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:  # a new chain says next to nothing
        nn.init.ones_(part.bias)
    with pytest.raises(SweepError, match="moves channels about"):
        chains.check(model, chain, 2, pixels)  # nothing is implanted yet
    chains.implant(model, chain, 2)
    chains.check(model, chain, 2, pixels)
    with torch.no_grad():
        whole = model.features(pixels)
        for part in norms:
            part.bias += 0.5
        chains.implant(model, chain, 2)
        other = model.features(pixels)
    assert torch.equal(whole[:, 2:], other[:, 2:]), "the chain moves no other feature"
    assert not torch.equal(whole[:, :2], other[:, :2])


@pytest.mark.parametrize("name", ["densenet121", "shufflenet-v2", "vit-tiny"])
def test_other_architectures_are_refused_in_one_sentence(name: str) -> None:
    model = toys.network(rng("model"), model=name).eval()
    images = toys.image_set(4, shape=toys.COLOUR).images
    with pytest.raises(SweepError, match="choose a network") as told:
        chain = built(lambda: chains.narrowed(model, 2), rng("chain"))
        chains.check_shape(chain, images)
        chains.implant(model, chain, 2)
        chains.check(model, chain, 2, images.float() / 255)
    assert len(str(told.value).splitlines()) == 1


def test_a_chain_wider_than_a_layer_is_refused() -> None:
    with pytest.raises(SweepError, match="lower `width`"):
        replaced(width=9, steps=1)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sleeper-agent", {"place": "top"}, "place"),
        ("sleeper-agent", {"epsilon": 0}, "epsilon"),
        ("sleeper-agent", {"steps": 0}, "steps"),
        ("sleeper-agent", {"source_class": -1}, "source_class"),
        ("trojan-nn", {"trigger": "pear"}, "trigger"),
        ("trojan-nn", {"trigger": "file"}, "trigger_image"),
        ("trojan-nn", {"trigger": "file", "trigger_image": "no.png"}, "no file"),
        ("trojan-nn", {"units": 0}, "units"),
        ("sra", {"width": 0}, "width"),
        ("sra", {"factor": -1}, "factor"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SweepError, match=words):
        make(name, **options)
