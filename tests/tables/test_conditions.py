"""Under what the rows of a table were measured: said where it differs, and only there."""

from __future__ import annotations

from typing import Any

import pytest

from sweeper.core import rows
from sweeper.tables import conditions, results, tables
from tests.support.recorded import frame, row

SAME: dict[str, Any] = {
    "dtype": "fp32",
    "victim_dtype": "fp32",
    "threads": 1,
    "victim_threads": 1,
    "device_kind": "cpu",
    "victim_device_kind": "cpu",
    "capability": "AVX512",
    "torch": "2.10.0",
    "victim_torch": "2.10.0",
    "python": "3.12.1",
    "data_hash": "ab" * 10,
}
OLD: dict[str, Any] = dict.fromkeys(SAME)


def said(*changes: dict[str, Any]) -> str:
    """The sentence about rows of one condition each, the first as it is."""
    given = [SAME, *({**SAME, **change} for change in changes)]
    found = [row("badnets", 0.1, "anp", seed, acc=0.5, **one) for seed, one in enumerate(given)]
    return conditions.sentence(frame(found))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, ""),
        ({"dtype": "bf16"}, "Measured with precision bf16 and fp32."),
        (
            {"dtype": "bf16", "victim_dtype": "bf16"},
            "Measured with precision bf16 and fp32 (victims too).",
        ),
        ({"victim_threads": 2}, "Measured with threads of the victim 1 and 2."),
        (
            {"threads": 2, "victim_threads": 4},
            "Measured with threads 1 and 2; threads of the victim 1 and 4.",
        ),
        ({"python": "3.12.9"}, ""),
        ({"python": "3.9.1"}, "Measured with Python 3.9 and 3.12."),
        ({"capability": "AVX2"}, "Measured with instructions of the device AVX2 and AVX512."),
        (
            {"device_kind": "cuda", "capability": "sm_90", "cuda": "12.8"},
            "Measured with device cpu and cuda.",
        ),
        (
            {"data_hash": "cd" * 10},
            "Measured with content of the data set digits abababab and digits cdcdcdcd.",
        ),
        ({"data_hash": "cd" * 10, "dataset": "cifar10"}, ""),
        ({"dtype": None}, ""),
        (OLD, "Older rows do not say under what they were measured."),
        ({"victim_torch": None, "victim_dtype": None},
         "Older rows do not say under what they were measured."),
        ({"dtype": "bf16", "status": "failed"}, ""),
    ],
)  # fmt: skip
def test_one_difference(change: dict[str, Any], sentence: str) -> None:
    assert said(change) == sentence


def test_several_differences_are_one_sentence() -> None:
    assert said({"dtype": "bf16"}, {"threads": 2}, {"threads": 16}, OLD) == (
        "Measured with precision bf16 and fp32; threads 1, 2 and 16; older rows do not say."
    )


def test_a_store_written_before_says_what_it_lacks() -> None:
    given = [row("badnets", 0.1, "anp", seed, acc=0.5, **SAME | OLD) for seed in range(2)]
    words = "Older rows do not say under what they were measured."
    assert conditions.sentence(frame(given)) == words


@pytest.mark.parametrize("name", rows.CONDITIONS)
def test_every_condition_is_told(name: str) -> None:
    first, second = (1, 2) if "threads" in name else ("3.10", "3.11")
    given = [
        row("badnets", 0.1, "anp", seed, acc=0.5, **{name: value})
        for seed, value in enumerate((first, second))
    ]
    for one in given:
        one["device_kind"] = one.get("device_kind", "cuda")
    assert conditions.sentence(frame(given)).startswith("Measured with "), name


def test_rows_of_none_and_averages_of_attacks_count_alike() -> None:
    given = [
        row(attack, 0.1, defense, 0, acc=0.9, asr_before=1.0, **SAME | {"threads": threads})
        for attack in ("badnets", "blend")
        for defense, threads in (("none", 2), ("anp", 1))
    ]
    built = tables.build(frame(given), rows=("attack",), average=True)
    assert built.notes == ("Measured with threads 1 and 2.",), "an average is not an older row"


