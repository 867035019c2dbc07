"""What `--log` leaves with Tune's loggers: epochs and rows of every cell, whatever became of it."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sweeper
from sweeper.core.errors import SweepError
from sweeper.core.types import Cell
from sweeper.run import logs
from sweeper.run.logs import Logs
from sweeper.run.progress import Progress, Relayed
from tests.support import sweeps

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, at its import
ONE = {
    **sweeps.SMALL,
    "attacks": ["badnets"],
    "poison_rates": [0.1],
    "seeds": 1,
    "recipe": {"epochs": 2},
}
JOB: Any = SimpleNamespace(
    plan=SimpleNamespace(sweep=SimpleNamespace(name="small")), context=SimpleNamespace(run="r1")
)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw of a folder: name -> (step, value)."""
    from tensorboardX.proto import event_pb2

    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for file in folder.glob("events.out.tfevents.*"):
        left = file.read_bytes()
        while left:  # a length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", left[:8])
            event = event_pb2.Event.FromString(left[12 : 12 + length])
            left = left[16 + length :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag].append((event.step, value.simple_value))
    return found


def test_tensorboard_has_every_cells_epochs_and_the_numbers_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweeper.Sweep.from_values(ONE)
    sweep.run(executor="inline", quiet=True, log=["tensorboard"])
    rows = sweep.results().set_index("defense")
    folders = {path.name: path for path in (tmp_path / logs.FOLDER / "small").iterdir()}
    (train,) = (path for name, path in folders.items() if name.startswith("train_badnets_digits"))
    drawn = scalars(train)
    assert [step for step, _ in drawn["ray/tune/loss"]] == [1, 2]
    assert [value for _, value in drawn["ray/tune/epoch"]] == [1, 2]
    assert drawn["ray/tune/acc"] == [(3, pytest.approx(rows["acc_before"].iloc[0]))]
    assert len(folders) == 3
    for name, path in folders.items():
        if name.startswith("defend"):
            row = rows.loc["none" if "none" in name else "fine-tuning"]
            ((_, asr),) = scalars(path)["ray/tune/asr"]
            assert asr == pytest.approx(row["asr"]) and name.endswith(row["key"][:8])


class Tape:
    """A logger of Tune's that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.ends: list[tuple[str, bool]] = []
        self.over = False

    def log_trial_start(self, trial: Any) -> None:
        assert str(trial) not in self.steps, "a trial starts once"
        self.steps[str(trial)] = []

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        assert iteration == result["training_iteration"]
        self.steps[str(trial)].append(result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.ends.append((str(trial), failed))

    def on_experiment_end(self, trials: Any) -> None:
        self.over = True


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Logs, Tape, sweeps.Silent]:
    monkeypatch.chdir(tmp_path)
    tape, silent = Tape(), sweeps.Silent()
    return Logs({"tape": tape}, JOB, silent), tape, silent


def cell(name: str) -> Cell:
    return Cell("train", name * 12, {}, (), {"attack": name})


def test_a_cell_that_is_tried_again_goes_on_in_its_trial_and_a_blocked_one_has_none(
    kept: tuple[Logs, Tape, sweeps.Silent],
) -> None:
    log, tape, _ = kept
    progress = Progress()
    with log.looking():
        log.started(cell("a"), progress)
        progress(epoch=1, epochs=2, loss=3.0)
        log._look_once()
        log.put_back(cell("a"))
        log.started(cell("a"), Relayed(cell("a")))
        told = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
        log.finished(cell("a"), {"status": "ok", "epochs": told, "acc": 0.5, "images": 7})
        log.finished(cell("b"), {"status": "blocked"})
    assert [step.get("loss") for step in tape.steps["train a"]] == [3.0, 2.0, 1.0, None]
    assert [step["training_iteration"] for step in tape.steps["train a"]] == [1, 2, 3, 4]
    assert tape.steps["train a"][-1] == {"training_iteration": 4, "acc": 0.5}
    assert tape.ends == [("train a", False)] and set(tape.steps) == {"train a"} and tape.over


def test_cells_of_one_process_have_a_trial_each_and_what_is_cut_short_has_an_end(
    kept: tuple[Logs, Tape, sweeps.Silent],
) -> None:
    log, tape, silent = kept
    progress = Relayed(cell("a"))
    with pytest.raises(KeyboardInterrupt), log.looking():
        log.started(cell("a"), progress)
        progress.hear(cell("b"), "epoch 1/1", 0, [{"epoch": 1}])  # the second of its bundle
        log._look_once()
        assert not tape.steps["train a"], "another cell's epochs are not its own"
        log.finished(cell("a"), {"status": "failed", "epochs": []})
        log.started(cell("b"))
        raise KeyboardInterrupt
    assert tape.ends == [("train a", True), ("train b", True)]
    assert silent.cells == [("train", "failed")], "who looks on is told too"


def test_a_logger_that_fails_is_said_to_and_left_out(
    kept: tuple[Logs, Tape, sweeps.Silent],
) -> None:
    log, tape, silent = kept
    broken = SimpleNamespace(log_trial_start=lambda _: 1 / 0)
    log._loggers["mlflow"] = broken
    with log.looking():
        log.started(cell("a"))
        log.finished(cell("a"), {"status": "ok"})
    assert silent.said == ["--log mlflow: division by zero: the sweep goes on without it"]
    assert tape.ends == [("train a", False)]


@pytest.mark.parametrize(
    ("name", "without", "sentence"),
    [
        ("tensorbord", "", "--log: no logger 'tensorbord', did you mean 'tensorboard'?"),
        ("mlflow", "mlflow", "--log mlflow: mlflow is not installed here: run `pip install "),
        ("tensorboard", "ray", "--log tensorboard: ray is not installed here: run `pip install "),
        ("wandb", "", "--log wandb: Ray gives each of its runs a process, and --executor inline"),
    ],
)
def test_what_cannot_log_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, without: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "find_spec", lambda package: None if package == without else 1)
    sweep = sweeper.Sweep.from_values(ONE)
    with pytest.raises(SweepError) as refused:
        sweep.run(executor="inline", log=[name])
    assert str(refused.value).startswith(sentence)
    assert not [*tmp_path.iterdir()]


def test_a_logger_that_cannot_begin_is_a_sentence(tmp_path: Path) -> None:
    def make(name: str, sweep: str) -> Any:
        raise ValueError("No API key found")

    with pytest.raises(SweepError, match="^--log wandb: it cannot begin: No API key found$"):
        with logs.logged(["wandb"], JOB, sweeps.Silent(), make):
            raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize(("name", "executor"), [("mlflow", "inline"), ("wandb", "ray")])
def test_the_loggers_that_need_more_take_what_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, executor: str
) -> None:
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweeper.Sweep.from_values(ONE).run(executor=executor, quiet=True, log=[name])
    if name == "wandb":
        files = [*(tmp_path / logs.FOLDER / "wandb").glob("offline-run-*/*.wandb")]
        assert len(files) == 3
        told = [file.parent.name for file in files if b"loss" in file.read_bytes()]
        assert len(told) == 1, "fine-tuning goes by steps, `none` trains nothing"
        return
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 3 and {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss")]
        assert len(steps) == {"train": 2}.get(run.data.params["kind"], len(steps))
        assert run.data.metrics["asr"] <= 1 and run.data.params["attack"] == "badnets"
