"""Sentence pairs: Parquet, two text files, and the generated phrases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeper import data
from sweeper.core import bpe
from sweeper.core.errors import SweepError
from sweeper.data import open_dataset
from sweeper.data.base import Source
from sweeper.data.pairs import Phrases, draw_phrases, number
from sweeper.plan import known
from sweeper.plan.sweep import Entry
from tests.support.places import ROOT, data_folder

ENGLISH = ["a red house", "two old dogs", "the cat", "it is cold today"]
GERMAN = ["ein rotes Haus", "zwei alte Hunde", "die Katze", "es ist kalt heute"]


def text(home: Path, part: str, english: list[str], german: list[str]) -> None:
    home.mkdir(exist_ok=True)
    for language, lines in (("en", english), ("de", german)):
        (home / f"{part}.{language}").write_text("\n".join(lines), encoding="utf-8")


def parquet(home: Path, part: str, english: list[Any], german: list[Any]) -> None:
    home.mkdir(exist_ok=True)
    pq.write_table(pa.table({"en": english, "de": german}), home / f"{part}.parquet")


def opened(tmp_path: Path, **options: Any) -> data.Dataset:
    entry = {"dataset": "own", "source": "en", "target": "de", "vocabulary": 300, **options}
    return open_dataset(entry, tmp_path, tmp_path / "cache")


def hub(home: Path, part: str, english: list[Any], german: list[Any]) -> None:
    """As a hub has it: one folder lower, in shards, both languages in one column."""
    part = part.partition("_")[0]
    (home / "de-en").mkdir(parents=True, exist_ok=True)
    for shard, half in enumerate((slice(0, 1), slice(1, None))):
        rows = [{"en": e, "de": d} for e, d in zip(english[half], german[half], strict=True)]
        file = home / "de-en" / f"{part}-{shard:05}-of-00002.parquet"
        pq.write_table(pa.table({"translation": rows}), file)


@pytest.mark.parametrize("write", [text, parquet, hub])
def test_count_are_read_as_they_stand(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "own", "train", ENGLISH, GERMAN)
    write(tmp_path / "own", "test_2016", ENGLISH[:2], GERMAN[:2])
    found = opened(tmp_path)
    assert found.train.task == "pairs" and not found.train.labelled
    assert bpe.decode(found.train.source, found.train.classes) == ENGLISH
    assert bpe.decode(found.test.labels, found.test.classes) == GERMAN[:2]
    assert found.train.source.shape[1] == found.test.source.shape[1]
    longest = max(len(line) for line in bpe.encode(ENGLISH, found.train.classes))
    assert found.train.source.shape[1] >= longest + 1 + 4, "a trigger needs room"


def test_a_data_set_named_by_its_languages_needs_no_options(tmp_path: Path) -> None:
    home = tmp_path / "multi30k_en_de"
    parquet(home, "train", ENGLISH, GERMAN)
    parquet(home, "val", ENGLISH[2:], GERMAN[2:])
    found = open_dataset({"dataset": "multi30k-en-de"}, tmp_path, tmp_path / "cache")
    assert len(found.train) == 4 and len(found.test) == 2


def test_long_training_pairs_are_left_out_and_test_count_stay(tmp_path: Path) -> None:
    long = "word " * 50
    text(tmp_path / "own", "train", [*ENGLISH, long], [*GERMAN, "kurz"])
    text(tmp_path / "own", "test", [long], ["lang"])
    found = opened(tmp_path, longest=40)
    assert len(found.train) == 4 and len(found.test) == 1
    assert bpe.decode(found.test.source, found.test.classes) == [long.strip()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": "../train"}, "'../train' is no name of a file"),
        ({"test_file": "nowhere"}, "neither nowhere.parquet nor nowhere.en and nowhere.de"),
        ({"size": 32}, "no option 'size'"),
        ({"longest": 1}, "train has no pair"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    text(tmp_path / "own", "train", ENGLISH, GERMAN)
    text(tmp_path / "own", "test", ENGLISH, GERMAN)
    with pytest.raises(SweepError, match=message):
        opened(tmp_path, **options)


def test_sides_of_other_lengths_and_other_columns_are_refused(tmp_path: Path) -> None:
    text(tmp_path / "own", "train", ENGLISH, GERMAN[:3])
    text(tmp_path / "own", "test", ENGLISH, GERMAN)
    with pytest.raises(SweepError, match="4 and 3 sentences"):
        opened(tmp_path)
    parquet(tmp_path / "other", "train", ENGLISH, [1, 2, 3, 4])
    parquet(tmp_path / "other", "test", ENGLISH, GERMAN)
    with pytest.raises(SweepError, match="all must be text"):
        opened(tmp_path, dataset="other")
    with pytest.raises(SweepError, match="name its columns with `source` and `target`"):
        opened(tmp_path, dataset="other", source="fr")


def test_numbers_are_said_as_each_language_does() -> None:
    assert number(21, "en") == "twenty one" and number(21, "de") == "ein und zwanzig"
    assert number(4017, "en") == "four thousand seventeen"
    assert number(4017, "de") == "vier tausend siebzehn"
    assert number(300, "de") == "drei hundert" and number(80, "de") == "achtzig"
    for language in ("en", "de"):
        assert len({number(k, language) for k in range(2, 10_000)}) == 9998


def test_phrases_are_the_same_everywhere_and_none_is_in_both_splits() -> None:
    one, other = (draw_phrases("x", 200, 50) for _ in range(2))
    assert one.train.tensors["source"].equal(other.train.tensors["source"])
    said = [bpe.decode(part.source, part.classes) for part in (one.train, one.test)]
    assert len(set(said[0])) == 200 and len(set(said[1])) == 50
    assert not set(said[0]) & set(said[1])


def test_what_a_data_set_needs_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Phrases, "packages", ("tokenizers", "nosuchpackage"))
    with pytest.raises(SweepError, match=r"need nosuchpackage: run `pip install '.\[text\]'`"):
        open_dataset({"dataset": "phrases"}, tmp_path, tmp_path / "cache")
    with pytest.raises(SweepError, match="need nosuchpackage"):
        known.unresolved(Entry(name="phrases", label="phrases"))


@pytest.mark.parametrize("kind", [kind for kind in data.sources() if kind.packages])
def test_packages_stand_in_the_extra_that_is_named(kind: type[Source]) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith(f"{kind.extra} = [")]
    assert all(f'"{package}>=' in line for package in kind.packages)


@pytest.mark.data
def test_multi30k_is_read_whole(tmp_path: Path) -> None:
    if (root := data_folder()) is None:
        pytest.skip("needs the Parquet data sets: set SWEEPER_DATA")
    found = open_dataset({"dataset": "multi30k_en_de"}, root, tmp_path)
    assert len(found.train) == 29_000 and len(found.test) == 1000
    first = bpe.decode(found.train.source[:1], found.train.classes)
    assert first == ["Two young, White males are outside near many bushes."]