IMAGES = {"task": "image", "score": "accuracy", "dataset": "cifar10"}
SCENES = {"task": "boxes", "score": "mAP@.5", "dataset": "scenes"}
CLIPS = {"task": "clips", "score": "accuracy", "dataset": "moving"}


def of_tasks(*given: dict[str, Any]) -> Any:
    return frame([row("badnets", 0.1, "anp", s, acc=0.5, **one) for s, one in enumerate(given)])


@pytest.mark.parametrize(
    ("given", "sentence", "score"),
    [
        ([IMAGES, IMAGES], "", ""),
        ([{"dataset": "cifar10"}], "", ""),  # of older code
        ([CLIPS], "Samples: moving clips.", ""),
        ([SCENES, SCENES], "Samples: scenes boxes (ACC is mAP@.5).", "mAP@.5"),
        ([IMAGES, SCENES], "Samples: cifar10 image, scenes boxes (ACC is mAP@.5).", ""),
    ],
)
def test_the_task_and_what_acc_measures_are_said(
    given: list[dict[str, Any]], sentence: str, score: str
) -> None:
    data = of_tasks(*given)
    assert conditions.tasks(data) == sentence and conditions.score(data) == score


def test_a_table_of_one_score_has_it_in_its_header() -> None:
    asked = tables.build(of_tasks(SCENES), rows=["dataset"], cols=["defense"])
    for kind in ("markdown", "latex", "html"):
        text = tables.render(asked, kind)
        assert "ANP mAP@.5" in text or "mAP@.5</th>" in text or "& mAP@.5" in text, kind
    assert "(ACC is mAP@.5)" in tables.render(asked, "csv"), "whose columns keep their names"
    mixed = tables.build(of_tasks(IMAGES, SCENES), rows=["dataset"], cols=["defense"])
    text = tables.render(mixed, "markdown")
    assert "ACC" in text.splitlines()[2] and "ACC is mAP@.5" in text


def test_the_caption_of_several_data_sets_and_models_keeps_whole_numbers_whole() -> None:
    """Without a text among them, pandas makes one row of numbers all floats."""
    moving, scenes = {**CLIPS, "model": "r3d-small"}, {**SCENES, "model": "ssd"}
    pairs = ("badnets", moving), ("blend", scenes)
    given = [row(attack, 0.1, "anp", 0, acc=0.5, **one) for attack, one in pairs]
    found = tables.build(frame(given), rows=["dataset", "model", "attack"])
    caption = tables.render(found, "markdown").splitlines()[0]
    assert "target 0," in caption and "target 0.0" not in caption


def test_each_task_has_its_rows_without_the_attacks_of_others() -> None:
    image = row("badnets", 0.1, "none", 0, acc=0.9, asr=1.0, task="image", score="accuracy")
    pair = {"dataset": "phrases", "task": "pairs", "score": "BLEU"}
    other = row("trigger-word", 0.1, "none", 0, acc=0.5, asr=0.9, **pair)
    lost = row("badnets", 0.1, "none", 0, status="not_applicable", **pair)
    unmade = row("trigger-word", 0.1, "anp", 0, status="not_applicable", **pair)
    given = frame([image, other, lost, unmade])
    first, second = results.by_task(given, ["phrases", "digits"])
    assert first["attack"].tolist() == ["trigger-word"] * 2, "a defense that cannot stays in sight"
    assert set(first["defense"]) == {"none", "anp"} and second["attack"].tolist() == ["badnets"]
    (whole,) = results.by_task(frame([image]))
    assert len(whole) == 1
    (alone,) = results.by_task(frame([other, lost]))
    assert len(alone) == 2, "where there is one task nothing is left out"
