"""What an attack's `prepare` may use."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Generator, nn

from sweeper.core import seeds
from sweeper.core.types import Samples
from sweeper.engine import training
from sweeper.models.base import Net
from sweeper.run.material import Material


class Lab:
    """What an attack's `prepare` may use; see `attacks.base.Lab`."""

    def __init__(self, work: Material) -> None:
        self.device = work.device
        self.classes = len(work.dataset.train.classes)
        self._work = work

    def rng(self, name: str) -> Generator:
        """A generator of its own for each named draw."""
        return seeds.generator(self._work.cell.seed, name)

    def clean_model(self) -> Net:
        """The cleanly trained model this cell's parent left."""
        work = self._work
        tensors = work.store.get("train", work.cell.params["clean_model"]).tensors["model"]
        model = self.new_model()
        model.load_state_dict(dict(tensors))
        return model.to(work.device).eval()

    def new_model(self, name: str = "model") -> Net:
        """A freshly initialised model of the victim's architecture; another for each name."""
        return self._work.new_model(self.rng(name))

    def fit(
        self,
        model: nn.Module,
        data: Samples,
        hooks: training.Hooks | None = None,
        *,
        name: str = "",
        **changes: Any,
    ) -> None:
        """Train by the sweep's recipe with `changes`; another name, other draws.

        Raises:
            TypeError: The attack trains but does not declare that its state depends on the model.
        """
        work = self._work
        if work.cell.params["recipe"] is None:
            raise TypeError("prepare() calls lab.fit: `state_axes` must contain model")
        training.fit(
            model,
            data,
            dataclasses.replace(work.recipe, **changes),
            key="/".join(filter(None, (work.cell.seed, name))),
            device=work.device,
            hooks=hooks,
            progress=work.progress,
        )

    def log(self, **progress: Any) -> None:
        """Report progress, for people; changes no number."""
        self._work.log(**progress)
