"""FIP, Fisher Information guided Purification (Karim et al., ACM CCS 2024, arXiv 2409.00863).

The defender sees the model and a few clean images. Backdoored models sit in sharper minima of the
clean loss than benign ones; fine-tuning therefore penalises the trace of the Fisher matrix (the
sharpness) and, weighted by each weight's Fisher information, the distance from the given weights:

    CE + eta_f Tr F + eta_r / 2 sum_i F_i (w_i - w0_i)^2.

The released code does something else under this name; `preset: released` repeats it:

- Its trace is an inner product with random vectors that is not squared: its mean is zero and its
  gradient a random vector shaped by the curvature. It scores every sample with every label of the
  batch and adds up partial sums over the tensors, 62 of a ResNet-18, so that the first counts 62
  times. Here: the squared norm of the gradient of randomly signed scores (`signs`), whose mean is
  the trace.
- Its F is the square of the mean gradient, about zero at a minimum, in train mode (`fisher:
  batches`), and the retention term is commented out. Here: mean of squared per-sample gradients, in
  eval mode. An earlier release has the term on: `preset: sft`.
- Its eta_f means nothing for another estimator. Here: by loss balance, `eta_f = balance CE_0 /
  T_0`, measured on the clean images before the first step (no published value).
- Gradients are clipped: double back-propagation spikes at first.

F and its trace are of the labels given (the empirical Fisher matrix), as in the release; with
`labels: sampled` they are drawn from the model, as the matrix is defined. The pass that measures
the trace is one of its own, in single precision, and moves no running statistic. BatchNorm
normalises by the batch in it, as in the training pass, so that one sample's gradient depends on the
others; `norm: running` takes the running statistics, as F does.

Stop: a fixed number of steps and the last model. Guard (fair rule H): where steps on a part of the
clean budget cost more than `guard` of accuracy on the rest, half of eta_f and lr is chosen, else
all of them; with these it runs from the start on the whole budget. F is computed only where `eta_r`
is not 0, the trace where `eta_f` is not; with both 0 it is the control of the others: as many steps
of cross-entropy on the same batches.

The trace is added at every step, on 8 images. On 32 images of every fifth, as often as the released
code, the four steps without it undo much of what one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from defenses.base import Case, Defense, Needs
from defenses.parts.accept import Rule
from defenses.parts.steps import descend
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, ProperShare, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine import curvature
from sweeper.engine import task as tasks
from sweeper.engine.task import ANY, Batch
from sweeper.models.base import Net

ESTIMATORS = ("signs", "micro-batch", "projection", "batch", "released")


@dataclass(frozen=True, kw_only=True)
class FIP(Defense):
    """Fine-tuning with a penalty on sharpness and on leaving what the model knows."""

    eta_f: NonNegative | None = None
    """Weight of the trace; default: by loss balance."""
    balance: NonNegative = 1.0
    """Share of the clean loss the trace weighs at the start, where eta_f is not given."""
    eta_r: NonNegative = 5.0
    """Weight of the distance from the given weights; 0: none."""
    steps: Count = 1000
    """Updates, on batches drawn with replacement."""
    lr: LearningRate = 0.005
    """Learning rate (constant; there is no weight decay)."""
    momentum: ProperShare = 0.95
    """Momentum of the optimiser."""
    optimizer: Literal["sgd", "adam"] = field(default="sgd", metadata={"added": True})
    """sgd | adam: what takes the steps."""
    batch: Count = 128
    """Images of a step."""
    every: Count = 1
    """The trace is added at every such step, unscaled (released code: 5)."""
    estimator: str = "signs"
    """signs (unbiased) | micro-batch (E1) | projection (E2) | batch (E3) | released (mean 0)."""
    micro: Count = 8
    """Samples of a micro-batch; 1: exact."""
    images: Whole = 8
    """Images of a batch the trace is measured on; 0: all of them."""
    draws: Count = 20
    """Random vectors of the projections."""
    fisher: str = "samples"
    """samples (squared gradient of each) | batches (released: of the mean of 100, train mode)."""
    labels: str = field(default="given", metadata={"added": True})
    """given | sampled (from the model): whose probabilities F and its trace differentiate."""
    norm: str = field(default="batch", metadata={"added": True})
    """batch | running: what BatchNorm normalises by in the pass that measures the trace."""
    mixup: bool = False
    """Whether the cross-entropy is that of pairs mixed in uniform shares; never in the trace."""
    clip: NonNegative = 5.0
    """Largest norm of the gradient; 0: no bound."""
    guard: Share | None = 0.05
    """Hold-out accuracy it may cost, absolute, at least two images; null: nothing is held out."""

    title = "Fisher Information guided Purification (FIP)"
    paper = "Karim et al., CCS 2024"
    kind = "repair"
    tasks = frozenset({ANY})
    sees = frozenset({"model", "clean"})
    version = 3
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {
            "eta_f": 0.5,
            "eta_r": 0.0,
            "steps": 2000,
            "every": 5,
            "estimator": "released",
            "images": 0,
            "clip": 0.0,
            "guard": None,
        },
        "sft": {
            "eta_f": 0.001,
            "eta_r": 2.0,
            "every": 5,
            "fisher": "batches",
            "estimator": "released",
            "images": 0,
            "clip": 0.0,
            "guard": None,
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown words.
        """
        if self.estimator not in ESTIMATORS:
            raise SweepError(f"estimator: {self.estimator!r} is not one of {', '.join(ESTIMATORS)}")
        words = {
            "fisher": ("samples", "batches"),
            "labels": ("given", "sampled"),
            "norm": ("batch", "running"),
        }
        for name, known in words.items():
            if (value := getattr(self, name)) not in known:
                raise SweepError(f"{name}: {value!r} is not one of {', '.join(known)}")

    def applies(self, needs: Needs) -> str | None:
        """Not where there are no classes for the released estimators to score."""
        of_classes = self.estimator == "released" or self.fisher == "batches"
        if of_classes and not tasks.task(needs.task).classifies:
            return f"the released estimators score classes, {needs.task} have none"
        return None

    def least_clean(self, needs: Needs) -> int:
        """One more than a training takes where a hold-out is set aside."""
        return needs.batch + (self.guard is not None)

    def enter(self, model: Net) -> Callable[[], None]:
        """Choose what is trained: here all weights. Returns what undoes it."""
        return lambda: None

    def defend(self, case: Case) -> Outcome:
        """Purify on a part, look at the rest; purify on all, gentler where that lost too much."""
        scale, choice = 1.0, dict[str, Any]()
        if self.guard is not None:
            fitted, holdout = case.split()
            rule = Rule(case, holdout, self.guard)
            accepted, curve = rule.first([1.0], lambda scale: self.purified(case, fitted, scale)[0])
            scale = accepted or 0.5
            choice = {"holdout_before": rule.before, "holdout_after": curve[0][1], "scale": scale}
        model, notes = self.purified(case, case.clean, scale)
        return Outcome(model=model, notes={**notes, **choice})

    def purified(self, case: Case, data: Samples, scale: float) -> tuple[Net, dict[str, Any]]:
        """One run; `scale` multiplies eta_f and lr."""
        model = case.fresh_model()
        leave = self.enter(model)
        penalty = _Penalty(self, case, model, data)
        penalty.eta_f *= scale
        recipe = replace(
            case.recipe,
            batch=min(self.batch, len(data)),
            lr=self.lr * scale,
            momentum=self.momentum,
            optimizer=self.optimizer,
            nesterov=False,
            weight_decay=0.0,
            schedule="constant",
        )
        model.train()
        losses = descend(case, model, data, recipe, self.steps, loss=penalty.loss, clip=self.clip)
        model.eval()
        notes = {
            "eta_f": penalty.eta_f,
            "lr": recipe.lr,
            "trained": sum(weight.numel() for weight in penalty.weights.values()),
            "loss_first": losses[0],
            "loss_last": losses[-1],
        }
        if self.eta_r:
            notes["distance"] = penalty.distance().item()
        leave()
        model.requires_grad_(True)
        return model, notes


