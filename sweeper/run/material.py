"""What a cell is made from: its data, attack, poisoned set, victim, and a defense's case."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from attacks.base import Attack
from defenses.base import Case, Defense
from sweeper import data, models
from sweeper.core import catalog, code, options, seeds
from sweeper.core.errors import SweepError
from sweeper.core.names import KINDS
from sweeper.core.types import Cell, Poisoned, Samples, State, Triggered
from sweeper.data import splits
from sweeper.engine import metrics, training
from sweeper.engine import task as tasks
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Answers, Task
from sweeper.models.base import Net
from sweeper.plan import forms
from sweeper.plan.matrix import NO_TRIGGER
from sweeper.run import record
from sweeper.run.printed import Printed
from sweeper.store.artifacts import Artifact, Store

Log = Callable[..., None]
"""Takes progress as keywords."""
MEASURE = "measure"
"""Kind of the artifact that holds a victim's metrics."""


@dataclass(frozen=True)
class Context:
    """Where and under what a cell runs; none of it is part of a key.

    Threads and device may change the last digits of a number all the same: a row says both.
    """

    store: str
    """Root of the store."""
    sweep: str
    """Name of the sweep rows belong to."""
    run: str = ""
    """Identifies this call of `sweeper run`: what failed in it is not tried again in it."""
    number: int | None = None
    """Of the run among those of its sweep in this store: newer rows have a greater one."""
    data: str | None = None
    """Folder of the data sets."""
    code: str | None = None
    """Folder of methods the sweep file names, beside what Python finds anyway."""
    cache: str | None = None
    """Folder of decoded data sets."""
    threads: int = 1
    """CPU threads of the cell."""
    device: str = "cpu"
    """cpu | cuda."""
    gpus: float = 0.0
    """GPUs of the cell; below 1, its share of one."""
    timeout: float | None = None
    """Seconds after which this attempt at the cell is given up."""
    portable: bool = False
    """Whether the cell computes what every processor does, in a process that does nothing else
    (`engine.portable`)."""
    outside: tuple[str, ...] = KINDS
    """Kinds of methods (attack, defense) that run in a child process where they do not ship; a row
    says where its defense did not."""


