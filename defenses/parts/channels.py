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
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def norms(model: nn.Module) -> dict[str, Norm]:
    """Every affine norm by name, in registration order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm)
        and module.weight is not None
    }


def conv_scores(weight: Tensor, literal: bool = False) -> Tensor:
    """Largest |weight| of a channel over the standard deviation of its kernel; [C_o].

    Channels without a score are NaN: all zero, or constant in every kernel, as every kernel of one
    element is. `literal`: as released, infinite or NaN.
    """
    flat = weight.detach().flatten(2)
    ratio = flat.abs() / flat.std(2, correction=0, keepdim=True)
    if literal:
        return ratio.flatten(1).amax(1)
    largest = torch.where(ratio.isfinite(), ratio, -torch.inf).flatten(1).amax(1)
    return torch.where(largest.isfinite(), largest, torch.nan)


def norm_scores(norm: Norm, literal: bool = False) -> Tensor:
    """`|gamma| / sqrt(running variance)`, |gamma| where there is none; [C], dead ones NaN."""
    gamma = norm.weight.detach()
    variance = getattr(norm, "running_var", None)
    ratio = gamma.abs() if variance is None else (gamma / variance.sqrt()).abs()
    if literal:
        return ratio
    alive = (gamma != 0) if norm.bias is None else (gamma != 0) | (norm.bias.detach() != 0)
    return torch.where(alive & ratio.isfinite(), ratio, torch.nan)


def outliers(scores: Tensor, factor: float, literal: bool = False) -> Tensor:
    """Bool [C]: scores above mean + factor x deviation of the layer; NaN is never above."""
    valid = scores if literal else scores[~scores.isnan()]
    if len(valid) < 2:
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores > valid.mean() + factor * valid.std()


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
    convs, norm_layers = convolutions(model), norms(model)
    owner, last = {}, ""
    for name, _ in model.named_modules():
        last = name if name in convs else last
        if name in norm_layers:
            owner[name] = last
    return Scores(
        {name: conv_scores(layer.weight, literal).cpu() for name, layer in convs.items()},
        {name: norm_scores(layer, literal).cpu() for name, layer in norm_layers.items()},
        owner,
    )


def thresholds(layer_scores: Scores, mode: str) -> tuple[float, float]:
    """T of the convolutions and of the norms; 1 where no layer gives one.

    Args:
        layer_scores: The scores.
        mode: released (mean scores of the layers on the VGG list) | vgg-list (the same, or an error
            where none is on it) | adaptive (mean scores of the layers with many outliers, relative
            to those of all layers).

    Raises:
        SweepError: No layer is on the list in mode vgg-list.
    """
    if mode == "adaptive":
        conv_names, norm_names = suspicious_layers(layer_scores)
        t_conv = _pooled(layer_scores.conv, conv_names) / _pooled(
            layer_scores.conv, [*layer_scores.conv]
        )
        t_norm = _layered(layer_scores.norm, norm_names) / _layered(
            layer_scores.norm, [*layer_scores.norm]
        )
    else:
        conv_names = [name for name in layer_scores.conv if VGG_LIST.fullmatch(name)]
        norm_names = [name for name in layer_scores.norm if VGG_LIST.fullmatch(name)]
        if mode == "vgg-list" and not (conv_names and norm_names):
            raise SweepError(
                "mode: vgg-list names layers of VGG-16, which this model does not have; "
                "use released or adaptive"
            )
        t_conv = _pooled(layer_scores.conv, conv_names)
        t_norm = _layered(layer_scores.norm, norm_names)
    return _or_one(t_conv), _or_one(t_norm)


def suspicious_layers(layer_scores: Scores) -> tuple[list[str], list[str]]:
    """Convolutions and norms that may hold the backdoor: the adaptive mode's P.

    Of the deeper 60 % in registration order, without the first convolution and the last, those
    whose share of outliers (1.5 deviations, by the norm's scores) is at least the median of all
    layers. Without norms the convolutions' scores decide.
    """
    order = [*layer_scores.conv]
    judged = {
        layer_scores.owner[name]: layer_scores.norm[name]
        for name in layer_scores.norm
        if layer_scores.owner[name]
    }
    judged = judged or dict(layer_scores.conv)
    outlier_share = {
        name: float(outliers(value, 1.5).float().mean()) for name, value in judged.items()
    }
    if not outlier_share:
        return [], []
    median = float(torch.tensor([*outlier_share.values()]).median())
    deep = order[int(0.4 * len(order)) :]
    flagged = {
        name
        for name in deep
        if name not in (order[0], order[-1]) and outlier_share.get(name, -1.0) >= median
    }
    norm_names = [name for name, conv in layer_scores.owner.items() if conv in flagged]
    return [name for name in order if name in flagged], norm_names


def suspicious(
    layer_scores: Scores, *, conv: float, u: float, mode: str, literal: bool = False
) -> Dead:
    """The channels to prune.

    Args:
        layer_scores: The scores.
        conv: Coefficient of the convolutions' rule.
        u: Coefficient of the norms' rule.
        mode: How T is found; see `thresholds`.
        literal: Whether a layer with one NaN prunes nothing.
    """
    t_conv, t_norm = thresholds(layer_scores, mode)
    dead = {}
    for name, value in layer_scores.conv.items():
        dead[f"{name}.weight"] = outliers(value, conv * t_conv, literal)
    for name, value in layer_scores.norm.items():
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
        name.removesuffix(".weight"): int(channels.sum())
        for name, channels in dead.items()
        if name.endswith(".weight") and bool(channels.any())
    }


def _pooled(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Mean over all channels of these layers; NaN of none."""
    layer_scores = [values[name] for name in names]
    return torch.cat(layer_scores).nanmean() if layer_scores else torch.tensor(torch.nan)


def _layered(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Mean over these layers of their mean; NaN of none."""
    means = [values[name].nanmean() for name in names]
    return torch.stack(means).nanmean() if means else torch.tensor(torch.nan)


def _or_one(value: Tensor) -> float:
    return 1.0 if bool(value.isnan()) else float(value)
