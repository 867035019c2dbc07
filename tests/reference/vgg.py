"""VGG-16-BN in the layout the released lists of layer names mean, at the widths of a file."""

from __future__ import annotations

from torch import nn

from tests.reference.golden import Golden


def network(z: Golden, name: str) -> nn.Module:
    """A network of the file's meta `nets`, with its weights; `vgg` has the modules `features.N`."""
    given = z.meta["nets"][name]
    return z.net(name, given) if "plan" not in given else _vgg(z, name, given["plan"])


def _vgg(z: Golden, prefix: str, plan: list[int | str]) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in plan:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    model = nn.ModuleDict({"features": nn.Sequential(*layers)})
    head = prefix + "/"
    weights = {key.removeprefix(head): z[key].float() for key in z.arrays if key.startswith(head)}
    model.load_state_dict({**model.state_dict(), **weights})
    return model.eval()
