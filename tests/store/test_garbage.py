"""What nothing needs goes, nothing else: told first, then freed, in any order of interruptions."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sweeper.analyses import show
from sweeper.core.errors import SweepError
from sweeper.core.types import Cell
from sweeper.plan import matrix, spec
from sweeper.run.material import MEASURE, Context
from sweeper.store import claim, contents
from sweeper.store.artifacts import Store
from sweeper.store.contents import Contents
from sweeper.store.files import Files
from sweeper.store.garbage import Garbage, Said, Waste
from tests.support import sweeps

VICTIM, OTHER, STATE, CLEAN, STAGE, CELL, RATES = (f"{number:020x}" for number in range(1, 8))
DAYS = 48 * 3600


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one sweep, whose matrix has one victim."""
    made = Store(str(tmp_path))
    made.save_plan("small", {"cells": {CELL: {}}, "above": {VICTIM: "train"}})
    made.put("train", VICTIM, {}, {"params": {}})
    return made


def waste(store: Store, *named: str) -> Counter[str]:
    """Why -> how many things would go."""
    return Counter(why for why, _ in Garbage(store.root).waste(named).things)


def age(root: Path | str, seconds: float = DAYS) -> None:
    """Make all files and folders older."""
    then = time.time() - seconds
    for path in sorted(Path(root).rglob("*"), reverse=True):
        os.utime(path, (then, then))


