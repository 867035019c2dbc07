"""Training that begins with given weights, which attacks on the model share."""

from __future__ import annotations

import torch
from torch import nn

from sweeper.core.types import State
from sweeper.engine.training import Hooks

MODEL = "model"
"""Under which name a state holds the weights training begins with."""


class InitialWeights(Hooks):
    """Begins with the weights of a state and changes nothing else."""

    keeps = ()

    def __init__(self, state: State) -> None:
        self.weights = {
            name.removeprefix(f"{MODEL}."): value
            for name, value in state.items()
            if name.startswith(f"{MODEL}.")
        }

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Load them."""
        model.load_state_dict(self.weights)
