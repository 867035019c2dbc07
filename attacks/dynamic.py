"""Dynamic: the input-aware trigger (Nguyen and Tran, 2020) as an attack on data alone.

`T(x) = x + (G(x) - x) * M(x)`. `prepare` trains the mask net M, then the generator G together with
a surrogate of the victim's architecture, as the input-aware attack does at `generator_rate`; then
both are frozen and stamp poisoned training images once, before training. The attacker needs no part
of the victim's training.

Deviations: backdoor-toolbox loads nets trained by others for 600 epochs; here the surrogate learns
for `epochs`, the learning-rate steps at the same fractions. The state belongs to one target and one
architecture. Cross triggers are used in the surrogate only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Generator, Tensor

from attacks.base import Attack, Lab
from attacks.input_aware import InputAware
from sweeper.core.options import Count, OpenShare, Whole
from sweeper.core.types import Samples, State


@dataclass(frozen=True, kw_only=True)
class Dynamic(Attack):
    """Input-aware trigger, stamped before training."""

    epochs: Count = 60
    """Epochs of the generator and its surrogate classifier."""
    mask_epochs: Whole = 25
    """Epochs of the mask net alone."""
    generator_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of a batch that carries the trigger while the generator learns."""
    density: OpenShare = 0.032
    """Share of the pixels the mask may take without a penalty."""

    title = "Dynamic"
    paper = "Nguyen and Tran, NeurIPS 2020; static form of backdoor-toolbox"
    prepares = True
    version = 2
    state_axes: ClassVar[frozenset[str]] = frozenset({"model", "target"})
    presets = {"backdoor-toolbox": {"rate_base": "all"}}

    def input_aware(self) -> InputAware:
        """The attack that makes the trigger."""
        return InputAware(
            target=self.target,
            poison_rate=self.generator_rate,
            mask_epochs=self.mask_epochs,
            density=self.density,
        )

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Train mask net, generator and surrogate; keep the nets."""
        input_aware = self.input_aware()
        state = input_aware.prepare(train, lab)
        hooks = input_aware.hooks(train, state, lab.rng("hooks"))
        assert hooks is not None
        lab.fit(lab.new_model(), train, hooks, epochs=self.epochs)
        return {**state, **hooks.learned()}

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Give every image the trigger the frozen nets make of it."""
        return self.input_aware().stamp(images, split="train", state=state, rng=rng)
