"""One cell at work: what it makes of its parents, and what it says of itself.

prepare | train | stage | defend
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from sweeper.core import catalog, seeds
from sweeper.core.types import Outcome, Role, State
from sweeper.engine import metrics, training
from sweeper.run import apart, record
from sweeper.run.faults import of_the_machine
from sweeper.run.lab import Lab
from sweeper.run.made import Made, made
from sweeper.run.material import Material, measured
from sweeper.run.resume import Keeper
from sweeper.store.artifacts import Artifact, DamagedError

UNWATCHED = "ran in the sweeper's own process"
"""Seen of a defense that does not ship and had no child."""
Result = dict[str, Any]
"""The driver is told: status, error, seconds, acc, asr; of a victim also how many images its
training saw, each as often as it did; of a defense its row, so that the driver need not read it.

A cell ends ok, failed, diverged or in a timeout. What ends no cell: oom (no memory), machine (not
the method's fault; `passing`: it may pass), parents (`lost`: keys of ancestors whose artifacts are
not there)."""
Write = Callable[[list[str]], Result]
"""Writes what a cell made, given what it left behind in its process."""


def is_foreign(method: Any) -> bool:
    """Whether a method does not ship, and a child can import it: not one made in a notebook."""
    here = any(cls.__module__ == "__main__" for cls in catalog.classes(method))
    return not (here or catalog.ships(method))


class ParentsLost(Exception):
    """Artifacts of ancestors are not there, or were damaged: they must be made again first."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(f"artifacts of {', '.join(keys)} are lost")
        self.keys = keys


