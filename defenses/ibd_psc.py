"""IBD-PSC (Hou et al., ICML 2024, arXiv 2405.09786): confidence that outlasts amplified weights.

The defender sees the model and labelled clean images. Scale and shift of the last BatchNorm layers
are amplified; predictions of clean images change, those of triggered ones stay. The score is the
mean confidence, over n copies with ever more layers amplified, in the class first predicted:
`sum_k p_k(x)[argmax f(x)] / n`.

Deviations, each with its reason:

- The threshold is a quantile on a hold-out of the clean budget; the paper's is 0.9 (`published`).
- BatchNorm layers count in the order of the forward pass, not in that of their registration.
- Copies stop at the number of layers, each number once; where the error never passes `error` the
  search ends at all layers. In the release the one repeats copies and the other fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.base import Case, Defense, Needs
from defenses.parts.threshold import cut
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, OpenShare, Positive, Share
from sweeper.core.types import Outcome, Samples
from sweeper.models.base import Net

BATCH = 1000


@torch.no_grad()
def norms(model: nn.Module, images: Tensor) -> list[str]:
    """Names of the BatchNorm layers with weights, in the order of the forward pass.

    Args:
        model: In eval mode, as it is left.
        images: uint8 [B, C, H, W] to follow through it.
    """
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    ]
    device = next(model.parameters()).device
    model(images.to(device).float().div_(255))
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(order))


@torch.no_grad()
def amplify(model: nn.Module, names: Iterable[str], factor: float) -> None:
    """Multiply scale and shift of the named BatchNorm layers in place."""
    for name in names:
        norm = model.get_submodule(name)
        norm.get_parameter("weight").mul_(factor)
        norm.get_parameter("bias").mul_(factor)


@dataclass(frozen=True, kw_only=True)
class IBDPSC(Defense):
    """Refuse inputs of which amplified copies stay confident."""

    factor: Positive = 1.5
    """What scales and shifts are multiplied by."""
    copies: Count = 5
    """Amplified copies, each with one layer more."""
    error: Share = 0.6
    """Clean error above which enough layers are amplified; the copies have more than those."""
    threshold: Share | None = None
    """Refuse above this; default: chosen on clean images by `rate`."""
    rate: OpenShare = 0.05
    """Clean images that may be refused, as a share."""

    title = "IBD-PSC"
    paper = "Hou et al., ICML 2024"
    kind = "input filter"
    sees = frozenset({"model", "clean"})
    requires = frozenset({"batchnorm"})
    light = True
    presets = {"published": {"threshold": 0.9}}

    def applies(self, needs: Needs) -> str | None:
        """Refuse models without BatchNorm."""
        if not needs.batchnorm:
            return "IBD-PSC amplifies BatchNorm layers: the model has none"
        return None

    def least_clean(self, needs: Needs) -> int:
        """One for its error, one for the threshold."""
        return 2

    def defend(self, case: Case) -> Outcome:
        """Build the copies once; set the threshold on the hold-out."""
        fitted, holdout = case.split()
        model = case.asked_model()
        order = norms(model, fitted.images[:1])
        if not order:
            raise SweepError("ibd-psc: the model has no BatchNorm layer: use one with them")
        first, errors = self.enough(case, order, fitted)
        counts = sorted({min(first + more, len(order)) for more in range(1, self.copies + 1)})
        copies = [self.copy(case, order, count) for count in counts]

        @torch.no_grad()
        def score(images: Tensor) -> Tensor:
            parts = []
            for part in images.split(BATCH):
                pixels = part.to(case.device).float().div_(255)
                with case.autocast():
                    label = model(pixels).argmax(1, keepdim=True)
                    confidence = [net(pixels).float().softmax(1).gather(1, label) for net in copies]
                parts.append(torch.cat(confidence, 1).mean(1).cpu())
            return torch.cat(parts)

        threshold = self.threshold
        if threshold is None:
            threshold = cut(score(holdout.images), self.rate)
        notes = {"threshold": threshold, "layers": counts, "errors": errors, "of": len(order)}
        return Outcome(filter=score, threshold=threshold, notes=notes)

    def enough(self, case: Case, order: list[str], data: Samples) -> tuple[int, list[float]]:
        """How many of the last layers it takes for the error to pass; the errors on the way."""
        model, errors = case.fresh_model(), []
        for count in range(1, len(order) + 1):
            amplify(model, [order[-count]], self.factor)
            errors.append(1 - case.accuracy(model, data))
            if errors[-1] > self.error:
                break
        return len(errors), errors

    def copy(self, case: Case, order: list[str], count: int) -> Net:
        """The victim with its last `count` layers amplified."""
        model = case.asked_model()
        amplify(model, order[len(order) - count :], self.factor)
        return model