class Material:
    """The inputs of one cell, each made at its first use."""

    def __init__(
        self,
        cell: Cell,
        ancestors: Sequence[Cell],
        context: Context,
        store: Store,
        log: Log | None = None,
    ) -> None:
        self.cell = cell
        self.ancestors = {parent.key: parent for parent in ancestors}
        self.context = context
        self.store = store
        self.printed = Printed(log)
        self.log: Log = self.printed.progress
        self.learned: State = {}
        """What the attack learned while this cell trained its victim."""
        self.before: dict[str, Any] | None = None
        """The victim's metrics, once they are known."""
        self.started, self.started_at = time.monotonic(), record.timestamp()
        self.device = torch.device(context.device)

    @functools.cached_property
    def victim(self) -> Cell:
        """The victim's cell: this one, or the ancestor a defense or stage names."""
        if self.cell.kind in ("train", "prepare"):
            return self.cell
        return self.ancestors[self.cell.params["victim"]]

    @functools.cached_property
    def dataset(self) -> data.Dataset:
        """The data set, checked to be the one the key was made from."""
        entry = json.dumps(self.victim.local["dataset"])
        return opened(entry, self.victim.params["data"], self.context)

    @property
    def task(self) -> Task:
        """The task of the data set."""
        return tasks.of(self.dataset.train)

    def answers(self, model: nn.Module) -> Answers:
        """What a model answers to inputs."""
        return self.task.answering(model, self.recipe, self.device)

    @functools.cached_property
    def attacker(self) -> Samples:
        """The attacker's training split."""
        index, _ = splits.split(self.dataset, self.victim.params["reserve"])
        return self.dataset.train[index]

    @functools.cached_property
    def attack(self) -> Attack:
        """The attack with its options and target."""
        local = dict(self.victim.local["attack"])
        name = local.pop("attack")
        axes = {axis: self.victim.params.get(axis, 0) for axis in ("target", "poison_rate")}
        attack: Attack = catalog.make("attack", name, local, **axes)
        return attack

    @functools.cached_property
    def family(self) -> type:
        """The family of the victim's architecture."""
        local = dict(self.victim.local["model"])
        return type(models.family(local.pop("model"), local))

    @property
    def training(self) -> dict[str, Any]:
        """How models are trained: as the victim, or where an attack changed that, as without it."""
        return dict(self.cell.params.get("recipe") or self.victim.params["recipe"])

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The same as a recipe."""
        return options.construct(Recipe, self.training, "recipe")

    def new_model(self, rng: Generator) -> Net:
        """A freshly initialised model of the victim's architecture."""
        return _builder(self.architecture)(rng)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `models.build` takes for the victim's architecture, beside the generator."""
        local, train = dict(self.victim.local["model"]), self.dataset.train
        return {
            "name": local.pop("model"),
            "options": local,
            "classes": len(train.classes),
            "shape": tuple(train.inputs.shape[1:]),
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
        }

    @functools.cached_property
    def trained(self) -> Artifact:
        """The victim as the store has it."""
        return self.store.get("train", self.victim.key)

    @functools.cached_property
    def prepared(self) -> State:
        """What the attack's `prepare` left for the victim."""
        key = self.victim.params.get("state")
        return self.store.get("prepare", key).tensors["state"] if key else {}

    @property
    def state(self) -> State:
        """What the attack prepared, and learned in training."""
        if self.cell.key == self.victim.key:
            return {**self.prepared, **self.learned}
        return {**self.prepared, **self.trained.tensors.get("attack", {})}

    def poisoned(self) -> Poisoned:
        """The poisoned training set; the same tensors at every call for one victim."""
        victim = self.victim
        rng = seeds.generator(victim.key, "poison")
        rate = victim.params["poison_rate"]
        return self.attack.poison(self.attacker, rate, self.state, rng)

    def triggered(self) -> Triggered:
        """The triggered test set."""
        rng = seeds.generator(self.victim.key, "trigger")
        return self.attack.trigger_set(self.dataset.test, self.state, rng)

    def evaluate(self, predict: Answers, key: str) -> dict[str, float | int | None]:
        """ACC, ASR, RA and their variants on the test set, shuffled by the cell `key`."""
        attack, test, state = self.attack, self.dataset.test, self.state
        rng = seeds.generator(self.victim.key, "cross")
        return self.task.measure(
            predict,
            attack.clean_test(test, state),
            self.triggered(),
            attack.target if attack.targeted else None,
            seeds.generator(key, "measure"),
            attack.cross_set(test, state, rng),
        )

    def measured(self, model: Net | None = None) -> dict[str, Any]:
        """The victim's metrics: an artifact of their own, so that no metric retrains a victim.

        Args:
            model: The victim as it has just been trained; default: what the store has of it.
        """
        victim = self.victim.key
        if model is None:
            self.before = self.before or measured(self.store, victim)
        if model is not None or self.before is None:
            predict = self.answers(model or self.model())
            self.before = dict(self.evaluate(predict, victim))
            about = {"victim": victim, "result": self.before}
            self.store.put(MEASURE, _measure_key(victim), {}, about)
        return self.before

    def filtering(self, score: metrics.Score, threshold: float | None) -> dict[str, float | None]:
        """The rates of an input filter on the test set."""
        test = self.attack.clean_test(self.dataset.test, self.state)
        rng = seeds.generator(self.cell.seed, "measure a filter")
        return dict(metrics.filtering(score, threshold, test, self.triggered(), rng))

    @functools.cached_property
    def defense(self) -> Defense:
        """The defense with its options."""
        local = dict(self.cell.local["defense"])
        defense: Defense = catalog.make("defense", local.pop("defense"), local)
        return defense

    def check_code(self) -> None:
        """See that this process runs the code the keys were made with.

        Raises:
            RuntimeError: It has other code: the cell's numbers would stand under a wrong key.
        """
        victim, params = self.victim.params, self.cell.params
        if "model" in victim:  # a trigger that is learned may need no model
            code.expect(victim["model"]["version"], self.family)
        code.expect(victim["attack"]["version"], *catalog.classes(self.attack))
        if self.cell.kind == "defend":
            code.expect(params["defense"]["version"], *catalog.classes(self.defense))
        if self.cell.kind == "stage" and (stage := self.defense.stage()):
            running = forms.stage_classes(self.defense, stage)
            code.expect(params["stage"]["version"], *running)

    def model(self) -> Net:
        """The victim's model with its trained weights."""
        rng = seeds.generator(self.victim.key, "model")
        model = _builder(self.architecture)(rng, weights="")  # its own follow
        model.load_state_dict(dict(self.trained.tensors["model"]))
        return model.to(self.device).eval()

    def given(self, sees: frozenset[str]) -> dict[str, Any]:
        """What a defense or stage declares to see, and nothing else."""
        given: dict[str, Any] = {}
        if "model" in sees:
            given["model"] = self.model()
        if "clean" in sees:
            _, held = splits.split(self.dataset, self.victim.params["reserve"])
            seed, count = self.victim.params["seed"], self.cell.params["n_clean"]
            clean = self.dataset.train[splits.clean_set(self.dataset, held, count, seed)]
            given["clean"] = clean.changed(positions=None)
        if "train" in sees:
            given["train"] = self.poisoned().samples.changed(positions=None)
        if "queries" in sees:
            given["queries"] = black_box(self.model(), self.recipe, self.device)
        if "oracle" in sees:
            given["oracle"] = self.oracle
        return given

    def case(self, sees: frozenset[str], state: State) -> Case:
        """What a defense or stage is given in this process."""
        return Case(
            sees=sees,
            key=self.cell.seed,
            device=self.device,
            recipe=self.recipe,
            given=self.given(sees),
            build=_builder(self.architecture),
            state=state,
            log=self.log,
        )

    def oracle(self, model: nn.Module) -> tuple[float, float]:
        """ACC and ASR on the test set, for what is named an oracle."""
        return self.rates(self.answers(model))

    def rates(self, predict: Answers) -> tuple[float, float]:
        """ACC and ASR of predictions.

        Raises:
            SweepError: The victim came without its trigger.
        """
        if not self.attack.triggers:
            raise SweepError(f"what was asked {NO_TRIGGER}")
        measured = self.evaluate(predict, self.cell.seed)
        return float(measured["acc"] or 0), float(measured["asr"] or 0)

    def progress(self, epoch: int, epochs: int, loss: float) -> None:
        """Pass an epoch on to the log."""
        self.log(epoch=epoch, epochs=epochs, loss=loss)