class Work(Material):
    """One cell at work."""

    @property
    def apart(self) -> bool:
        """Whether its defense runs in a child."""
        defends = self.cell.kind in ("stage", "defend")
        return defends and "defense" in self.context.outside and is_foreign(self.defense)

    def build(self) -> Write:
        """Build the cell from its parents.

        Raises:
            ParentsLost: They are not all there.
            MachineError: Data, code or device are not what the cell needs.
        """
        steps = {
            "prepare": self.prepare,
            "train": self.train,
            "stage": self.stage,
            "defend": self.defend,
        }
        with of_the_machine():
            self.require()
        for _ in range(3):
            there = self.store.has
            if lost := [k for k, above in self.ancestors.items() if not there(above.kind, k)]:
                raise ParentsLost(lost)
            try:
                return steps[self.cell.kind]()
            except DamagedError as error:  # it was set aside: an ancestor's, or the metrics
                damaged = error
        raise damaged

    def require(self) -> None:
        """Have what comes before any code of a method: data, methods, device.

        Raises:
            Exception: This machine lacks one, or has another than the sweep was planned with.
        """
        self.check_code()
        if self.cell.kind in ("stage", "defend"):
            self.defense  # noqa: B018 - an import
        self.dataset  # noqa: B018 - opened, and its content compared
        torch.zeros(1, device=self.device)

    # The kinds of cells

    def prepare(self) -> Write:
        """Learn what an attack needs before it poisons."""
        started = time.monotonic()
        state = self.attack.prepare(self.attacker, Lab(self))
        return self.artifact({"state": state}, {"seconds": time.monotonic() - started})

    def train(self) -> Write:
        """Train a victim and measure it."""
        poisoned = self.poisoned()
        model = self.new_model(seeds.generator(self.cell.key, "model"))
        state, rng = self.state, seeds.generator(self.cell.key, "hooks")
        hooks = self.attack.hooks(self.attacker, state, rng) or training.Hooks()
        keeper = Keeper(self.store, self.cell.key, self.made_by())
        losses = training.fit(
            model,
            poisoned.samples,
            self.recipe,
            key=self.cell.key,
            device=self.device,
            hooks=hooks,
            progress=self.progress,
            keeper=keeper,
        )
        seconds = keeper.seconds
        seen = len(losses) * len(poisoned.samples)
        self.learned = hooks.learned()
        if self.learned:  # only now does the attack say what its hooks poisoned in the loop
            poisoned = self.poisoned()
        measured = self.measured(model)
        more = {
            "losses": losses,
            "n_poisoned": int((poisoned.role == int(Role.POISON)).sum()),
            "shape": list(self.attacker.inputs.shape[1:]),
            "classes": list(self.attacker.classes),
        }
        tensors: dict[str, Any] = {"model": model.state_dict()}
        if self.learned:
            tensors["attack"] = self.learned
        keep = self.artifact(tensors, {"seconds": seconds}, more)

        def write(left: list[str]) -> Result:
            result = {**keep(left), **measured, "images": seen}
            keeper.drop()
            return result

        return write

    def stage(self) -> Write:
        """Run what several defenses share."""
        stage = self.defense.stage()
        assert stage is not None
        started = time.monotonic()
        if self.apart:
            tensors, seen = apart.staged(self, self.context.timeout)
        else:
            tensors, seen = stage.run(self.case(stage.sees, {})), self.unwatched()
        result = {"seconds": time.monotonic() - started}
        return self.artifact({"state": tensors}, result, {"seen": list(seen)})

    def defend(self) -> Write:
        """Run a defense, then measure what it returned; only now is the test set opened."""
        stage = self.cell.params["stage"]
        before = self.store.get("stage", stage) if stage else Artifact({}, {"state": {}})
        self.measured()
        with self.defended(before.tensors["state"]) as made:
            measured = self.measure(made)
        samples = self.samples(made)
        seen = [*made.seen, *(f"stage: {text}" for text in before.meta.get("seen", ()))]

        def write(left: list[str]) -> Result:
            row = self.row(status="ok", error="", seconds=made.seconds, **measured)
            row["peak_memory_mb"] = made.peak_memory_mb
            row["notes"] = json.dumps(made.notes)
            row["seen"] = json.dumps(seen)
            row["left_behind"] = json.dumps([*json.loads(row["left_behind"]), *left])
            if samples:
                self.store.write_samples(self.cell.key, samples)
            self.store.put("defend", self.cell.key, {}, {"row": row, "log": self.printed.text()})
            self.store.write_row(row)
            shown = {name: row.get(name) for name in ("acc", "asr")}
            return {"status": "ok", "error": "", "seconds": made.seconds, **shown, "row": row}

        return write

    # What they share

    @contextlib.contextmanager
    def defended(self, state: State) -> Iterator[Made]:
        """What the defense made, while it can be asked."""
        if self.apart:
            with apart.defended(self, state, self.context.timeout) as answers:
                yield answers
            return
        case = self.case(self.defense.sees, state)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        outcome = self.defense.defend(case)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        result = made(outcome, self.task, self.recipe, self.device, time.monotonic() - started)
        yield dataclasses.replace(result, seen=list(self.unwatched()))

    def unwatched(self) -> tuple[str, ...]:
        """What a row says of a defense that ran here and should not have."""
        return () if catalog.ships(self.defense) else (UNWATCHED,)

    def artifact(
        self,
        tensors: Mapping[str, State],
        result: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
    ) -> Write:
        """What keeps the artifact of this cell, with what it says of itself."""
        about = {
            "params": dict(self.cell.params),
            "axes": dict(self.cell.axes),
            "result": dict(result),
            "versions": json.loads(record.versions()),
            **self.made_by(),
            **(more or {}),
        }

        def write(left: list[str]) -> Result:
            said = {"left_behind": left, "log": self.printed.text()}
            self.store.put(self.cell.kind, self.cell.key, tensors, {**about, **said})
            return {"status": "ok", "error": "", **result}

        return write

    def made_by(self) -> dict[str, Any]:
        """The code this cell runs, where and under what."""
        return {
            "device": record.device_name(self.device.type),
            "conditions": self.conditions(),
            "code": record.trained_by(self.attack, self.family),
        }

    def conditions(self) -> dict[str, Any]:
        """Under what this cell runs, as columns of a row."""
        recipe = self.recipe if self.victim.params["recipe"] else None
        return record.conditions(recipe, self.device, self.context.threads)

    def measure(self, made: Made) -> dict[str, Any]:
        """The metrics a defense's kind decides."""
        measured: dict[str, Any] = {}
        if made.predict is not None:
            measured |= self.evaluate(made.predict, self.cell.seed)
            before = self.measured()
            if measured["asr"] is not None:
                measured["der"] = metrics.der(
                    before["acc"], before["asr"], measured["acc"], measured["asr"]
                )
        if made.scores is not None or made.flagged is not None:
            measured |= metrics.detection(
                Outcome(scores=made.scores, flagged=made.flagged), self.poisoned().role
            )
        if made.score is not None:
            measured |= self.filtering(made.score, made.threshold)
        if not self.attack.triggers:
            measured["n_triggered"] = 0  # of every kind: so a row says why it has no ASR
        return measured

    def samples(self, made: Made) -> dict[str, Any]:
        """What the defense says of each training sample, beside the truth; empty where nothing."""
        outputs = {"score": made.scores, "flagged": made.flagged}
        columns = {name: value.numpy() for name, value in outputs.items() if value is not None}
        if not columns:
            return {}
        poisoned = self.poisoned()
        truth = {
            name: getattr(poisoned, name) for name in ("index", "labels", "true_labels", "role")
        }
        return {name: value.numpy() for name, value in truth.items()} | columns

    def row(self, **values: Any) -> dict[str, Any]:
        """The row of this defense cell."""
        victim = self.victim
        row = record.blank_row(self.cell, victim, self.context.sweep, "", "")
        row |= {
            "peak_memory_mb": record.peak_memory(self.device),
            "device": record.device_name(self.device.type),
            "started_at": self.started_at,
            "left_behind": "[]",
            "data_hash": victim.params["data"],
            **self.conditions(),
        }
        meta = self.store.about("train", victim.key)
        row["code"] = record.ran(self.defense, self.family, (meta or {}).get("code", {}))
        if meta:
            row["victim_seconds"] = meta["result"]["seconds"]
            row["victim_device"] = meta["device"]
            row["n_poisoned"] = meta["n_poisoned"]
            row["left_behind"] = json.dumps(meta.get("left_behind", []))
            row["n_classes"] = len(meta["classes"]) if "classes" in meta else None
            under = meta.get("conditions", {})  # victims of older code do not say
            for name in ("dtype", "threads", "device_kind", "torch"):
                row[f"victim_{name}"] = under.get(name)
        if before := self.before or measured(self.store, victim.key):
            for name in ("acc", "acc_nontarget", "asr", "ra"):
                row[f"{name}_before"] = before[name]
        return {**row, **values}
