"""Sentence pairs: a user's own in two languages, and `phrases`, a generated set.

| files | layout |
|---|---|
| Parquet | `train.parquet` or shards, a test file; a column a language, or both in `translation` |
| text | `train.en`, `train.de`, `test.en`, `test.de`: the same line is a pair |

Both languages share one vocabulary of byte pairs, learned from the training split (`core/bpe.py`);
it stands as the classes. `phrases` says in English and in German who sees how many of what: number
words change their order (twenty-one, ein und zwanzig), verbs agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from sweeper.core import bpe, seeds
from sweeper.core.errors import SweepError, is_pointer, unreadable
from sweeper.core.folders import inside
from sweeper.core.options import CEILING, Count
from sweeper.core.types import SampleSet
from sweeper.data import _shards
from sweeper.data._files import TEST_NAMES, folders, same_name
from sweeper.data.base import Fileless, Source, Splits

Texts = tuple[list[str], list[str]]
"""Sentences and their translations."""
_ROOM = 8
"""Tokens every sample has room for beside the longest sentence: what a trigger inserts."""


def pairs(sentences: Texts, vocabulary: tuple[str, ...], lengths: tuple[int, int]) -> SampleSet:
    """Tokens of pairs: `source` int64 [N, S], `labels` int64 [N, T], each with END and padding."""
    named = [
        bpe.padded(bpe.encode(side, vocabulary), length)
        for side, length in zip(sentences, lengths, strict=True)
    ]
    return SampleSet("pairs", {"source": named[0], "labels": named[1]}, vocabulary)


def splits(name: str, train: Texts, test: Texts, size: int, longest: int = 0) -> Splits:
    """Learn the vocabulary of the training split and encode both.

    Args:
        name: Of the data set.
        train: Training pairs.
        test: Test pairs; all of them stay.
        size: Most entries of the vocabulary.
        longest: Training pairs with more tokens in a sentence are left out; 0: none.

    Raises:
        SweepError: A split is empty.
    """
    vocabulary = bpe.learn(itertools.chain(*train), size)
    if longest:
        counts = (map(len, bpe.encode(side, vocabulary)) for side in train)
        short = [max(pair) <= longest for pair in zip(*counts, strict=True)]
        train = _of(itertools.compress(zip(*train, strict=True), short))
    if not train[0] or not test[0]:
        raise SweepError(f"{name}: {'test' if train[0] else 'train'} has no pair of sentences")
    source, reply = (
        max(map(len, bpe.encode([*one, *other], vocabulary))) + 1 + _ROOM
        for one, other in zip(train, test, strict=True)
    )
    lengths = source, reply
    return Splits(pairs(train, vocabulary, lengths), pairs(test, vocabulary, lengths))


def _of(found: Any) -> Texts:
    """Pairs as two lists."""
    both = list(found)
    return [one for one, _ in both], [other for _, other in both]


@dataclass(frozen=True, kw_only=True)
class PairFiles(Source):
    """Parquet with a column for each language, or two text files a split."""

    source: str = ""
    """The language translated from: a column, or the ending of a text file; giving it says that the
    files hold pairs."""
    target: str = ""
    """The language translated to, likewise."""
    file: str = "train"
    """Name of the training file, without its ending."""
    test_file: str = ""
    """Name of the test file, without its ending; default: test, val, or the first that begins so.
    """
    vocabulary: Annotated[int, Field(ge=300, le=CEILING)] = 8000
    """Most byte pairs in the vocabulary."""
    longest: Count = 64
    """Training pairs with more tokens in a sentence are left out."""

    names: ClassVar[dict[str, str]] = {
        "multi30k-en-de": "29,000 descriptions of images in English and German; not downloaded"
    }
    idle = frozenset({"size"})
    task = "pairs"
    shape = (72,)
    wants = "train.parquet and test.parquet with a column a language, or train.en, train.de and so"
    extra = "text"
    packages = ("tokenizers", "sacrebleu")
    order: ClassVar[int] = 4

    @classmethod
    def asked(cls, options: Mapping[str, Any]) -> bool:
        """Where a language is given, or the data set is known: images lie in Parquet too."""
        known = any(same_name(str(options["dataset"]), name) for name in cls.names)
        return known or "source" in options or "target" in options

    @property
    def languages(self) -> tuple[str, str]:
        """Both languages; of a data set whose name ends in them, from its name."""
        words = self.name.replace("_", "-").split("-")
        named = words[-2:] if len(words) > 2 else ["", ""]
        return self.source or named[0], self.target or named[1]

    def home(self, root: Path) -> Path | None:
        """The folder with the files."""
        given = [Path(self.path).expanduser()] if self.path else folders(root, self.name)
        places = (place for place in given if place.is_dir())
        return next((p for p in places if inside(p, "*.*") or _shards.splits([p])), None)

    def serves(self, root: Path) -> bool:
        """Whether there is such a folder."""
        return self.home(root) is not None

    def files(self, root: Path) -> list[Path]:
        """The files of both splits."""
        home = self.home(root)
        assert home is not None
        return [file for split in ("train", "test") for file in self._of_split(home, split)]

    def _of_split(self, home: Path, split: str) -> list[Path]:
        """The Parquet files of a split, or its two text files.

        Raises:
            SweepError: There are none, or the name leads elsewhere.
        """
        stem = self.file if split == "train" else self.test_file or _test_of(home)
        if not stem or Path(stem).name != stem:
            raise SweepError(f"{self.name}: {stem!r} is no name of a file in {home}: correct it")
        whole, texts = (
            home / f"{stem}.parquet",
            [home / f"{stem}.{language}" for language in self.languages],
        )
        if whole.is_file():
            return [whole]
        if all(file.is_file() for file in texts):
            return texts
        if stem == split and (shards := _shards.splits([home]).get(split)):
            _shards.whole(self.name, split, shards)
            return shards
        raise SweepError(
            f"{self.name}: {home} has neither {whole.name} nor {texts[0].name} and "
            f"{texts[1].name}: give their names with `file` and `test_file`, and the "
            "languages with `source` and `target`"
        )

    def read(self, root: Path) -> Splits:
        """Read both splits and learn the vocabulary.

        Raises:
            SweepError: A file cannot be read, or has no such column, or sides of other lengths.
        """
        home = self.home(root)
        assert home is not None
        train, test = (self._texts(self._of_split(home, split)) for split in ("train", "test"))
        return splits(self.name, train, test, self.vocabulary, self.longest)

    def _texts(self, files: Sequence[Path]) -> Texts:
        import pyarrow

        sides: list[list[str]]
        try:
            if files[0].suffix.lower() == ".parquet":
                parts = [_columns(file, self.languages) for file in files]
                sides = [[*itertools.chain(*side)] for side in zip(*parts, strict=True)]
            else:
                sides = [_text(file).splitlines() for file in files]
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            what = f"cannot be read as {' and '.join(self.languages)}"
            remedy = "name its columns with `source` and `target`"
            raise unreadable(files[0], what, error, remedy=remedy) from error
        if len(sides[0]) != len(sides[1]) or not all(
            isinstance(text, str) for side in sides for text in side
        ):
            raise SweepError(
                f"{self.name}: {files[0]}: {len(sides[0])} and {len(sides[1])} sentences, all must "
                "be text, and as many on both sides"
            )
        return _of(pair for pair in zip(*sides, strict=True) if all(map(str.strip, pair)))


def _columns(file: Path, languages: Sequence[str]) -> list[list[str]]:
    """The sentences of each language, in columns of their own or in one called `translation`."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        nested = "translation" in opened.schema_arrow.names
        table = opened.read(columns=["translation"] if nested else list(languages))
    both = table["translation"] if nested else table
    read = pc.struct_field if nested else type(table).column
    return [read(both, language).to_pylist() for language in languages]


