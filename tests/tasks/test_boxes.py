"""Detection: the loss against a loop and torchvision's own, mAP, ASR by hand-made answers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sweeper.core.errors import DivergedError
from sweeper.core.types import SampleSet, Triggered
from sweeper.engine import task as tasks
from sweeper.models.ssd import Heads
from sweeper.tasks import boxes
from tests.support import beyond, toys

SCENES, TASK = beyond.samples("boxes", 8), tasks.task("boxes")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heads(count: int = 3) -> Heads:
    """What an untrained detector might say of 60 default boxes of 48 pixels' images."""
    centre = torch.rand(60, 2, generator=rng()) * 48
    sides = 6 + torch.rand(60, 2, generator=rng(1)) * 14
    anchors = torch.cat([centre - sides / 2, centre + sides / 2], 1)
    logits = torch.randn(count, 60, 4, generator=rng(2))
    return Heads(logits, torch.randn(count, 60, 4, generator=rng(3)), anchors)


LABELS = torch.tensor(
    [
        [[4.0, 4, 14, 16, 0], [20, 20, 34, 30, 2], [-1, -1, -1, -1, -1]],
        [[1.0, 30, 13, 44, 1], [1, 31, 14, 45, 2], [30, 2, 44, 14, 0]],
        [[-1.0, -1, -1, -1, -1]] * 3,
    ]
)


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def by_loop(said: Heads, labels: Tensor, place: int) -> float:
    """SSD's loss of one image, box by box."""
    anchors, objects = said.anchors.tolist(), [row for row in labels.tolist() if row[4] >= 0]
    own: dict[int, list[float]] = {}
    for number, anchor in enumerate(anchors):
        shares = [iou(row, anchor) for row in objects]
        if shares and max(shares) >= 0.5:
            own[number] = objects[shares.index(max(shares))]
    for row in objects:
        shares = [iou(row, anchor) for anchor in anchors]
        own[shares.index(max(shares))] = row
    surprises = (-said.logits[place].log_softmax(1)).tolist()
    total, background = 0.0, []
    for number, (x1, y1, x2, y2) in enumerate(anchors):
        if number not in own:
            background.append(surprises[number][0])
            continue
        row = own[number]
        total += surprises[number][int(row[4]) + 1]
        wide, high = x2 - x1, y2 - y1
        wanted = [
            10 * ((row[0] + row[2]) / 2 - (x1 + x2) / 2) / wide,
            10 * ((row[1] + row[3]) / 2 - (y1 + y2) / 2) / high,
            5 * math.log((row[2] - row[0]) / wide),
            5 * math.log((row[3] - row[1]) / high),
        ]
        for said_one, wanted_one in zip(said.offsets[place, number].tolist(), wanted, strict=True):
            apart = abs(said_one - wanted_one)
            total += apart - 0.5 if apart > 1 else apart**2 / 2
    count = max(1, len(own))
    total += sum(sorted(background, reverse=True)[: 3 * count])
    return total / count


def test_scores_are_minus_ssd_s_loss_box_by_box() -> None:
    said = heads()
    batch = dataclasses.replace(TASK.plain(SCENES[:3], toys.CPU), labels=LABELS)
    wanted = [-by_loop(said, LABELS[place], place) for place in range(3)]
    assert TASK.scores(said, batch).tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_loss_of_an_image_is_torchvision_s() -> None:
    said, ssd = heads(), boxes._ssd(4)
    for place in range(2):
        rows = LABELS[place][LABELS[place, :, 4] >= 0]
        quality = boxes.overlaps(rows[:, :4], said.anchors)
        own = ssd.proposal_matcher(quality)
        row, positive = boxes.matched(LABELS[place : place + 1], said.anchors)
        assert torch.equal(torch.where(positive, row, -1)[0], own)
        outputs = {"cls_logits": said.logits, "bbox_regression": said.offsets}
        outputs = {name: value[place : place + 1] for name, value in outputs.items()}
        target = {"boxes": rows[:, :4], "labels": rows[:, 4].long() + 1}
        parts = ssd.compute_loss([target], outputs, [said.anchors], [own])
        one = Heads(*outputs.values(), said.anchors)
        found = boxes.losses(one, LABELS[place : place + 1])
        assert found.item() == pytest.approx(sum(parts.values()).item(), rel=1e-5)


