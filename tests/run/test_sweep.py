"""The main job in one process: sharing, growing, resuming, failing, the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from sweeper.core.types import Role
from sweeper.plan import source, spec
from sweeper.run import cells, driver
from sweeper.run.faults import Interrupted
from sweeper.run.record import blank_row
from sweeper.run.walk import Walk
from sweeper.store.artifacts import Store
from tests.support import pictures, sweeps

FOUR = [
    "none",
    {"defense": "fine-tuning", "epochs": 1},
    {"defense": "fine-tuning", "epochs": 2, "as": "ft2"},
    {"defense": "fine-pruning", "epochs": 1},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep: (its file, its store)."""
    folder = tmp_path_factory.mktemp("sweep")
    path, store = sweeps.write(folder, defenses=FOUR, seeds=2), folder / "store"
    counts, ran = sweeps.inline(path, store)
    assert counts == {"ok": 40}
    assert ran.count(("train", "ok")) == 8, "2 attacks x 2 rates x 2 seeds are 8 victims"
    assert ran.count(("defend", "ok")) == 32
    return path, store


def test_same_command_again_runs_nothing(done: tuple[Path, Path]) -> None:
    path, store = done
    counts, ran = sweeps.inline(path, store)
    assert not counts and not ran


def test_the_file_the_store_keeps_gives_the_same_cells(done: tuple[Path, Path]) -> None:
    _, store = done
    kept = store / "sweeps" / "small" / "sweep.yaml"
    job = sweeps.prepared(kept, store)
    assert job.summary()["done"] == 40 and not job.todo


def scaled() -> list[tuple[str, str]]:
    """Every shipped sweep at each of its scales, and as it is."""
    found = []
    for name in source.shipped():
        found += [(name, scale) for scale in ("", *source.read(name).values.get("scales", {}))]
    return found


@pytest.mark.parametrize(("name", "scale"), scaled())
def test_a_sweep_as_a_file_is_the_same_sweep(name: str, scale: str, tmp_path: Path) -> None:
    sweep = spec.load(name, [f"scale={scale}"] if scale else [])
    (tmp_path / "again.yaml").write_text(driver.as_file(sweep))
    assert spec.load(str(tmp_path / "again.yaml")) == sweep


def test_every_sort_of_entry_as_a_file(tmp_path: Path) -> None:
    first = sweeps.write(
        tmp_path,
        attacks=[
            {"attack": "badnets", "rule": "all2all", "as": "ä: 5", "poison_rates": [0.3]},
            "none",
        ],
        defenses=[
            {"detect": {"defense": "spectre"}, "then": {"defense": "unlearn", "lr": 0.02}},
            {"defense": "fine-tuning", "as": 7},
        ],
        clean_budgets=[0.05, 20],
        seeds=[3, 1],
        timeout=5.5,
        exclude=[{"attack": "none", "seed": 3}],
        table={"rows": ["attack"], "labels": {"defense": {"7": "seven"}}},
    )
    sweep = spec.load(str(first), ["recipe.lr=0.02", "resources.cpus=2"])
    (tmp_path / "again.yaml").write_text(driver.as_file(sweep))
    assert spec.load(str(tmp_path / "again.yaml")) == sweep


