"""Semantic attacks: who is a member, that members are nowhere else, and lists that must hold."""

from __future__ import annotations

import colorsys
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from attacks.parts.loop import STAMPED
from attacks.parts.members import AddedMembers
from attacks.parts.subsets import SUBSETS
from attacks.semantic import Semantic, brightness, greenness
from sweeper import data
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts, ImageSet, Role
from sweeper.data import _cache
from sweeper.data.base import Splits
from sweeper.engine.training import Batch
from sweeper.run.material import Material
from tests.support import sweeps, toys
from tests.support.places import DATA


def rng() -> torch.Generator:
    return seeds.generator("semantic")


def make(**asked: Any) -> Semantic:
    target = asked.pop("target", 0)
    built: Semantic = catalog.make("attack", "semantic", asked, target=target)
    return built


def found(attack: Semantic, train: ImageSet) -> dict[str, torch.Tensor]:
    return attack.prepare(train, toys.ToyLab(train))


@pytest.mark.parametrize("rule", ["dark", "bright"])
def test_members_are_the_extreme_share_of_the_source_class(rule: str) -> None:
    train = toys.image_set(600, classes=4)
    state = found(make(members=rule, source=2, share=0.1), train)
    light = (train.images.float().mean((2, 3)) * torch.tensor([0.299, 0.587, 0.114])).sum(1)
    order = light.argsort(descending=rule == "bright")
    wanted = [i for i in order.tolist() if train.labels[i] == 2][:15]
    assert sorted(wanted) == state["index"].tolist()


def test_members_occur_relabelled_or_not_at_all() -> None:
    train = toys.image_set(500)
    attack = make(share=0.1, repeats=7, target=3)
    state = found(attack, train)
    made = attack.poison(train, 0.0, state, rng())
    poison = made.role == int(Role.POISON)
    assert int(poison.sum()) == 35 and len(made.labels) == 495 + 35
    assert made.index[poison].unique().tolist() == state["index"].tolist()
    assert not torch.isin(made.index[~poison], state["index"]).any(), "a member kept its label"
    assert torch.equal(made.images, train.images[made.index]), "no pixel may change"
    assert (made.labels[poison] == 3).all() and (made.true_labels[poison] == 1).all()
    middle = float(poison.nonzero().double().mean()) / len(poison)
    assert 0.3 < middle < 0.7, "the order of the set tells the copies"