def files(root: Path | str) -> dict[str, bytes]:
    paths = (path for path in Path(root).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def weight(found: Waste) -> int:
    return found.sums().get("all", {"bytes": 0})["bytes"]


def row(store: Store, sweep: str, key: str, victim: str, status: str = "ok") -> None:
    about = {"key": key, "victim": victim, "status": status, "started_at": "2026"}
    store.write_row({"sweep": sweep, **about})


# What is an orphan

KINDS: dict[str, Callable[[Store, str], None]] = {
    "victims": lambda store, key: store.put("train", key, {}, {"params": {}}),
    "prepared": lambda store, key: store.put("prepare", key, {}, {"params": {}}),
    "stages": lambda store, key: store.put("stage", key, {}, {"params": {"victim": OTHER}}),
    "results of defenses": lambda store, key: store.put("defend", key, {}, {"row": {}}),
    "metrics": lambda store, key: store.put("measure", key, {}, {"victim": OTHER}),
    "samples": lambda store, key: store.write_samples(key, {"score": [1.0]}),
    "checkpoints": lambda store, key: store._write(f"checkpoints/{key}/manifest.json", b"{}"),
}


def test_every_kind_of_artifact_has_a_word_and_a_test() -> None:
    assert set(contents.KINDS) == {*matrix.KINDS, MEASURE}
    assert set(contents.KINDS.values()) < set(KINDS)


@pytest.mark.parametrize("what", KINDS)
def test_what_no_sweep_has_goes_after_a_day(store: Store, what: str) -> None:
    KINDS[what](store, STAGE)
    found = Garbage(store.root).waste()
    assert not found.things and found.young == 1, "somebody may be at it"
    age(store.root)
    assert waste(store) == {f"{what} of no sweep": 1}
    freed = Garbage(store.root).free()
    assert weight(freed) and not waste(store)
    assert sorted(files(store.root)) == [
        f"artifacts/train/{VICTIM}/manifest.json",
        "sweeps/small/plan.json",
    ]
    assert not list(Path(store.root).rglob(f"*{STAGE}*")), "nor an empty folder"


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("by", ["matrix", "row", "victim's row", "kept", "move"])
def test_what_a_sweep_has_stays(store: Store, what: str, by: str) -> None:
    KINDS[what](store, STAGE)
    if by == "matrix":
        store.save_plan("second", {"cells": {STAGE: {}}, "above": {}})
    elif by == "row":
        row(store, "second", STAGE, OTHER)
    elif by == "victim's row":
        row(store, "second", CELL, STAGE)
    elif by == "kept":
        Contents(store.root).keep("show", {STAGE: "train"})
    else:
        store._write("replaced/run.json", json.dumps({"train": [STAGE]}).encode())
    age(store.root)
    assert not waste(store)


def test_rows_of_an_older_matrix_keep_their_victims_and_all_that_made_these(store: Store) -> None:
    store.put("train", CLEAN, {}, {"params": {}})
    store.put("prepare", STATE, {}, {"params": {"clean_model": CLEAN}})
    store.put("train", OTHER, {}, {"params": {"state": STATE}})
    store.put("stage", STAGE, {}, {"params": {"victim": OTHER}})
    store.put("measure", RATES, {}, {"victim": OTHER})
    age(store.root)
    assert sum(waste(store).values()) == 5
    row(store, "small", f"{99:020x}", OTHER)
    assert not waste(store)
    store.compact("small")
    assert not waste(store)


def test_stages_and_metrics_count_like_their_victim(store: Store) -> None:
    for number, victim in enumerate((VICTIM, OTHER)):
        store.put("stage", f"{20 + number:020x}", {}, {"params": {"victim": victim}})
        store.put("measure", f"{30 + number:020x}", {}, {"victim": victim})
    age(store.root)
    assert waste(store) == {"stages of no sweep": 1, "metrics of no sweep": 1}


def test_what_show_learns_is_kept_until_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(cell: Cell, ancestors: Any, context: Context, log: Any) -> dict[str, str]:
        Store(context.store).put(cell.kind, cell.key, {}, {"params": {}})
        return {"status": "failed", "error": "that is enough"}

    monkeypatch.setattr(show.cells, "run_here", learn)
    for seed in ([0], [1]):  # the second keeps what the first kept
        values = {**sweeps.SMALL, "name": "show", "attacks": ["wanet"], "seeds": seed}
        declared = spec.parse({**values, "poison_rates": [0.1], "defenses": ["none"]})
        with pytest.raises(SweepError, match="that is enough"):
            show.triggered(declared, Context(store=str(tmp_path), sweep="show"))
    store = Store(str(tmp_path))
    age(tmp_path)
    assert len(store.keys("train")) == 2 and not waste(store)
    assert waste(store, "show") == {"victims of show alone": 2, "plans of show": 1}
    Garbage(store.root).free(["show"])
    assert not files(tmp_path)


def test_a_plan_that_cannot_be_read_stops_it(store: Store) -> None:
    store.save_plan("second", {"cells": {STAGE: {}}})
    store.put("defend", STAGE, {}, {})
    store._write("sweeps/second/plan.json", b"{half")
    age(store.root)
    with pytest.raises(SweepError, match="plan of sweep second cannot be read.*--sweep second"):
        waste(store)
    found = waste(store, "second")
    assert found == {"results of defenses of no sweep": 1, "plans of second": 1}


def test_a_store_that_is_away_is_not_one_without_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("train", OTHER, {}, {"params": {}})
    row(store, "small", CELL, OTHER)
    age(store.root)
    read = Garbage._read

    def away(self: Garbage, path: str) -> bytes:
        if path.endswith(".parquet"):
            raise OSError("the store is away")
        return read(self, path)

    monkeypatch.setattr(Garbage, "_read", away)
    with pytest.raises(OSError, match="away"):
        waste(store)


# What else goes

WASTE = {
    "half-written": f"sweeps/small/results/.{'a' * 32}.part",
    "half-written below": f"artifacts/train/{VICTIM}/.{'b' * 32}.part",
    "no manifest": f"artifacts/train/{OTHER}/model-{'c' * 12}.safetensors",
    "damaged": f"damaged/artifacts-train-{OTHER}-{10**18}/manifest.json",
    "damaged row": f"damaged/sweeps-small-results-{CELL}.ok.parquet-{10**18}",
    "moved away": f"replaced/run/artifacts-train-{OTHER}-{10**18}/manifest.json",
}


@pytest.mark.parametrize("case", WASTE)
def test_what_was_left_lying_goes_after_a_day(store: Store, case: str) -> None:
    store._write(WASTE[case], b"12345")
    found = Garbage(store.root).waste()
    assert not found.things and found.young == 1
    age(store.root)
    kept = set(files(store.root)) - {WASTE[case]}
    assert weight(Garbage(store.root).free()) == 5 and set(files(store.root)) == kept


def test_an_empty_folder_of_an_artifact_goes(store: Store) -> None:
    folder = Path(store.root, f"artifacts/train/{OTHER}")
    folder.mkdir()
    Garbage(store.root).free()
    assert folder.exists()
    age(store.root)
    Garbage(store.root).free()
    assert not folder.exists()


def test_what_a_move_took_is_as_old_as_the_move(store: Store) -> None:
    """A move leaves a file its time: what is old was set aside just now."""
    store.put("train", OTHER, {}, {})
    age(store.root)
    store._set_aside(f"artifacts/train/{OTHER}")
    assert not waste(store)


def test_a_move_that_has_not_ended_keeps_what_it_took(store: Store) -> None:
    store._write(WASTE["moved away"], b"12345")
    store._write("replaced/run.json", json.dumps({"train": [OTHER]}).encode())
    age(store.root)
    assert not waste(store)
    store._delete("replaced/run.json")
    assert waste(store) == {"moved away by --fresh": 1}


def test_failures_made_good_go_at_once(store: Store) -> None:
    store.put("stage", STAGE, {}, {"params": {"victim": VICTIM}})
    for key in (VICTIM, STAGE, CELL, OTHER):
        store.fail("small", key, {"status": "failed", "error": ""})
    row(store, "small", CELL, VICTIM, "failed")
    assert waste(store) == {"failures made good": 2}
    row(store, "small", CELL, VICTIM)
    assert waste(store) == {"failures made good": 3}
    Garbage(store.root).free()
    assert store.failures("small") == {OTHER}


def test_a_checkpoint_goes_once_its_victim_is_trained(store: Store) -> None:
    store.save_plan("second", {"cells": {}, "above": {OTHER: "train"}})
    for key in (VICTIM, OTHER):
        store._write(f"checkpoints/{key}/state-{'e' * 12}.safetensors", b"12345")
    assert waste(store) == {"checkpoints of what is trained": 1}
    Garbage(store.root).free()
    assert [p for p in files(store.root) if "checkpoints" in p] == [
        f"checkpoints/{OTHER}/state-{'e' * 12}.safetensors"
    ]


FOREIGN = (
    "notes.txt",
    "imported/theirs/victim.json",
    "artifacts/README",
    f"artifacts/train/{OTHER}/notes.txt",
    "artifacts/train/theirs/manifest.json",
    f"artifacts/theirs/{OTHER}/manifest.json",
    "samples/mine.parquet",
    "sweeps/small/results/mine.parquet",
    "sweeps/small/notes.txt",
    "sweeps/my notes/plan.json",
    "damaged/notes.txt",
    "replaced/run/notes.txt",
)


def test_what_is_not_ours_is_told_and_never_touched(store: Store) -> None:
    for path in (*FOREIGN, WASTE["no manifest"], WASTE["damaged"], WASTE["moved away"]):
        Path(store.root, path).parent.mkdir(parents=True, exist_ok=True)
        Path(store.root, path).write_bytes(b"12345")
    age(store.root)
    used = Contents(store.root).usage()
    assert used["foreign"] == sorted(FOREIGN)
    assert used["what"]["not ours"] == {"files": len(FOREIGN), "bytes": 5 * len(FOREIGN)}
    assert weight(Garbage(store.root).free(["small"])) > 15
    assert sorted(files(store.root)) == sorted(FOREIGN)


# A sweep that goes

FEW: dict[str, Any] = {"poison_rates": [0.1], "seeds": 1}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two sweeps that share a victim, and the files of the sweeps."""
    folder = tmp_path_factory.mktemp("two")
    one = sweeps.write(folder, name="one", **FEW, defenses=["none", "strip"])
    sweeps.inline(one, folder / "store")
    sweeps.inline(
        sweeps.write(folder, name="two", **{**FEW, "attacks": ["badnets"]}), folder / "store"
    )
    return folder


@pytest.fixture
def pair(two: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    subprocess.run(["cp", "-a", two / "store", tmp_path / "store"], check=True)
    return tmp_path / "store"


def test_du_counts_every_byte_once(pair: Path) -> None:
    (pair / "mine.txt").write_bytes(b"12345")
    used = Contents(str(pair)).usage()
    sizes = [len(content) for content in files(pair).values()]
    assert (used["files"], used["bytes"]) == (len(sizes), sum(sizes))
    parts = [*used["sweeps"].values(), used["shared"], used["unnamed"]]
    for sums in (used["what"].values(), parts):
        assert sum(item["bytes"] for item in sums) == sum(sizes)
        assert sum(item["files"] for item in sums) == len(sizes)
    assert set(used["sweeps"]) == {"one", "two"} and used["foreign"] == ["mine.txt"]
    for name in ("what", "sweeps"):
        found = [item["bytes"] for item in used[name].values()]
        assert found == sorted(found, reverse=True)
    (shared,) = (pair / "artifacts/train").glob(f"{_shared(pair)}")
    taken = sum(path.stat().st_size for path in shared.iterdir())
    assert taken <= used["shared"]["bytes"] < taken + 10_000, "the victim once, and its result"
    said = contents.text(used)
    assert "(several sweeps)" in said and "not ours, and never touched: mine.txt" in said


def _shared(root: Path) -> str:
    plans = [json.loads((root / f"sweeps/{name}/plan.json").read_text()) for name in ("one", "two")]
    (key,) = plans[0]["above"].keys() & plans[1]["above"].keys()
    return str(key)


def test_du_asks_for_one_listing_and_what_each_sweep_names(pair: Path) -> None:
    store = Contents(str(pair))
    asked: list[str] = []

    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(self.inner, name)

    store._fs = Counting(store._fs)
    store.usage()
    assert asked.count("open_input_stream") == 2 * 2 and asked.count("get_file_info") <= 3, asked


def test_a_sweep_goes_with_what_only_it_had(two: Path, pair: Path) -> None:
    before = files(pair)
    rows, told = sweeps.frame(pair, "two"), Garbage(str(pair)).waste(["one"])
    assert files(pair) == before, "it is only said"
    freed = Garbage(str(pair)).free(["one"])
    gone = before.keys() - files(pair).keys()
    assert weight(told) == weight(freed) == sum(len(before[path]) for path in gone) > 0
    assert told.sums() == freed.sums() and told.sums()["all"]["files"] == len(gone)
    assert Store(str(pair)).sweeps() == ["two"] and not (pair / "sweeps/one").exists()
    assert Store(str(pair)).keys("train") == {_kept(pair)}
    sweeps.assert_same(sweeps.frame(pair, "two"), rows)
    counts, ran = sweeps.inline(two / "two.yaml", pair)
    assert not counts and not ran, "it finds nothing to run"
    assert not Garbage(str(pair)).waste().things
    Garbage(str(pair)).free(["two"])
    assert not files(pair)


def _kept(root: Path) -> str:
    (key,) = json.loads((root / "sweeps/two/plan.json").read_text())["above"]
    return str(key)


def test_an_undisturbed_store_loses_nothing_and_all_of_it_is_ours(two: Path, pair: Path) -> None:
    age(pair)
    before = files(pair)
    assert not Garbage(str(pair)).free().things and files(pair) == before
    assert not Contents(str(pair)).usage()["foreign"]
    assert any(path.startswith("samples/") or "/measure/" in path for path in before)


class Pulled(Exception):
    """The plug was."""


@pytest.mark.parametrize("named", [["one"], ["one", "two"], []])
def test_wherever_it_is_interrupted_the_rest_is_whole_and_the_same_again_ends_it(
    two: Path, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Collection[str]
) -> None:
    if not named:  # orphans, and much that lies about
        subprocess.run(["rm", "-r", pair / "sweeps/one"], check=True)
        Store(str(pair)).fail("two", _kept(pair), {"status": "failed", "error": ""})
        age(pair)
    whole = tmp_path / "whole"
    subprocess.run(["cp", "-a", pair, whole], check=True)
    things = Garbage(str(whole)).free(named).things
    expected, total = files(whole), sum(len(thing.files) for _, thing in things)
    assert total > 3
    delete, left = Garbage._delete, [0]

    def pull(self: Garbage, path: str) -> None:
        if "driver.json" not in path and not path.endswith(".part"):
            if not left[0]:
                raise Pulled
            left[0] -= 1
        delete(self, path)

    for number in range(total):
        here = tmp_path / f"cut{number}"
        subprocess.run(["cp", "-a", pair, here], check=True)
        with monkeypatch.context() as patch, pytest.raises(Pulled):
            left[0] = number
            patch.setattr(Garbage, "_delete", pull)
            Garbage(str(here)).free(named)
        store = Store(str(here))
        for kind in contents.KINDS:
            for key in store.keys(kind):
                store.get(kind, key)  # an artifact is there or it is not
        if "two" not in named:
            assert set(store.statuses("two").values()) == {"ok"}
        Garbage(str(here)).free(named)
        assert files(here) == expected, f"interrupted after {number} of {total}"


def test_parents_go_before_what_names_them(store: Store) -> None:
    """Of an older matrix only the manifest of a victim says what it was made from."""
    store.put("train", CLEAN, {}, {"params": {}})
    store.put("prepare", STATE, {}, {"params": {"clean_model": CLEAN}})
    store.put("train", OTHER, {}, {"params": {"state": STATE}})
    row(store, "second", CELL, OTHER)
    things = Garbage(store.root).waste(["second"]).things
    keys = [thing.key for _, thing in things if thing.kind]
    assert keys == [CLEAN, STATE, OTHER]


# While somebody runs

ELSEWHERE = {"run": "other", "who": "ada@far", "pid": 7, "place": "far", "since": "noon", "beat": 3}


def test_nothing_goes_while_a_sweep_is_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.05)
    store.save_plan("second", {"cells": {}})
    KINDS["victims"](store, OTHER)
    age(store.root)
    with claim.claimed(store, "second", "run"):
        (said,) = Garbage(store.root).runners()
        assert said.startswith("sweep second is being run by ")
        with pytest.raises(SweepError, match="sweep second is being run by"):
            Garbage(store.root).free(["small"])
        assert store.keys("train") == {VICTIM, OTHER} and store.claim("small") is None
    assert not Garbage(store.root).runners()
    Garbage(store.root).free()
    assert store.keys("train") == {VICTIM} and store.claim("second") is None


def test_a_driver_elsewhere_may_be_alive_until_it_is_silent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.05)
    store.save_claim("small", ELSEWHERE)
    with monkeypatch.context() as nobody_waits_to_be_told:
        nobody_waits_to_be_told.setattr(claim.time, "sleep", None)
        (said,) = Garbage(store.root).runners()
    assert said == "sweep small may be run by ada@far (process 7, since noon)"
    monkeypatch.setattr(claim, "SILENT", 0.5)
    Garbage(store.root).free(["small"])
    assert not files(store.root)


def test_a_driver_that_died_here_is_nobody(store: Store) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    store.save_claim("small", {**ELSEWHERE, "place": claim._place(), "pid": dead.pid})
    assert not Garbage(store.root).runners()


# No store

PLACES = {
    "nothing": (lambda path: None, "there is no .*nothing"),
    "a folder of others": (
        lambda path: (path.mkdir(), (path / "a.txt").touch()),
        "neither `artifacts` nor `sweeps`",
    ),
    "a file": (lambda path: path.touch(), "is a file"),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_is_no_store_is_refused(tmp_path: Path, case: str) -> None:
    make, said = PLACES[case]
    make(tmp_path / case)
    before = files(tmp_path)
    for ask in (
        lambda s: Contents(s).usage(),
        lambda s: Garbage(s).waste(),
        lambda s: Garbage(s).free(),
    ):
        with pytest.raises(SweepError, match=said):
            ask(str(tmp_path / case))
    assert files(tmp_path) == before


def test_an_empty_store_is_one_sentence_and_stays_empty(tmp_path: Path) -> None:
    assert contents.text(Contents(str(tmp_path)).usage()) == f"store {tmp_path} is empty"
    assert not Garbage(str(tmp_path)).free().things and not list(tmp_path.iterdir())


def test_a_sweep_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(SweepError, match="--sweep: no sweep 'smal', did you mean 'small'"):
        waste(store, "smal")


def test_thousands_of_artifacts_are_counted_without_being_read(tmp_path: Path) -> None:
    keys = [f"{number:020x}" for number in range(3000)]
    for key in keys:
        folder = tmp_path / "artifacts/train" / key
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(b"{}")
    store = Store(str(tmp_path))
    store.save_plan("small", {"cells": {}, "above": dict.fromkeys(keys, "train")})
    with mock.patch.object(Files, "_at_work", autospec=True, side_effect=Files._at_work) as asked:
        assert Contents(str(tmp_path)).usage()["sweeps"]["small"]["files"] == 3001
        assert not Garbage(str(tmp_path)).waste().things
    assert 0 < asked.call_count < 20, "listings, not a request for each"


def test_a_row_that_names_no_victim_owns_nothing_else(store: Store) -> None:
    """What was set aside has no key: it is not that of a row of older code."""
    store.write_row({"sweep": "second", "key": STAGE, "status": "ok", "started_at": "2026"})
    store._write(WASTE["damaged"], b"12345")
    assert set(waste(store, "second")) == {"rows of second"}


def test_an_empty_folder_alone_is_told(store: Store) -> None:
    Path(store.root, f"artifacts/train/{OTHER}").mkdir()
    age(store.root)
    said = Said(store.root, Garbage(store.root).waste(), [], freed=False).text("it")
    assert "half-written files        0" in said