def test_another_sweep_with_one_more_defense_trains_nothing(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    _, store = done
    more = [*FOUR, {"defense": "fine-tuning", "layers": "head", "epochs": 1, "as": "head"}]
    path = sweeps.write(tmp_path, name="more", defenses=more, seeds=2)
    counts, ran = sweeps.inline(path, store)
    assert set(ran) == {("defend", "ok")} and counts == {"ok": 8}, "8 new cells, none a training"
    found = sweeps.frame(store, "more")
    assert len(found) == 40 and set(found["sweep"]) == {"more"}, "known rows are taken over"
    assert set(found["defense"]) == {"none", "fine-tuning", "ft2", "fine-pruning", "head"}


def test_a_prepared_state_is_made_once_and_reloads_bit_for_bit(tmp_path: Path) -> None:
    optimised = {"attack": "trojan", "trigger": "optimised", "steps": 20}
    path = sweeps.write(tmp_path, attacks=[optimised], seeds=2)
    store = Store(str(tmp_path / "store"))
    _, ran = sweeps.inline(path, tmp_path / "store")
    assert ran.count(("prepare", "ok")) == 1, "2 rates x 2 seeds x 2 defenses share it"
    assert ran.count(("train", "ok")) == 5, "4 victims and the clean model"
    assert ran.count(("defend", "ok")) == 8
    (key,) = store.keys("prepare")
    before = store.get("prepare", key).tensors["state"]["patch"].clone()
    assert before.unique().numel() > 1, "a patch, not a constant"
    job = sweeps.prepared(path, tmp_path / "store")
    walk = Walk(job.plan.cells, [])
    cells.run(job.plan.cells[key], walk.ancestors(key), job.context, force=True)
    assert (store.get("prepare", key).tensors["state"]["patch"] == before).all()


def test_rows_say_what_they_are(done: tuple[Path, Path]) -> None:
    _, store = done
    found = sweeps.frame(store)
    assert len(found) == 32
    none = found[found["defense"] == "none"]
    assert (none["acc"] == none["acc_before"]).all() and (none["der"] == 0.5).all()
    assert set(found["n_test"]) == {100} and found["n_triggered"].between(80, 100).all()
    assert (found["victim_seconds"] > 0).all() and (found["seconds"] >= 0).all()
    assert json.loads(found["versions"].iloc[0]).keys() == {"torch", "ray", "sweeper"}
    assert set(found["sees"]) == {"model", "clean,model"} and not found["oracle"].any()
    assert set(found["n_clean"]) == {0, 15}, "5 % of 300 training images"


def test_an_edited_recipe_shows_only_its_own_rows(done: tuple[Path, Path], tmp_path: Path) -> None:
    _, store = done
    small = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1, "defenses": ["none"]}
    for epochs in (1, 2):
        path = sweeps.write(tmp_path, name="edited", recipe={"epochs": epochs}, **small)
        sweeps.inline(path, store)
    found = sweeps.frame(store, "edited")
    assert len(found) == 1 and json.loads(found["recipe"].iloc[0])["epochs"] == 2


