"""SIBP's scores and thresholds: which channels of a layer are suspicious, from weights alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sweeper.core.errors import SweepError

Norm = nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm
Dead = dict[str, Tensor]
"""Name of a parameter -> bool [channels] on the CPU: those to be zeroed."""

VGG_LIST = re.compile(r"(?:features|trunk)\.(1[2-9]|2\d|3[0-8])")
"""The released list: modules 12 to 38 of VGG-16's features."""


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Every convolution by name, in registration order."""
    return {n: part for n, part in model.named_modules() if isinstance(part, nn.Conv2d)}


def norms(model: nn.Module) -> dict[str, Norm]:
    """Every affine norm by name, in registration order."""
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm)
        and part.weight is not None
    }


def conv_scores(weight: Tensor, literal: bool = False) -> Tensor:
    """Largest |weight| of a channel over the standard deviation of its kernel; [C_o].

    Channels without a score are NaN: all zero, or constant in every kernel. Kernels of one element
    have no deviation; theirs is taken over the inputs. `literal`: as released, infinite or NaN.
    """
    flat = weight.detach().flatten(2)
    if literal or flat.shape[2] > 1:
        ratio = flat.abs() / flat.std(2, correction=0, keepdim=True)
    else:
        ratio = flat.abs() / flat.std(1, correction=0, keepdim=True)
    if literal:
        return ratio.flatten(1).amax(1)
    found = torch.where(ratio.isfinite(), ratio, -torch.inf).flatten(1).amax(1)
    return torch.where(found.isfinite(), found, torch.nan)


def norm_scores(norm: Norm, literal: bool = False) -> Tensor:
    """`|gamma| / sqrt(running variance)`, |gamma| where there is none; [C], dead ones NaN."""
    gamma = norm.weight.detach()
    variance = getattr(norm, "running_var", None)
    found = gamma.abs() if variance is None else (gamma / variance.sqrt()).abs()
    if literal:
        return found
    alive = (gamma != 0) if norm.bias is None else (gamma != 0) | (norm.bias.detach() != 0)
    return torch.where(alive & found.isfinite(), found, torch.nan)


def outliers(scores: Tensor, factor: float, literal: bool = False) -> Tensor:
    """Bool [C]: scores above mean + factor x deviation of the layer; NaN is never above."""
    known = scores if literal else scores[~scores.isnan()]
    if len(known) < 2:
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores > known.mean() + factor * known.std()


@dataclass(frozen=True)
class Scores:
    """The scores of a model, layer by layer, on the CPU."""

    conv: Mapping[str, Tensor]
    """Convolution's name -> [C_o]."""
    norm: Mapping[str, Tensor]
    """Norm's name -> [C]."""
    owner: Mapping[str, str]
    """Norm's name -> the convolution registered last before it."""


def scores(model: nn.Module, literal: bool = False) -> Scores:
    """Score every convolution and norm of a model; no data, nothing random."""
    convs, rest = convolutions(model), norms(model)
    owner, last = {}, ""
    for name, _ in model.named_modules():
        last = name if name in convs else last
        if name in rest:
            owner[name] = last
    return Scores(
        {name: conv_scores(part.weight, literal).cpu() for name, part in convs.items()},
        {name: norm_scores(part, literal).cpu() for name, part in rest.items()},
        owner,
    )


def thresholds(found: Scores, mode: str) -> tuple[float, float]:
    """T of the convolutions and of the norms; 1 where no layer gives one.

    Args:
        found: The scores.
        mode: released (mean scores of the layers on the VGG list) | vgg-list (the same, or an error
            where none is on it) | adaptive (mean scores of the layers with many outliers, relative
            to those of all layers).

    Raises:
        SweepError: No layer is on the list in mode vgg-list.
    """
    if mode == "adaptive":
        convs, rest = suspicious_layers(found)
        t_conv = _pooled(found.conv, convs) / _pooled(found.conv, [*found.conv])
        t_norm = _layered(found.norm, rest) / _layered(found.norm, [*found.norm])
    else:
        convs = [name for name in found.conv if VGG_LIST.fullmatch(name)]
        rest = [name for name in found.norm if VGG_LIST.fullmatch(name)]
        if mode == "vgg-list" and not (convs and rest):
            raise SweepError(
                "mode: vgg-list names layers of VGG-16, which this model does not have; "
                "use released or adaptive"
            )
        t_conv, t_norm = _pooled(found.conv, convs), _layered(found.norm, rest)
    return _known(t_conv), _known(t_norm)


def suspicious_layers(found: Scores) -> tuple[list[str], list[str]]:
    """Convolutions and norms that may hold the backdoor: the adaptive mode's P.

    Of the deeper 60 % in registration order, without the first convolution and the last, those
    whose share of outliers (1.5 deviations, by the norm's scores) is at least the median of all
    layers. Without norms the convolutions' scores decide.
    """
    order = [*found.conv]
    judged = {found.owner[name]: found.norm[name] for name in found.norm if found.owner[name]}
    judged = judged or dict(found.conv)
    share = {name: float(outliers(value, 1.5).float().mean()) for name, value in judged.items()}
    if not share:
        return [], []
    middle = float(torch.tensor([*share.values()]).median())
    deep = order[int(0.4 * len(order)) :]
    chosen = {
        name
        for name in deep
        if name not in (order[0], order[-1]) and share.get(name, -1.0) >= middle
    }
    rest = [name for name, conv in found.owner.items() if conv in chosen]
    return [name for name in order if name in chosen], rest


def suspicious(found: Scores, *, conv: float, u: float, mode: str, literal: bool = False) -> Dead:
    """The channels to prune.

    Args:
        found: The scores.
        conv: Coefficient of the convolutions' rule.
        u: Coefficient of the norms' rule.
        mode: How T is found; see `thresholds`.
        literal: Whether a layer with one NaN prunes nothing.
    """
    t_conv, t_norm = thresholds(found, mode)
    dead = {}
    for name, value in found.conv.items():
        dead[f"{name}.weight"] = outliers(value, conv * t_conv, literal)
    for name, value in found.norm.items():
        dead[f"{name}.weight"] = dead[f"{name}.bias"] = outliers(value, u * t_norm, literal)
    return dead


@torch.no_grad()
def zero(model: nn.Module, dead: Dead) -> None:
    """Set the dead channels of each parameter to zero, in place."""
    for name, value in model.named_parameters():
        if name in dead:
            value[dead[name].to(value.device)] = 0


def counts(dead: Dead) -> dict[str, int]:
    """Pruned channels of each layer that lost one."""
    return {
        name.removesuffix(".weight"): int(part.sum())
        for name, part in dead.items()
        if name.endswith(".weight") and bool(part.any())
    }


def _pooled(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Mean over all channels of these layers; NaN of none."""
    parts = [values[name] for name in names]
    return torch.cat(parts).nanmean() if parts else torch.tensor(torch.nan)


def _layered(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Mean over these layers of their mean; NaN of none."""
    parts = [values[name].nanmean() for name in names]
    return torch.stack(parts).nanmean() if parts else torch.tensor(torch.nan)


def _known(value: Tensor) -> float:
    return 1.0 if bool(value.isnan()) else float(value)