class _Penalty:
    """The loss of FIP on one model, with what it remembers of the start."""

    def __init__(self, fip: FIP, case: Case, model: Net, data: Samples) -> None:
        self.fip = fip
        self.case = case
        self.model = model
        self.task = tasks.of(data)
        self.weights = curvature.trainable(model)
        self.w0 = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.mixed, self.signs, self.sampled = map(case.rng, ("mixup", "signs", "labels"))
        self.vectors = torch.Generator(case.device).manual_seed(case.rng("v").initial_seed())
        self.fisher = self.information(data) if fip.eta_r else {}
        self.eta_f = self.balanced(data) if fip.eta_f is None else fip.eta_f

    def information(self, data: Samples) -> dict[str, Tensor]:
        """F of the given weights."""
        measure = curvature.fisher_diagonal if self.fip.fisher == "samples" else squared_batch_means
        if self.fip.labels == "sampled":
            with torch.no_grad(), curvature.second_order(self.case.device):
                batches = [self.task.plain(part, self.case.device) for part in data.split(250)]
                labels = [
                    self.task.sampled(self.task.forward(self.model, batch), batch, self.sampled)
                    for batch in batches
                ]
            data = data.changed(labels=torch.cat(labels).cpu())
        return measure(self.model, data, self.case.device)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of one step."""
        total = self.cross_entropy(batch)
        if self.eta_f and batch.step % self.fip.every == 0:
            total = total + self.eta_f * self.trace(batch)[0]
        if self.fip.eta_r:
            total = total + self.fip.eta_r / 2 * self.distance()
        return total

    def cross_entropy(self, batch: Batch) -> Tensor:
        """The task's loss of the batch, or of pairs of it mixed in one share."""
        share, order = 1.0, batch.index
        if self.fip.mixup:
            share = torch.rand((), generator=self.mixed).item()
            order = torch.randperm(len(batch.inputs), generator=self.mixed).to(order.device)
            batch, share = self.task.mixed(batch, share, order, self.mixed)
        with self.case.autocast():
            output = self.task.forward(self.model, batch)
        loss = self.task.loss(output, batch)
        if share == 1:
            return loss
        return share * loss + (1 - share) * self.task.loss(output, batch.paired(order))

    def trace(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The estimate of Tr F on the first samples of a batch, and their mean loss."""
        fip, weights = self.fip, [*self.weights.values()]
        batch = batch.first(fip.images or len(batch.inputs))
        side = curvature.side_pass(self.model, running=fip.norm == "running")
        with curvature.second_order(batch.inputs.device), side:
            output = self.task.forward(self.model, batch)
            loss = self.task.loss(output, batch).detach()
            if fip.labels == "sampled":
                labels = self.task.sampled(output, batch, self.sampled)
                batch = replace(batch, labels=labels)
            log_likelihoods = self.task.scores(output, batch)
            if fip.estimator == "micro-batch":
                trace = curvature.by_micro_batches(log_likelihoods, weights, fip.micro)
            elif fip.estimator == "signs":
                signs = torch.randint(2, (len(batch.inputs),), generator=self.signs) * 2.0 - 1
                signs = signs.to(batch.inputs.device)
                trace = curvature.by_rademacher(log_likelihoods, weights, signs)
            elif fip.estimator == "projection":
                trace = curvature.by_projection(log_likelihoods, weights, self.vectors, fip.draws)
            elif fip.estimator == "batch":
                trace = curvature.by_batch(log_likelihoods, weights)
            else:
                trace = curvature.as_released(
                    output, batch.labels, weights, self.vectors, fip.draws
                )
        return trace, loss

    def distance(self) -> Tensor:
        """`sum_i F_i (w_i - w0_i)^2`."""
        terms = [
            (self.fisher[name] * (weight - self.w0[name]).square()).sum()
            for name, weight in self.weights.items()
        ]
        return torch.stack(terms).sum()

    def balanced(self, data: Samples) -> float:
        """`balance CE_0 / T_0` over the clean images, in train mode as the steps will be."""
        self.model.train()
        traces, losses = [], []
        size = min(self.fip.images or self.fip.batch, len(data))
        for index in torch.arange(len(data) // size * size).view(-1, size):
            trace, loss = self.trace(self.task.plain(data[index], self.case.device))
            traces.append(trace.detach())
            losses.append(loss)
        self.model.eval()
        t0 = torch.stack(traces).mean().item()
        return self.fip.balance * torch.stack(losses).mean().item() / t0 if t0 > 0 else 0.0


def squared_batch_means(
    model: nn.Module, data: Samples, device: torch.device, *, batch: int = 100
) -> dict[str, Tensor]:
    """The released code's F: mean over batches of all their scores, differentiated, squared.

    In train mode, without touching running statistics. Not the Fisher information: see above.
    """
    weights, modes = curvature.trainable(model), model.training
    task, batches = tasks.of(data), data.split(batch)
    mean = [torch.zeros_like(weight) for weight in weights.values()]
    model.train()
    with curvature.second_order(device), curvature.side_pass(model):
        for part in batches:
            plain = task.plain(part, device)
            scores = task.forward(model, plain).log_softmax(1)[:, plain.labels]
            gradients = torch.autograd.grad(scores.mean() / len(batches), [*weights.values()])
            torch._foreach_add_(mean, list(gradients))
    model.train(modes)
    return dict(zip(weights, [gradient.square() for gradient in mean], strict=True))