@pytest.mark.parametrize("kind", ["train", "defend"])
def test_any_order_in_one_process_gives_the_same_bits(
    kind: str, done: tuple[Path, Path], tmp_path: Path
) -> None:
    path, store = done
    job = sweeps.prepared(path, tmp_path / "other")
    walk = Walk(job.plan.cells, [])
    some = [cell for cell in job.plan.cells.values() if cell.kind == kind][:5]
    first = {}
    for cell in [*some, *reversed(some)]:
        result = cells.run_here(cell, walk.ancestors(cell.key), job.context, force=True)
        assert result["status"] == "ok"
        known = first.setdefault(cell.key, (result["acc"], result["asr"]))
        assert known == (result["acc"], result["asr"])
    for cell in some if kind == "train" else []:
        ours = Store(str(tmp_path / "other")).get("train", cell.key).tensors["model"]
        theirs = Store(str(store)).get("train", cell.key).tensors["model"]
        assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_another_process_gives_the_same_bits(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, store = done
    arguments = ["run", str(path), "--store", str(tmp_path / "s"), "--executor", "inline"]
    subprocess.run(
        [sys.executable, "-m", "sweeper", *arguments, "--set", "seeds=1"]
        + ["--set", "poison_rates=[0.1]"],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    ours = sweeps.frame(tmp_path / "s")
    sweeps.assert_same(ours, sweeps.frame(store).loc[ours.index])


def test_a_cell_that_asks_for_a_gpu_never_runs_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = sweeps.write(tmp_path, attacks=["badnets"], poison_rates=[0.1], seeds=1, defenses=FOUR)
    job = sweeps.prepared(path, tmp_path / "store")
    job = replace(job, context=replace(job.context, device="cuda", gpus=0.25))
    assert driver.execute(job, driver.inline, sweeps.Silent()) == {"failed": 1, "blocked": 4}
    (victim,) = (c for c in job.plan.cells.values() if c.kind == "train")
    failure = job.store.failure("small", victim.key)
    assert failure and failure["error"].startswith("resources.gpus: the cell asks for a GPU")
    assert not job.store.has("train", victim.key)


def test_a_cell_is_bound_to_its_share_and_alone_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(cells, "bound_memory", lambda device, share: told.append(share))
    entry = {"defense": "tests.support.faulty:OutOfMemory", "as": "full", "marks": str(tmp_path)}
    one = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1, "defenses": [entry]}
    job = sweeps.prepared(sweeps.write(tmp_path, **one), tmp_path / "store")
    job = replace(job, context=replace(job.context, gpus=0.25))
    driver.execute(job, driver.inline, sweeps.Silent())
    assert told == [0.25, 0.25, 1.0], "the victim, the defense, and it once more"


def test_failures_are_rows_and_leave_the_rest_unharmed(tmp_path: Path) -> None:
    faulty = ["Raises", "Diverges", "OutOfMemory", "Hangs", "Peeks"]
    entries = [
        {"defense": f"tests.support.faulty:{name}", "as": name, "marks": str(tmp_path)}
        for name in faulty
    ]
    one = {"poison_rates": [0.1], "seeds": 1}
    store = tmp_path / "store"
    sound = sweeps.write(tmp_path, **one, attacks=["badnets"], defenses=FOUR[:2])
    assert sweeps.inline(sound, store)[0] == {"ok": 3}, "without a limit on their time"
    path = sweeps.write(
        tmp_path,
        **one,
        attacks=["badnets", {"attack": "tests.support.faulty:FailsToPoison", "as": "unbuilt"}],
        defenses=[*FOUR[:2], *entries],
        timeout=3,
    )
    counts, _ = sweeps.inline(path, store)
    assert counts == {"failed": 4, "diverged": 1, "timeout": 1, "blocked": 7}
    found = sweeps.frame(store).reset_index().set_index(["attack", "defense"])
    rows = found.loc["badnets"]
    assert rows["status"].to_dict() == {
        "none": "ok",
        "fine-tuning": "ok",
        "Raises": "failed",
        "Diverges": "diverged",
        "OutOfMemory": "failed",
        "Hangs": "timeout",
        "Peeks": "failed",
    }
    assert "ValueError: broken on purpose" in rows.loc["Raises", "error"]
    assert "classifier.weight" in rows.loc["Diverges", "error"]
    assert "no room on purpose" in rows.loc["OutOfMemory", "error"]
    assert "3 s" in rows.loc["Hangs", "error"]
    assert "AccessDenied: case.clean" in rows.loc["Peeks", "error"]
    assert rows.loc["Raises", "acc_before"] > 0, "a failed row still says what it started from"
    assert len(list(tmp_path.glob("OutOfMemory-*"))) == 2, "tried once more, alone"
    blocked = found.loc["unbuilt"]
    assert set(blocked["status"]) == {"blocked"}
    parent = next(
        c
        for c in sweeps.prepared(path, store).plan.cells.values()
        if c.kind == "train" and c.axes["attack"] == "unbuilt"
    )
    assert all(parent.key in error and "no poison" in error for error in blocked["error"])

    retried, _ = sweeps.inline(path, store)
    assert retried == {"failed": 4, "timeout": 1, "blocked": 7}, "only what did not finish"


def test_errors_of_any_length_and_letters_end_no_sweep(tmp_path: Path) -> None:
    shouts = {"attack": "tests.support.faulty:ShoutsAtVictims", "as": "shouts"}
    entries = [f"tests.support.faulty:{name}" for name in ("Shouts", "Murmurs")]
    path = sweeps.write(
        tmp_path,
        attacks=["badnets", shouts, {**shouts, "diverges": True, "as": "silent"}],
        poison_rates=[0.1],
        seeds=1,
        defenses=["none", *({"defense": name, "as": name.partition(":")[2]} for name in entries)],
    )
    told: list[dict[str, Any]] = []
    watcher = sweeps.Silent()
    watcher.finished = lambda cell, result: told.append(result)  # type: ignore[method-assign]
    job = sweeps.prepared(path, tmp_path / "store")
    counts = driver.execute(job, driver.inline, watcher)
    assert counts == {"ok": 3, "failed": 2, "diverged": 1, "blocked": 6}
    assert all(len((result["error"] or "").encode()) <= 20_000 for result in told)
    found = sweeps.frame(tmp_path / "store").set_index(["attack", "defense"])
    error = found.loc[("badnets", "Shouts"), "error"]
    assert "ValueError: said ?[2J xxx" in error and error.strip().endswith("xx on purpose")
    assert "Traceback" in error and "bytes left out" in error
    assert json.loads(found.loc[("badnets", "Murmurs"), "notes"])
    for attack, cause in (("shouts", "xxx..."), ("silent", ": it does not say why")):
        blocked = found.loc[attack]
        assert set(blocked["status"]) == {"blocked"}
        assert all(error.endswith(cause) and len(error) < 500 for error in blocked["error"])


def test_a_failure_known_without_its_row_enters_it(tmp_path: Path) -> None:
    """The process that failed was lost between the record of its failure and its row."""
    path = sweeps.write(tmp_path, attacks=["badnets"], poison_rates=[0.1], seeds=1, defenses=FOUR)
    job = sweeps.prepared(path, tmp_path / "store")
    first = next(cell for cell in job.plan.cells.values() if cell.kind == "defend")
    record = {"status": "timeout", "error": "gave up", "run": job.context.run}
    job.store.fail("small", first.key, record)
    victim = job.plan.cells[first.params["victim"]]
    job.store.write_row(blank_row(first, victim, "small", "blocked", "before"))
    counts = driver.execute(job, driver.inline, sweeps.Silent())
    assert counts == {"ok": 4, "timeout": 1}
    row = sweeps.frame(tmp_path / "store").loc[first.key]
    assert (row["status"], row["error"], row["attack"]) == ("timeout", "gave up", "badnets")


def test_a_damaged_victim_is_set_aside_and_rebuilt(tmp_path: Path) -> None:
    one = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}
    store = tmp_path / "store"
    sweeps.inline(sweeps.write(tmp_path, **one, defenses=["none"]), store)
    (victim,) = (store / "artifacts/train").glob("*/model-*.safetensors")
    before = victim.read_bytes()
    victim.write_bytes(before[:-100])
    counts, _ = sweeps.inline(sweeps.write(tmp_path, **one, defenses=FOUR[:2]), store)
    assert counts == {"ok": 1}
    assert victim.read_bytes() == before and list((store / "damaged").iterdir())


