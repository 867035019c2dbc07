"""CPU seconds that defenses take on one victim, BadNets on digits; this code beside another tree.

    SWEEPER_BEFORE=../old SWEEPER_DEFENSES='[anp, {defense: asd, epochs: 2}]' \\
        python -m tests.benchmarks defenses

Each time is of a process of its own, one thread, user and system together, from `defend` (and the
stage before it) to the scores of the test images where the defense is an input filter; the trees
take turns. `apart` is the largest difference of weights, scores and flags from the other tree's, 0
where all bits agree; `notes` says whether the notes do. `SWEEPER_RECIPE` changes the recipe, as in
a sweep file: `{precision: portable}`.
"""

from __future__ import annotations

import copy
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from attacks.badnets import BadNets
from defenses.base import Case
from sweeper import data, models
from sweeper.core import catalog, seeds
from sweeper.core.types import Outcome, Samples, Triggered
from sweeper.engine import metrics, recipes, training
from sweeper.engine import task as tasks
from sweeper.engine.isolation import isolated
from sweeper.models.base import Net
from sweeper.run import material

SHORT: list[dict[str, Any]] = [
    {"defense": "anp", "steps": 50},
    {"defense": "rnp", "unlearn_epochs": 5, "recover_epochs": 5},
    {"defense": "neural-cleanse", "epochs": 3, "tune_epochs": 1},
    {"defense": "d-br", "train_epochs": 1, "intra_epochs": 2, "epochs": 2},
    {"defense": "dbd", "iterations": 5, "contrast_epochs": 2, "head_epochs": 1, "epochs": 2},
    {"defense": "asd", "iterations": 5, "class_epochs": 1, "whole_epochs": 1, "meta_epochs": 1},
    {"defense": "strip-cleanser"},
    {"defense": "sentinet"},
]
"""What is measured where nothing is asked for: seconds each, so steps and epochs are few."""
ROUNDS = 3
RECIPE = {"epochs": 20, "weight_decay": 0.03}
CLEAN, RATE, KEY = 287, 0.1, "benchmark"
"""Images of the clean budget and the poison rate, as in the quickstart."""
CPU = torch.device("cpu")
HERE = Path(__file__).resolve().parents[2]


class Bench:
    """The victim of the benchmark and what a defense may be given of it."""

    def __init__(self) -> None:
        digits = data.open_dataset({"dataset": "digits"})
        whole = digits.train.changed(positions=None)
        order = torch.randperm(len(whole), generator=seeds.generator(KEY, "clean"))
        self.clean, train = whole[order[:CLEAN]], whole[order[CLEAN:]]
        attack = BadNets()
        self.poisoned = attack.poison(train, RATE, {}, seeds.generator(KEY, "poison"))
        self.test: Samples = digits.test
        self.hit: Triggered = attack.trigger_set(digits.test, {}, seeds.generator(KEY, "trigger"))
        self.mean, self.std = digits.mean, digits.std
        asked = RECIPE | (yaml.safe_load(os.environ.get("SWEEPER_RECIPE", "")) or {})
        self.recipe = recipes.resolve(asked, "digits", "tiny")

    def build(self, rng: Generator, **changes: Any) -> Net:
        """A new network."""
        shape = tuple(self.clean.inputs.shape[1:])
        given: dict[str, Any] = {"classes": 10, "shape": shape, "mean": self.mean, "std": self.std}
        return models.build("tiny", {}, **given, generator=rng, changes=changes)

    def train(self) -> dict[str, Tensor]:
        """Weights of the victim."""
        model = self.build(seeds.generator(KEY, "model"))
        training.fit(model, self.poisoned.samples, self.recipe, key=KEY, device=CPU)
        return {name: value.contiguous() for name, value in model.state_dict().items()}

    def rates(self, model: torch.nn.Module) -> dict[str, Any]:
        """ACC and ASR."""
        predict = tasks.of(self.test).answering(model, self.recipe, CPU)
        rng = seeds.generator(KEY, "measure")
        measured = metrics.evaluate(predict, self.test, self.hit, 0, rng)
        return {"acc": measured["acc"], "asr": measured["asr"]}

    def case(self, victim: Net, sees: frozenset[str], state: Mapping[str, Tensor]) -> Case:
        """What a defense or a stage of it is given."""

        def oracle(model: torch.nn.Module) -> tuple[float, float]:
            acc, asr = self.rates(model).values()
            return float(acc), float(asr)

        train = self.poisoned.samples.changed(positions=None)
        given: dict[str, Any] = {"model": victim, "clean": self.clean, "train": train}
        given["queries"] = material.black_box(copy.deepcopy(victim), self.recipe, CPU)
        given["oracle"] = oracle
        return Case(
            sees=sees,
            key=KEY,
            device=CPU,
            recipe=self.recipe,
            given={name: value for name, value in given.items() if name in sees},
            build=self.build,
            state=state,
        )