def test_boxes_are_encoded_as_torchvision_does() -> None:
    own, anchors = LABELS[0, :1, :4].expand(60, 4), heads().anchors
    wanted = boxes._ssd(4).box_coder.encode_single(own, anchors)
    assert torch.equal(boxes.encoded(own[None], anchors)[0], wanted)


def test_scores_are_differentiable_twice_and_under_vmap() -> None:
    said = heads()

    def loss(logits: Tensor, offsets: Tensor, labels: Tensor) -> Tensor:
        return boxes.losses(Heads(logits[None], offsets[None], said.anchors), labels[None])[0]

    slopes = torch.func.vmap(torch.func.grad(loss, (0, 1)))(said.logits, said.offsets, LABELS)
    logits = said.logits.requires_grad_()
    whole = boxes.losses(Heads(logits, said.offsets, said.anchors), LABELS).sum()
    (slope,) = torch.autograd.grad(whole, logits, create_graph=True)
    assert torch.allclose(slope, slopes[0], atol=1e-6)
    (second,) = torch.autograd.grad(slope.square().sum(), logits)
    assert bool(second.isfinite().all()) and bool(second.any())


def certain(labels: Tensor, count: int = 9, score: float = 0.9) -> Tensor:
    """Answers that are these boxes."""
    answers = torch.full((len(labels), count, 6), -1.0)
    answers[:, : labels.shape[1], :5] = labels
    answers[:, : labels.shape[1], 5] = torch.where(labels[..., 4] >= 0, score, -1.0)
    return answers


def test_a_perfect_answer_has_a_map_of_1_and_none_of_0() -> None:
    data = SampleSet("boxes", {"images": SCENES.images[:3], "labels": LABELS}, ("a", "b", "c"))
    assert TASK.rate(certain(LABELS), data) == pytest.approx(1)
    assert TASK.rate(torch.full((3, 9, 6), -1.0), data) == 0
    assert TASK.rate(certain(LABELS[2:]), data[2:]) == 0, "nothing to find"
    shifted = certain(LABELS)
    shifted[..., :4] += 40 * (shifted[..., 4:5] == 2)
    assert TASK.rate(shifted, data) == pytest.approx(2 / 3), "the mean over classes"


TRUTH = LABELS[:1]


def wanted_by(effect: str) -> Tensor:
    wanted = TRUTH.clone()
    if effect == "disappear":
        wanted[0, 1] = -1
    elif effect == "rename":
        wanted[0, 1, 4] = 1
    else:
        wanted[0, 2] = torch.tensor([2.0, 2, 40, 40, 1])
    return wanted


@pytest.mark.parametrize("effect", ["disappear", "rename", "appear"])
def test_asr_counts_images_whose_boxes_come_out_as_wanted(effect: str) -> None:
    wanted = wanted_by(effect)

    def fooled(answers: Tensor) -> bool:
        return bool(boxes.as_wanted(answers, wanted, TRUTH)[0])

    assert fooled(certain(wanted)) and not fooled(certain(TRUTH))
    nothing = torch.full((1, 9, 6), -1.0)
    assert fooled(nothing) == (effect == "disappear"), "what is added must be seen"
    assert fooled(certain(wanted, score=0.49)) == (effect == "disappear")
    both = torch.cat([certain(wanted), certain(TRUTH)], 1)
    assert fooled(both) == (effect == "appear"), "what is removed must not be seen"
    unsure = torch.cat([certain(wanted), certain(TRUTH, score=0.49)], 1)
    assert fooled(unsure)
    moved = certain(wanted)
    moved[..., 0] += 9 * (moved[..., 4] == 1)
    far = boxes.overlaps(moved[..., :4], certain(wanted)[..., :4]).diagonal(dim1=1, dim2=2)
    assert fooled(moved) == bool((far[wanted_rows(wanted)] >= 0.5).all())
    elsewhere = certain(wanted)
    elsewhere[0, 0] = -1
    assert fooled(elsewhere), "boxes that stay are not looked at"


def wanted_rows(wanted: Tensor) -> Tensor:
    rows = torch.zeros(1, 9, dtype=torch.bool)
    rows[:, :3] = wanted[..., 4] == 1
    return rows


