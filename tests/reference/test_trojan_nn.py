"""TrojanNN: the units, the trigger step by step, the stamped images."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from torch import Generator, nn

from attacks.parts import patch
from attacks.trojan_nn import TrojanNN, apple, driven
from sweeper.models.base import Net
from tests.reference.golden import Golden, fill, load


def network(z: Golden) -> Net:
    """The file's model: the rule for weights knows its last layer as `linear`."""
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 16), nn.ReLU()]
    parts = nn.ModuleDict({"trunk": nn.Sequential(*layers), "linear": nn.Linear(16, 10)})
    fill(parts, z.arrays["names"], z.arrays["shapes"])
    return Net(parts["trunk"], parts["linear"], [0.0] * 3, [1.0] * 3).eval()


def strongest(model: Net, units: int) -> torch.Tensor:
    return model.get_parameter("classifier.weight").abs().sum(0).topk(units).indices


def test_backdoorbench(tmp_path: Path) -> None:
    z = load("attacks/trojan-nn-backdoorbench")
    Image.fromarray(z.arrays["picture"]).save(tmp_path / "picture.png")
    attack = z.attack(trigger="file", trigger_image=str(tmp_path / "picture.png"))
    assert isinstance(attack, TrojanNN)
    model, start = network(z), attack.picture(3, 32, 32) / 255
    z.agree("mask", start > 0, "mask")
    z.agree("units", strongest(model, attack.units), "units")
    z.agree("after 1 step", driven(model, start, attack.units, 1), "after_1", within=1e-6)
    z.agree("after 5 steps", driven(model, start, attack.units, 5), "after_5", within=1e-6)
    found = driven(model, start, attack.units, 60)
    z.agree("after 60 steps", found, "after_60", within=1e-6)
    pattern = found.mul(255).floor()
    z.agree("trigger", pattern.to(torch.uint8), "trigger")
    state = {"pattern": pattern}
    z.agree(
        "test images", attack.stamp(z["images"], split="test", state=state, rng=Generator()), "test"
    )


def test_the_silhouette_lies_where_the_apple_does() -> None:
    mask = apple(32, 32)
    rows, columns = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (16, 29, 17, 28)
    assert abs(float(mask.float().mean()) - 0.11) < 0.01


def test_backdoor_toolbox() -> None:
    z = load("attacks/trojan-nn-backdoor-toolbox")
    model, units = network(z), len(z["units"])
    z.agree("units", strongest(model, units), "units")
    with mock.patch("torch.randn", return_value=z["start"][None]):
        found = patch.excite(model, (3, 32, 32), (21, 21, 8), units, 40, Generator())
    z.agree("patch", found.to(torch.uint8), "patch_levels")