def test_stopped_anywhere_and_resumed_equals_undisturbed(
    done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = done
    path = sweeps.write(tmp_path, defenses=FOUR, seeds=1)
    real, calls = Store.write_row, []

    def failing(self: Store, row: dict[str, object]) -> None:
        calls.append(row["key"])
        if len(calls) in (5, 9, 16):
            raise Interrupted
        real(self, row)

    monkeypatch.setattr(Store, "write_row", failing)
    for _ in range(3):
        with pytest.raises(Interrupted):
            sweeps.inline(path, tmp_path / "store")
    sweeps.inline(path, tmp_path / "store")
    ours = sweeps.frame(tmp_path / "store")
    assert len(ours) == 16
    sweeps.assert_same(ours, sweeps.frame(store).loc[ours.index])


def test_a_defense_may_share_a_stage(tmp_path: Path) -> None:
    entries = [
        {"defense": f"tests.support.staged:{name}", "as": name} for name in ("First", "Second")
    ]
    path = sweeps.write(
        tmp_path, attacks=["badnets"], poison_rates=[0.1], seeds=1, defenses=entries
    )
    counts, ran = sweeps.inline(path, tmp_path / "store")
    assert counts == {"ok": 4} and ran.count(("stage", "ok")) == 1
    found = sweeps.frame(tmp_path / "store")
    notes = [json.loads(note)["mean"] for note in found["notes"]]
    assert notes[0] == notes[1] > 0
    assert found["auroc"].notna().all() and found["tpr"].notna().all()
    samples = Store(str(tmp_path / "store")).samples(found.index[0])
    assert samples is not None
    kept = samples.to_pandas()
    assert list(kept) == ["index", "labels", "true_labels", "role", "score", "flagged"]
    assert len(kept) == 270 and (kept["role"] == Role.POISON).sum() == found["n_poisoned"].iloc[0]
    auroc = roc_auc_score(kept["role"] == Role.POISON, kept["score"])
    assert auroc == pytest.approx(found["auroc"].iloc[0])


def test_data_that_were_exchanged_are_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, as in a notebook: by the next sweep, never by one that was planned before."""
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))

    def exchanged(number: int) -> None:
        monkeypatch.setenv("SWEEPER_DATA", str(tmp_path / f"data{number}"))
        for split, count in (("train", 60), ("test", 30)):
            images = [pictures.picture(number + i, (16, 16)) for i in range(count)]
            labels = [i % 3 for i in range(count)]
            place = tmp_path / f"data{number}/pixels/{split}.parquet"
            pictures.write_parquet(place, images, labels)

    small = {"datasets": ["pixels"], "attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}
    path = sweeps.write(tmp_path, **small, defenses=["none"])
    for number in (0, 100):
        exchanged(number)
        assert sweeps.inline(path, tmp_path / "store")[0] == {"ok": 2}
    exchanged(200)
    job = sweeps.prepared(path, tmp_path / "other")
    exchanged(300)
    assert driver.execute(job, driver.inline, sweeps.Silent()) == {"failed": 1, "blocked": 1}
    (row,) = sweeps.frame(tmp_path / "other").to_dict("records")
    assert "pixels on this machine is not the one the sweep was planned with" in row["error"]


def test_new_run_names_differ() -> None:
    assert driver.new_run() != driver.new_run()


def test_exit_code_is_one_when_a_cell_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeper.cli import app

    raises = {"defense": "tests.support.faulty:Raises", "as": "raises"}
    path = sweeps.write(
        tmp_path, attacks=["badnets"], poison_rates=[0.1], seeds=1, defenses=["none", raises]
    )
    arguments = ["run", str(path), "--store", str(tmp_path / "s"), "--executor", "inline"]
    monkeypatch.setattr("sys.argv", ["sweeper", *arguments])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 1
    shown = capsys.readouterr()
    assert "✗" in shown.out and "ValueError: broken on purpose" in shown.err