def used() -> float:
    """CPU seconds of this process and its children so far."""
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, whose))


def defended(asked: str, weights: str, made: str) -> dict[str, Any]:
    """Run a defense, as a sweep file has it: CPU seconds, notes, ACC and ASR.

    Args:
        asked: Its name and options, as JSON.
        weights: The victim's file.
        made: The file that is written, of all tensors that came out.
    """
    bench, options = Bench(), json.loads(asked)
    victim = bench.build(seeds.generator(KEY, "model"))
    victim.load_state_dict(load_file(weights))
    victim.eval()
    defense = catalog.make("defense", options.pop("defense"), options)
    with isolated(KEY, 1):
        bench.rates(copy.deepcopy(victim))  # neither the first batch is part of it, nor its layout
        torch.optim.SGD(victim.parameters())  # nor what torch imports at the first optimiser
        started = used()
        stage = defense.stage()
        state = stage.run(bench.case(victim, stage.sees, {})) if stage else {}
        outcome: Outcome = defense.defend(bench.case(victim, defense.sees, state))
        tensors = {**state, **{k: v for k, v in vars(outcome).items() if isinstance(v, Tensor)}}
        if outcome.filter is not None:
            images = torch.cat([bench.test.inputs, bench.hit.samples.inputs])
            tensors["filter"] = metrics.scores(outcome.filter, images)
        seconds = used() - started
        rates = {}
        if outcome.model is not None:
            tensors |= outcome.model.state_dict()
            rates = bench.rates(outcome.model)
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, made)
    return {"seconds": seconds, "notes": str(dict(outcome.notes)), **rates}


def timed(tree: Path, asked: dict[str, Any], weights: str) -> dict[str, Any]:
    """`defended` of another process, whose code lies in `tree`, with the tensors it made."""
    with tempfile.TemporaryDirectory() as place:
        made = str(Path(place, "made.safetensors"))
        words = [sys.executable, "-P", str(Path(__file__)), json.dumps(asked), weights, made]
        where = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=where)
        result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
        assert Path(result["tree"]) == tree, f"{result['tree']} was imported, not {tree}"
        return {**result, "made": load_file(made)}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two results; infinite where not both have the same tensors."""
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in other.items()}:
        return math.inf
    pairs = [(one[name].double(), other[name].double()) for name in one]
    return max((float((a - b).abs().max()) for a, b in pairs if not a.equal(b)), default=0.0)


def compared(trees: dict[str, Path], asked: dict[str, Any], weights: str) -> list[dict[str, Any]]:
    """A row for each tree; `ratio` is the median of each round's."""
    rounds = [{name: timed(trees[name], asked, weights) for name in trees} for _ in range(ROUNDS)]
    first, found = next(iter(trees)), []
    for name in trees:
        times = [turn[name]["seconds"] for turn in rounds]
        ratios = [turn[first]["seconds"] / turn[name]["seconds"] for turn in rounds]
        last, other = rounds[-1][name], rounds[-1][first]
        row = {"defense": " ".join(map(str, asked.values())), "code": name}
        row |= {"CPU s": statistics.median(times), "spread": f"{min(times):.2f}-{max(times):.2f}"}
        row |= {"ratio": statistics.median(ratios), "apart": apart(last["made"], other["made"])}
        row["notes"] = "same" if last["notes"] == other["notes"] else "differ"
        found.append(row | {"acc": last.get("acc"), "asr": last.get("asr")})
    return found


def rows() -> list[dict[str, Any]]:
    """CPU seconds of each defense, before and now."""
    listed = yaml.safe_load(os.environ.get("SWEEPER_DEFENSES", "")) or SHORT
    before = os.environ.get("SWEEPER_BEFORE")
    trees = ({"before": Path(before).resolve()} if before else {}) | {"now": HERE}
    found = []
    with tempfile.TemporaryDirectory() as place:
        weights = str(Path(place, "victim.safetensors"))
        with isolated(KEY, 1):
            save_file(Bench().train(), weights)
        for item in listed:
            asked = {"defense": item} if isinstance(item, str) else dict(item)
            found += compared(trees, asked, weights)
    return found


if __name__ == "__main__":
    result = defended(*sys.argv[1:])
    sys.stdout.write(json.dumps({**result, "tree": str(Path(models.__file__).parents[2])}) + "\n")