def _text(file: Path) -> str:
    content = file.read_bytes()
    if is_pointer(content):
        raise ValueError("it holds no sentences")
    return content.decode("utf-8")


def _test_of(home: Path) -> str:
    """The name of the test file: the first of the usual ones, else the first that begins so."""
    stems = sorted({file.stem for file in inside(home) if file.is_file()})
    for name in TEST_NAMES:
        for stem in [s for s in stems if s == name] or [s for s in stems if s.startswith(name)]:
            return stem
    return "test"


# The generated set

_WHO = {"i": "ich", "you": "du", "we": "wir", "they": "sie"}
_DOES = {
    "see": ("sehe", "siehst", "sehen", "sehen"),
    "count": ("zähle", "zählst", "zählen", "zählen"),
    "paint": ("male", "malst", "malen", "malen"),
    "buy": ("kaufe", "kaufst", "kaufen", "kaufen"),
}
_HOW = {"red": "rote", "green": "grüne", "small": "kleine", "old": "alte", "new": "neue"}
_WHAT = {
    "dogs": "Hunde",
    "cats": "Katzen",
    "houses": "Häuser",
    "trees": "Bäume",
    "books": "Bücher",
    "apples": "Äpfel",
    "chairs": "Stühle",
    "flowers": "Blumen",
    "boats": "Boote",
    "birds": "Vögel",
}
_ONES = {
    "en": (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen"
    ).split(),
    "de": (
        "ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
        "sechzehn siebzehn achtzehn neunzehn"
    ).split(),
}
_TENS = {
    "en": "twenty thirty forty fifty sixty seventy eighty ninety".split(),
    "de": "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split(),
}
_LARGE = {"en": ("thousand", "hundred"), "de": ("tausend", "hundert")}


