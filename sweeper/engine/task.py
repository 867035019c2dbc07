"""The contract of a task: what the engine asks about samples, whatever they are.

A task says how samples become a batch on the device, how likely a model finds their labels, and
what ACC and ASR mean. It is one file in `sweeper/tasks/`; its name is the file's, and samples carry
it (`Samples.task`). The engine works with batches and scores alone: fine-tuning, FIP, f-FIP, the
Fisher matrix and the Hessian need no more.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from sweeper.core.catalog import ANY as ANY
from sweeper.core.errors import SweepError, unknown
from sweeper.core.types import Samples, Triggered

if TYPE_CHECKING:
    from sweeper.engine.recipes import Recipe

Answers = Callable[[Tensor], Tensor]
"""Inputs [N, ...] -> what a model answers, [N, ...] on the CPU."""


@dataclass(frozen=True)
class Batch:
    """What a step trains on; hooks return a changed copy."""

    inputs: Tensor
    """[B, ...], what the model is shown. Images: uint8 [B, H, W, C] before augmentation, float
    [B, C, H, W] in [0, 1] after it."""
    labels: Tensor
    """What it should answer, on the device; int64 [B] where samples have one label each."""
    index: Tensor
    """int64 [B] on the device: positions in the training set."""
    epoch: int
    """From 0."""
    step: int
    """From 0, over all epochs."""
    task: str = "image"
    """What they are samples of."""
    more: Mapping[str, Tensor] = field(default_factory=dict)
    """Other tensors [B, ...] of the samples, on the device."""

    def paired(self, order: Tensor) -> Batch:
        """The same inputs with the labels, and all else, of the samples in another order."""
        more = {name: value[order] for name, value in self.more.items()}
        return replace(self, labels=self.labels[order], more=more)

    def first(self, count: int) -> Batch:
        """The first samples."""
        more = {name: value[:count] for name, value in self.more.items()}
        return replace(
            self,
            inputs=self.inputs[:count],
            labels=self.labels[:count],
            index=self.index[:count],
            more=more,
        )


def floats(inputs: Tensor) -> Tensor:
    """Inputs as a model takes them: bytes become float in [0, 1], all else stays."""
    return inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs


class Task(ABC):
    """What is asked about the samples of a task."""

    title: ClassVar[str]
    """What a model does, in a few words."""
    score: ClassVar[str] = "accuracy"
    """What ACC measures here: accuracy | mAP@.5 | BLEU; a row's column, a table's header."""
    recipe: ClassVar[Mapping[str, Any]] = {}
    """Settings of the recipe `fast` on such samples."""
    augments: ClassVar[frozenset[str]] = frozenset()
    """What `augmented` knows of the recipe's crop, flip, rotation and erase; others are refused."""
    classifies: ClassVar[bool] = False
    """Whether a sample has one label of a few classes."""
    mixing: ClassVar[str] = ""
    """The MixUp of the task, with its source; empty where none is named: `mixed` is refused."""
    version: ClassVar[int] = 1
    """Raised when batches, scores or measures come out otherwise; part of the keys."""

    def load(self, samples: Samples, device: torch.device) -> dict[str, Tensor]:
        """Put a whole set on the device, in the layout batches are cut from.

        Returns:
            `inputs`, `labels` and other tensors of the samples, each [N, ...].
        """
        names = [name for name in samples.tensors if name not in ("labels", "positions")]
        tensors = {"inputs": samples.inputs, "labels": samples.labels}
        tensors |= {name: samples.tensors[name] for name in names[1:]}
        return {name: value.to(device) for name, value in tensors.items()}

    def augmented(self, batch: Batch, recipe: Recipe, rng: Generator) -> Batch:
        """A loaded batch as the model is shown it, augmented by the recipe; here: as it is."""
        return replace(batch, inputs=floats(batch.inputs))

    def plain(self, samples: Samples, device: torch.device) -> Batch:
        """The samples as one batch on the device, as they are measured."""
        tensors = Task.load(self, samples, device)
        return Batch(
            floats(tensors.pop("inputs")),
            tensors.pop("labels"),
            torch.arange(len(samples), device=device),
            0,
            0,
            samples.task,
            tensors,
        )

    def forward(self, model: Callable[..., Any], batch: Batch) -> Any:
        """What the model says of a batch; here: of its inputs."""
        return model(batch.inputs)

    def check(self, recipe: Recipe) -> None:
        """See that the recipe asks for no augmentation the task does not have.

        Raises:
            SweepError: It does.
        """
        for name in sorted({"crop", "flip", "rotation", "erase"} - self.augments):
            if getattr(recipe, name):
                raise SweepError(
                    f"recipe: {name}: means nothing for {self.title}: set it to "
                    f"{'false' if name == 'flip' else 0}"
                )

    @abstractmethod
    def scores(self, output: Any, batch: Batch) -> Tensor:
        """The log-likelihood of each sample's label, float [B], from what `forward` returned."""

    def sampled(self, output: Any, batch: Batch, rng: Generator) -> Tensor:
        """Labels of a batch drawn from what the model says of it, in the shape of its own.

        Raises:
            SweepError: The scores are no probabilities of labels.
        """
        raise SweepError(f"labels: sampled: what a model says of {batch.task} is not drawn from")

    def loss(
        self, output: Any, batch: Batch, *, smoothing: float = 0.0, reduction: str = "mean"
    ) -> Tensor:
        """The negative mean (or sum) of the scores.

        Args:
            output: What `forward` returned.
            batch: The batch it was given.
            smoothing: Share of a label spread over all classes, where there are classes.
            reduction: mean | sum.
        """
        scores = self.scores(output, batch)
        return -(scores.sum() if reduction == "sum" else scores.mean())

    def mixed(
        self, batch: Batch, share: float, order: Tensor, rng: Generator
    ) -> tuple[Batch, float]:
        """Mix every sample with another one (MixUp); its loss is to be shared likewise.

        Args:
            batch: As the model is shown it.
            share: What a sample keeps of itself.
            order: int64 [B], the sample each is mixed with.
            rng: For what else is drawn.

        Returns:
            The mixed batch, and the share that really stayed.

        Raises:
            SweepError: No MixUp is known for the task.
        """
        raise SweepError(f"no MixUp is known for {batch.task}: leave `mixup` out")

    @abstractmethod
    def answers(
        self, model: nn.Module, inputs: Tensor, recipe: Recipe, device: torch.device
    ) -> Tensor:
        """What a model answers to inputs [N, ...] as they are stored; [N, ...] on the CPU.

        Raises:
            DivergedError: An output is NaN or infinite.
        """

    def answering(self, model: nn.Module, recipe: Recipe, device: torch.device) -> Answers:
        """`answers` of one model."""
        return functools.partial(self.answers, model, recipe=recipe, device=device)

    @abstractmethod
    def rate(self, answers: Tensor, samples: Samples) -> float:
        """The score of answers to samples, in [0, 1]."""

    @abstractmethod
    def measure(
        self,
        answers: Answers,
        test: Samples,
        triggered: Triggered,
        target: int | None,
        rng: Generator,
        crossed: Samples | None = None,
    ) -> dict[str, float | int | None]:
        """Measure a model on the clean and the triggered test set, shuffled together.

        Args:
            answers: The model's.
            test: The clean test samples that count.
            triggered: The triggered ones, labelled as the attacker wants.
            target: The target label where there is one.
            rng: Shuffles.
            crossed: Samples whose score is `cross_acc`, see `Attack.cross_set`.

        Returns:
            Columns of the row: acc, asr, ra and their variants in [0, 1], n_test, n_triggered.
        """

    def lines(self, samples: Samples) -> list[str]:
        """Each sample as a line of text, where it is made of words; else none."""
        return []

    @abstractmethod
    def pictures(self, samples: Samples) -> Tensor:
        """A picture of each sample for `sweeper show`; uint8 [N, C, H, W]."""


def names() -> list[str]:
    """Return the names of all tasks, without importing them."""
    package = importlib.import_module("sweeper.tasks")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


@functools.cache
def task(name: str) -> Task:
    """Return a task by its name.

    Raises:
        SweepError: There is none, or its file does not define exactly one.
    """
    if name not in names():
        raise SweepError(unknown("task", name, names()))
    module = importlib.import_module(f"sweeper.tasks.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Task)
        if value.__module__ == module.__name__ and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        raise SweepError(f"{module.__file__} must define exactly one Task, it defines {len(found)}")
    made: Task = found[0]()
    return made


def of(samples: Samples) -> Task:
    """Return the task of samples."""
    return task(samples.task)


def unmade(tasks: frozenset[str], name: str) -> str:
    """Why a method made for `tasks` does not run on task `name`; empty where it does."""
    if name in tasks or ANY in tasks:
        return ""
    return f"is made for {' and '.join(sorted(tasks))} data, these are {name}"