def measured(store: Store, victim: str) -> dict[str, Any] | None:
    """The metrics of a victim, by its key; None where today's have not been measured."""
    about = store.about(MEASURE, _measure_key(victim))
    return dict(about["result"]) if about else None


def _measure_key(victim: str) -> str:
    return seeds.digest({"kind": MEASURE, "victim": victim, "metrics": metrics.VERSION})


def _builder(architecture: dict[str, Any]) -> Callable[..., Net]:
    """A function that builds models, with changes to their options, and holds no data."""

    def build(rng: Generator, **changes: Any) -> Net:
        return models.build(**architecture, generator=rng, changes=changes)

    return build


def black_box(
    model: Net, recipe: Recipe, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model as a black box: uint8 [B, C, H, W] -> probabilities [B, K] on the CPU.

    The model itself is laid out for it (`training.asked`).
    """
    training.asked(model, recipe, device)

    @torch.inference_mode()
    def ask(images: torch.Tensor) -> torch.Tensor:
        with training.autocast(recipe, device):
            logits = model(images.to(device).float().div_(255))
        probabilities: torch.Tensor = logits.float().softmax(1).cpu()
        return probabilities

    return ask


def opened(entry: str, digest: str, context: Context) -> data.Dataset:
    """The data set an entry (JSON) of a cell names, with the content the sweep was planned with.

    Raises:
        RuntimeError: This machine has another content under that name.
    """
    return _dataset(entry, digest, context.data, context.cache)


@functools.lru_cache(maxsize=4)
def _dataset(entry: str, digest: str, root: str | None, cache: str | None) -> data.Dataset:
    """An immutable input, kept by the process between cells; by its content, as files change."""
    places = (Path(place) if place else None for place in (root, cache))
    dataset = data.open_dataset(json.loads(entry), *places)
    if dataset.digest != digest:
        raise RuntimeError(
            f"the data set {dataset.name} on this machine is not the one the sweep was planned "
            "with (its content hash differs): give every machine the same files"
        )
    return dataset