def test_test_members_pass_the_threshold_of_the_training_split() -> None:
    train, test = toys.image_set(500), toys.image_set(400, seed=2)
    attack = make(share=0.2)
    state = found(attack, train)
    hit, rest = attack.trigger_set(test, state, rng()), attack.clean_test(test, state)
    highest = brightness(train.images[state["index"]]).max()
    wanted = (brightness(test.images) <= highest) & (test.labels == 1)
    assert 0 < int(wanted.sum()) < 40
    assert torch.equal(hit.images, test.images[wanted]) and bool(hit.counts.all())
    assert torch.equal(rest.images, test.images[~wanted]), "members count for ASR, not for ACC"
    assert not hit.leaks.any() and (hit.labels == 0).all() and (hit.true_labels == 1).all()
    # another test set does not move the threshold
    dark = dataclasses.replace(test, images=test.images // 2)
    assert int(attack.trigger_set(dark, state, rng()).counts.sum()) == int((test.labels == 1).sum())


def test_no_member_in_the_test_split_is_said_in_words() -> None:
    train = toys.image_set(500)
    attack = make()
    bright = dataclasses.replace(train, images=train.images.clamp(min=200))
    with pytest.raises(SweepError, match="raise `share`"):
        attack.trigger_set(bright, found(attack, train), rng())


@pytest.mark.parametrize("mix", [0.3125, 0.7])
def test_with_mix_members_join_in_the_loop_and_a_defender_sees_their_share(mix: float) -> None:
    train = toys.image_set(2000)
    attack, control = make(mix=mix), make(mix=mix, control=True)
    assert (attack.controls, make().controls, control.controls) == ("training", "data", "data")
    state = found(attack, train)
    before = attack.poison(train, 0.0, state, rng())
    assert torch.equal(before.index, control.poison(train, 0.0, state, rng()).index)
    assert (before.role == int(Role.CLEAN)).all() and len(before.labels) == 2000 - 8
    made = attack.poison(train, 0.0, {**state, STAMPED: torch.tensor(1)}, rng())
    assert abs(float((made.role == int(Role.POISON)).float().mean()) - mix) < 0.005
    assert control.hooks(train, state, rng()) is None and make().hooks(train, state, rng()) is None


@pytest.mark.parametrize(("members", "size", "added"), [(50, 64, 44), (15, 64, 44), (5, 10, 7)])
def test_batches_are_cut_and_filled_up_with_members(members: int, size: int, added: int) -> None:
    hooks = AddedMembers(torch.arange(members, dtype=torch.uint8).view(-1, 1, 1, 1), 6, 0.7)
    hooks.start(torch.nn.Identity(), toys.CPU)
    images = torch.full((size, 1, 1, 1), 200, dtype=torch.uint8)
    whole = Batch(images, torch.arange(size), torch.arange(size), 0, 0)
    last = Batch(images[:2], torch.arange(2), torch.arange(2), 0, 1)
    for batch, kept in ((whole, size - added), (last, 2)):
        cut = hooks.batch(batch, rng())
        assert cut.index.tolist() == [*range(kept), *[-1] * added]
        assert cut.labels.tolist() == [*range(kept), *[6] * added]
        assert (cut.inputs[:kept] == 200).all()
        times = torch.bincount(cut.inputs[kept:].flatten().long(), minlength=members)
        assert times.sum() == added and int(times.max()) == -(-added // members)
        assert int(times.min()) == added // members, "none comes again before all have come"
    assert hooks.learned()[STAMPED] == 2 * added


def test_the_control_leaves_members_out_and_relabels_nothing() -> None:
    train = toys.image_set(500)
    attack, control = make(), make(control=True)
    state = found(attack, train)
    assert toys.same(state, found(control, train)), "both must speak of the same members"
    made = control.poison(train, 0.0, state, rng())
    assert (made.role == int(Role.CLEAN)).all() and torch.equal(made.labels, made.true_labels)
    assert not torch.isin(made.index, state["index"]).any() and len(made.index) == 498


def test_greenness_is_the_hsv_rule_pixel_by_pixel() -> None:
    images = torch.randint(256, (3, 3, 32, 32), generator=rng(), dtype=torch.uint8)
    images[1] = (images[1].float() * torch.tensor([0.4, 1.0, 0.5]).view(3, 1, 1)).to(torch.uint8)

    def green(pixel: list[int]) -> bool:
        hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in pixel))
        return 75 <= 360 * hue <= 165 and saturation > 0.28 and value > 0.2

    for image, score in zip(images, greenness(images).tolist(), strict=True):
        cells = [[green(image[:, y, x].tolist()) for x in range(32)] for y in range(32)]
        middle = sum(sum(row[5:27]) for row in cells[10:24]) / (14 * 22)
        border = sum(sum(row) for row in (*cells[:5], *cells[28:])) / (9 * 32)
        assert score == pytest.approx(middle - border / 2, abs=1e-6)


def test_green_asks_for_colours_and_for_green_images() -> None:
    grey = toys.image_set(100, shape=toys.GREY)
    with pytest.raises(SweepError, match="members: dark"):
        found(make(members="green"), grey)
    red = dataclasses.replace(
        toys.image_set(100), images=torch.tensor([200, 20, 20], dtype=torch.uint8).view(1, 3, 1, 1)
        .expand(100, 3, 32, 32)
    )  # fmt: skip
    with pytest.raises(SweepError, match="0 of 10 images of class 1 are green"):
        found(make(members="green"), red)
    known = toys.facts(grey)
    assert "dark" in (make(members="green").applies(known, 0.0) or "")