def number(value: int, language: str) -> str:
    """A number from 2 to 9,999 in words of its language, one a space: ein und zwanzig."""
    german, words = language == "de", list[str]()
    for size, name in zip((1000, 100), _LARGE[language], strict=True):
        if value >= size:
            words += [_ONES[language][value // size - 1], name]
            value %= size
    if value >= 20:
        tens, ones = _TENS[language][value // 10 - 2], value % 10
        unit = [_ONES[language][ones - 1]] if ones else []
        words += [*unit, *["und"][: len(unit)], tens] if german else [tens, *unit]
    elif value:
        words.append(_ONES[language][value - 1])
    return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class Phrases(Fileless):
    """Generated sentences in English and German."""

    count: Count = 4000
    """Training pairs."""
    test_count: Count = 400
    """Test pairs; none of them is a training pair."""

    names: ClassVar[dict[str, str]] = {
        "phrases": "generated sentences in English and German, 4,000 + 400 pairs"
    }
    idle = frozenset({"size"})
    task = "pairs"
    shape = (30,)
    extra = "text"
    packages = ("tokenizers", "sacrebleu")
    order: ClassVar[int] = 40

    def read(self, root: Path) -> Splits:
        """Draw both splits."""
        return draw_phrases(self.name, self.count, self.test_count)


def draw_phrases(name: str, train: int, test: int) -> Splits:
    """Draw pairs, all different."""
    rng, found = seeds.numpy_generator("phrases", name), dict[str, str]()
    while len(found) < train + test:
        who, does = (int(rng.integers(len(words))) for words in (_WHO, _DOES))
        english, german = [[*_WHO][who], [*_DOES][does]], [[*_WHO.values()][who]]
        german.append([*_DOES.values()][does][who])
        for part in range(int(rng.integers(1, 3))):
            english += ["and"] * part
            german += ["und"] * part
            for one, other in zip(_things(rng), (english, german), strict=True):
                other += one
        found[" ".join([*english, "."])] = " ".join([*german, "."])
    every = list(found.items())
    return splits(name, _of(every[:train]), _of(every[train:]), 600)


def _things(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """How many of what, in both languages."""
    value = int(rng.integers(2, [10, 100, 1000, 10000][int(rng.integers(4))]))
    english, german = [number(value, "en")], [number(value, "de")]
    for words in (_HOW, _WHAT):
        if words is _WHAT or rng.random() < 0.5:
            place = int(rng.integers(len(words)))
            english.append([*words][place])
            german.append([*words.values()][place])
    return english, german
