"""What attacks on the model share: training from given weights, a patch in the corner."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sweeper.core.errors import SweepError
from sweeper.core.types import State
from sweeper.engine.training import Hooks

MODEL = "model"
"""Under which name a state holds the weights training begins with."""


class StartFrom(Hooks):
    """Begins with the weights of a state and changes nothing else."""

    def __init__(self, state: State) -> None:
        self.weights = {
            name.removeprefix(f"{MODEL}."): value
            for name, value in state.items()
            if name.startswith(f"{MODEL}.")
        }

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Load them."""
        model.load_state_dict(self.weights)


def corner(what: str, images: Tensor, size: int, margin: int) -> tuple[int, int, int]:
    """Top, left and side of a square patch near the bottom-right corner.

    Args:
        what: Whose patch it is, for the error.
        images: [N, C, H, W], the canvas.
        size: Side in pixels; 0: 8 at 32 px, less on smaller canvases and no more on larger ones.
        margin: Pixels to the border at 32 px, less on smaller canvases.

    Raises:
        SweepError: The patch leaves the canvas.
    """
    height, width = images.shape[2:]
    short = min(height, width, 32)
    side, gap = size or max(2, round(8 * short / 32)), round(margin * short / 32)
    if side + gap > min(height, width):
        raise SweepError(
            f"{what}: a {side} px patch with margin {gap} does not fit {height}x{width} px: lower "
            "`size`"
        )
    return height - gap - side, width - gap - side, side