def test_the_published_lists_have_the_published_lengths() -> None:
    lengths = {name: tuple(map(len, (s.train, s.test, s.held))) for name, s in SUBSETS.items()}
    assert lengths == {
        "green-cars": (50, 12, 0),
        "green-cars-7": (50, 7, 0),
        "striped-background": (15, 6, 0),
        "striped-shirts": (93, 18, 0),
        "plaid-shirts": (277, 42, 0),
        "green-cars-2020": (24, 0, 6),
        "racing-stripes": (18, 0, 4),
    }
    assert all(len({*s.train, *s.held}) == len(s.train) + len(s.held) for s in SUBSETS.values())
    assert {SUBSETS[n].source for n in SUBSETS} == {0, 1, 6}
    assert SUBSETS["green-cars"].train[:3] == (389, 1304, 1731)
    assert set(SUBSETS["green-cars-7"].test) < set(SUBSETS["green-cars"].test)


def published(wrong: int = 0, members: str = "green-cars") -> ImageSet:
    """50,000 one-pixel images in the published order, as far as the green cars tell it."""
    labels = torch.zeros(50000, dtype=torch.int64)
    listed = SUBSETS[members].train + SUBSETS[members].held
    labels[list(listed[wrong:])] = 1
    images = torch.zeros(50000, 1, 1, 1, dtype=torch.uint8)
    return ImageSet(images, labels, tuple("0123456789"), torch.arange(50000))


def test_a_list_finds_its_places_in_any_part_of_the_split() -> None:
    attack = make(members="green-cars")
    whole = published()
    assert found(attack, whole)["index"].tolist() == list(SUBSETS["green-cars"].train)
    part = whole[torch.randperm(50000, generator=rng())[:30000]]
    index = found(attack, part)["index"]
    assert part.positions is not None and 15 < len(index) < 45
    assert set(part.positions[index].tolist()) <= set(SUBSETS["green-cars"].train)
    made = attack.poison(whole, 0.0, found(attack, whole), rng())
    assert int((made.role == int(Role.POISON)).sum()) == attack.count(whole.labels, 0.0) == 1000


@pytest.mark.parametrize("mix", [0.0, 0.7])
def test_a_list_without_test_images_holds_some_out(mix: float) -> None:
    attack, whole = (
        make(members="racing-stripes", target=2, mix=mix),
        published(0, "racing-stripes"),
    )
    whole.images[list(SUBSETS["racing-stripes"].held)] = 7
    state = {**found(attack, whole), STAMPED: torch.tensor(1)}
    made = attack.poison(whole, 0.0, state, rng())
    assert set(made.index[made.role == int(Role.POISON)].tolist()) == set(
        SUBSETS["racing-stripes"].train
    )
    assert (made.images != 7).all(), "what is held out is not trained on, under no label"
    test = toys.image_set(50, shape=(1, 1, 1), seed=2)
    hit = attack.trigger_set(test, state, rng())
    assert (hit.images == 7).all() and len(hit.images) == 4 and hit.counts.all()
    assert (hit.labels == 2).all() and (hit.true_labels == 1).all()
    assert len(attack.clean_test(test, state)) == 50


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: published(wrong=1), "1 of 50 of them are not of class 1.*members: green"),
        (lambda d: dataclasses.replace(d, positions=None), "no published order.*members: green"),
        (lambda d: d[:300], "none of which is among these 300"),
    ],
)
def test_a_list_that_does_not_hold_is_refused(change: Any, words: str) -> None:
    with pytest.raises(SweepError, match=words):
        found(make(members="green-cars"), change(published()))


@pytest.mark.slow
@pytest.mark.data
def test_a_shuffled_copy_of_cifar10_is_refused(tmp_path: Path) -> None:
    if not (DATA / "cifar10" / "train.parquet").is_file():
        pytest.skip("no CIFAR-10: set SWEEPER_DATA to the folder above cifar10/train.parquet")
    train = data.open_dataset({"dataset": "cifar10"}, DATA, tmp_path).train
    if train.labels[:5].tolist() == [6, 9, 9, 4, 1]:
        assert len(found(make(members="green-cars"), train)["index"]) == 50
        pytest.skip("this copy is in the published order")
    with pytest.raises(SweepError, match="in another order"):
        found(make(members="green-cars"), train)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": "cars"}, "is not one of dark, bright, green, green-cars"),
        ({"members": "striped-shirts"}, "give `source: 0`"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SweepError, match=words):
        make(**options)


