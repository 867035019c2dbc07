"""The recorded training step: the numbers of the eager one, and where it must not be."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sweeper.core.errors import SweepError
from sweeper.engine import graphed, training
from sweeper.engine.training import OWNED, Batch, Hooks
from tests.support import toys
from tests.support.tape import Tape


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording is asked for, and possible on the CPU."""
    monkeypatch.setenv(graphed.SWITCH, "1")
    monkeypatch.setitem(graphed.RECORDERS, "cpu", Tape)
    monkeypatch.setattr(Tape, "made", [])


def trained(
    hooks: Hooks | None = None, device: torch.device = toys.CPU, **more: Any
) -> tuple[nn.Module, list[float]]:
    model = toys.network(torch.Generator().manual_seed(0), model=more.pop("model", "tiny"))
    recipe = replace(toys.RECIPE, **{"epochs": 3, "crop": 2, "flip": True, **more})
    data = toys.image_set(200)  # six batches of 32 and one of 8
    return model, training.fit(model, data, recipe, key="graph", device=device, hooks=hooks)


def eagerly(monkeypatch: pytest.MonkeyPatch, *given: Any, **more: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setenv(graphed.SWITCH, "0")
        return trained(*given, **more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"precision": "bf16"},
        {"schedule": "cosine", "rotation": 9.0, "erase": 0.5},
        {"schedule": "step", "milestones": (1,), "warmup": 0.0, "nesterov": True},
        {"momentum": 0.0, "label_smoothing": 0.1, "weight_decay": 0.0},
    ],
)
def test_recorded_and_eager_steps_agree(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    model, losses = trained(**more)
    (tape,) = Tape.made
    assert (tape.warmed, tape.replayed) == (graphed.WARM, 3 * 6 - graphed.WARM)
    other, eager = eagerly(monkeypatch, **more)
    assert losses == eager and not toys.differing(model, other)
    assert len(Tape.made) == 1, "the other was eager"


def test_a_number_that_was_recorded_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        graphed, "set_rate", lambda optimizer, rate: optimizer.param_groups[0].update(lr=rate)
    )
    model, _ = trained()
    other, _ = eagerly(monkeypatch)
    assert toys.differing(model, other), "the learning rate of the fourth step was kept"


class Shifted(Hooks):
    """Owns what the step is given, and nothing of it."""

    def batch(self, batch: Batch, rng: Generator) -> Batch:
        return replace(batch, labels=(batch.labels + 1) % 10)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        return replace(batch, inputs=batch.inputs.flip(3))


def test_hooks_on_batches_leave_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, losses = trained(Shifted())
    assert Tape.made[0].replayed
    other, eager = eagerly(monkeypatch, Shifted())
    assert losses == eager and not toys.differing(model, other)


@pytest.mark.parametrize("name", OWNED)
def test_a_hook_that_owns_a_part_of_the_loop_switches_it_off(name: str) -> None:
    def own(self: Hooks, *given: Any) -> Any:
        return getattr(Hooks, name)(self, *given)

    trained(type("Owner", (Hooks,), {name: own})())
    assert not Tape.made
    late = Hooks()
    assert training.owned(late) == []
    setattr(late, name, lambda *given: getattr(Hooks, name)(late, *given))
    assert training.owned(late) == [name]


def test_every_hook_is_owned_or_comes_before_or_after_the_step() -> None:
    hooks = {name for name, value in vars(Hooks).items() if inspect.isfunction(value)}
    assert hooks - set(OWNED) == {"start", "batch", "augmented", "learned"}


@pytest.mark.parametrize("said", ["", "0", None])
def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    if said is None:
        monkeypatch.delenv(graphed.SWITCH)
    else:
        monkeypatch.setenv(graphed.SWITCH, said)
    trained()
    assert not Tape.made


def test_it_is_off_on_a_device_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(graphed.RECORDERS, "cpu")
    assert not graphed.asked(toys.CPU)
    trained()


def test_a_model_that_reads_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = toys.network(torch.Generator().manual_seed(0))

        def forward(self, x: Tensor) -> Any:
            return self.net(x) * (1 if x.mean().item() > 0 else 2)

    given: dict[str, Any] = {"key": "reads", "device": toys.CPU}
    with pytest.raises(SweepError, match="cannot be recorded .* unset SWEEPER_CUDA_GRAPHS"):
        training.fit(Reads(), toys.image_set(200), toys.RECIPE, **given)


def test_memory_that_runs_out_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tape, work: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Tape, "record", full)
    with pytest.raises(torch.OutOfMemoryError):
        trained()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("model", ["tiny", "resnet18"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_and_eager_steps_agree_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, model: str, precision: str
) -> None:
    given: dict[str, Any] = {"device": torch.device("cuda"), "precision": precision}
    given |= {"model": model, "lr": 0.01}
    _, losses = trained(**given)
    _, eager = eagerly(monkeypatch, **given)
    assert losses == pytest.approx(eager, rel=1e-3 if precision == "fp32" else 2e-2)


def test_a_batch_with_more_than_inputs_and_labels_is_never_recorded() -> None:
    """A recording copies those two: the rest would stay what it was."""
    model, seen = toys.network(torch.Generator().manual_seed(0)), []

    def eager(batch: Batch) -> Tensor:
        seen.append(batch.more["length"].item())
        return torch.zeros(())

    step = graphed.Step(eager, training.sgd(model, toys.RECIPE), toys.CPU)
    for number in range(6):
        plain = toys.plain(toys.image_set(4), more={"length": torch.tensor(number)})
        step(plain)
    assert seen == [*range(6)] and not any(tape.replayed for tape in Tape.made)