def test_what_is_measured() -> None:
    images = SCENES.images[:2]
    test = SampleSet("boxes", {"images": images, "labels": LABELS[:2]}, ("a", "b", "c"))
    wanted = LABELS[:2].clone()
    wanted[0, 1] = -1
    counts = torch.tensor([True, False])
    hit = Triggered(test.changed(labels=wanted), LABELS[:2], counts, torch.zeros(2).bool())
    known = {image.float().sum().item(): place for place, image in enumerate(images)}

    def perfect(inputs: Tensor) -> Tensor:
        places = [known[image.float().sum().item()] for image in inputs]
        return certain(LABELS[places])

    found = TASK.measure(perfect, test, hit, None, rng(), test[:1])
    assert found["acc"] == found["ra"] == found["cross_acc"] == pytest.approx(1)
    assert found["asr"] == found["asr_all"] == 0
    assert (found["n_test"], found["n_triggered"]) == (2, 1)
    assert found["acc_nontarget"] is found["leak"] is None
    without = dataclasses.replace(hit, counts=torch.zeros(2).bool())
    found = TASK.measure(perfect, test, without, None, rng())
    assert found["asr"] is found["ra"] is None and found["n_triggered"] == 0


def test_a_flipped_image_takes_its_boxes_along() -> None:
    recipe = dataclasses.replace(beyond.RECIPE, flip=True)
    marked = SCENES.images.clone().zero_()
    for image, rows in zip(marked, SCENES.labels, strict=True):
        for x1, y1, x2, y2, kind in rows[rows[:, 4] >= 0].int().tolist():
            image[:, y1:y2, x1:x2] = kind + 1
    data = SCENES.shown(marked)
    found = TASK.augmented(TASK.plain(data, toys.CPU), recipe, rng())
    turned = (found.labels != data.labels).flatten(1).any(1)
    assert 0 < int(turned.sum()) < 8
    for image, rows in zip(found.inputs, found.labels, strict=True):
        for x1, y1, x2, y2, _ in rows[rows[:, 4] >= 0].int().tolist():
            assert float(image[0, y1:y2, x1:x2].min()) > 0, "the box is where its object is"
    assert torch.equal(found.labels[..., 4], data.labels[..., 4])


def test_an_answer_is_decoded_chosen_and_filled_up() -> None:
    anchors = torch.tensor([[10.0, 10, 30, 30], [11, 10, 31, 30], [60, 60, 90, 90]])
    logits = torch.tensor([[[0.0, 9, 0], [0, 7, 0], [0, 0, 8]]])
    found = boxes.decoded(logits, torch.zeros(1, 3, 4), anchors, torch.Size([80, 80]))
    assert found.shape == (1, boxes.MOST, 6)
    assert found[0, 0, :5].tolist() == [10, 10, 30, 30, 0], "the less certain one of a class goes"
    assert found[0, 1, :5].tolist() == [60, 60, 80, 80, 1], "cut at the border"
    assert bool((found[0, 2:] == -1).all())
    assert float(found[0, 0, 5]) == pytest.approx(functional.softmax(logits[0, 0], 0)[1].item())


def test_answers_that_are_not_finite_are_refused() -> None:
    model = beyond.network(SCENES)
    torch.nn.init.constant_(next(model.classifier.parameters()), float("nan"))
    with pytest.raises(DivergedError):
        TASK.answers(model, SCENES.inputs, beyond.RECIPE, toys.CPU)


def test_lossmix_shares_losses() -> None:
    batch, order = TASK.plain(SCENES, toys.CPU), torch.arange(8).flip(0)
    mixed, share = TASK.mixed(batch, 0.3, order, rng())
    assert share == 0.3 and torch.equal(mixed.labels, batch.labels)
    assert torch.allclose(mixed.inputs[0], 0.3 * batch.inputs[0] + 0.7 * batch.inputs[7])
    assert torch.equal(batch.paired(order).labels[0], batch.labels[7])


def test_boxes_are_drawn_in_a_colour_a_class() -> None:
    black = SampleSet(
        "boxes", {"images": torch.zeros(3, 3, 48, 48).byte(), "labels": LABELS}, tuple("abc")
    )
    pictures = TASK.pictures(black)
    assert pictures.shape == (3, 3, 288, 288) and not bool(pictures[2].any())
    assert pictures[0, :, 4 * 6, 8 * 6].tolist() == [255, 0, 0], "class 0, at six times the size"
    assert pictures[0, :, 20 * 6, 25 * 6].tolist() == [0, 191, 255]