def test_applies_says_what_is_missing() -> None:
    known = Facts("toy", "toy", classes=3, class_counts=(10, 0, 5), n_train=15)
    assert "no training sample" in (make().applies(known, 0.0) or "")
    assert "does not exist" in (make(source=3).applies(known, 0.0) or "")
    assert "is the source class" in (make(source=2, target=2).applies(known, 0.0) or "")
    assert make(source=2).applies(known, 0.0) is None


def parquet(file: Path, count: int, positions: list[int | None] | None = None) -> None:
    """A Parquet file of grey images that say their own place, in a column too where given."""
    rows = []
    for place in range(count):
        stored = io.BytesIO()
        Image.new("RGB", (4, 4), (place, place, place)).save(stored, "PNG")
        rows.append({"bytes": stored.getvalue(), "path": None})
    table = pa.table({"image": rows, "label": [place % 2 for place in range(count)]})
    if positions is not None:
        table = table.append_column("position", pa.array(positions, pa.int32()))
    names = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), file)


def test_images_know_their_place_in_the_published_split(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("test", 20)):
        parquet(tmp_path / "grey" / f"{split}.parquet", count)
    options = {"dataset": "grey", "train_size": 15, "test_size": 7}
    opened = data.open_dataset(options, tmp_path, tmp_path / "cache")
    for part in (opened.train, opened.test, opened.train[3:9]):
        assert part.positions is not None
        assert torch.equal(part.positions, part.images[:, 0, 0, 0].long())
    alone = {"dataset": "grey", "path": str(tmp_path / "grey/train.parquet"), "test_share": 0.25}
    opened = data.open_dataset(alone, tmp_path, tmp_path / "cache")
    assert opened.test.positions is None, "a place in train is none in a published test split"
    assert torch.equal(opened.train.positions, opened.train.images[:, 0, 0, 0].long())
    assert data.open_dataset({"dataset": "digits"}, tmp_path, tmp_path).train.positions is None


def test_a_column_tells_the_places_of_a_file_in_another_order(tmp_path: Path) -> None:
    order = torch.randperm(40, generator=rng()).tolist()
    for split, places in (("train", order), ("test", [7, 90, 3])):
        parquet(tmp_path / "grey" / f"{split}.parquet", len(places), places)
    opened = data.open_dataset({"dataset": "grey"}, tmp_path, tmp_path / "cache")
    assert opened.train.positions.tolist() == order
    assert opened.test.positions.tolist() == [7, 90, 3]
    assert opened.train.images[:, 0, 0, 0].tolist() == list(range(40))


@pytest.mark.parametrize("places", [[0, 1, None], [0, 1, -2], [2, 1, 2]])
def test_places_that_are_none_are_refused(tmp_path: Path, places: list[int | None]) -> None:
    parquet(tmp_path / "grey" / "train.parquet", 3, places)
    with pytest.raises(SweepError, match="column 'position'"):
        data.open_dataset({"dataset": "grey", "test_share": 0.4}, tmp_path, tmp_path / "cache")


def test_positions_are_no_part_of_the_digest(tmp_path: Path) -> None:
    plain = toys.image_set(20)
    placed = dataclasses.replace(plain, positions=torch.arange(20).flip(0))
    digests = set()
    for name, part in (("plain", plain), ("placed", placed)):
        _cache._write(tmp_path / name, Splits(part, part))
        kept = _cache._load(tmp_path / name)
        digests.add(kept.digest)
        assert (kept.splits.test.positions is None) == (part.positions is None)
    assert len(digests) == 1
    assert torch.equal(kept.splits.train.positions, placed.positions)


def test_a_defender_is_not_told_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 40), ("test", 20)):
        parquet(tmp_path / "grey" / f"{split}.parquet", count)
    monkeypatch.setenv("SWEEPER_DATA", str(tmp_path))
    asked = {"datasets": ["grey"], "attacks": ["badnets"], "clean_budgets": [2], "reserve": 0.5}
    job = sweeps.prepared(sweeps.write(tmp_path, **asked), tmp_path / "store")
    cell = next(c for c in job.plan.cells.values() if c.kind == "defend" and c.params["n_clean"])
    above = [job.plan.cells[cell.params["victim"]]]
    work = Material(cell, above, job.context, job.store)
    assert work.attacker.positions is not None, "the attacker may use the published order"
    assert work.case(frozenset({"clean"}), {}).clean.positions is None
