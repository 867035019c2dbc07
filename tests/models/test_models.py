"""Contract of every architecture found, and the published sizes of those that have one."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sweeper import models
from sweeper.core.errors import SweepError
from sweeper.models._depthwise import fast_depthwise
from sweeper.models.base import Family, Net

FAMILIES = models.families()
NAMES = tuple(name for name, family in FAMILIES.items() if "image" in family.tasks)
OTHERS = tuple(name for name in FAMILIES if FAMILIES[name].tasks & {"clips", "points"})
EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(
    name: str,
    options: dict[str, object] | None = None,
    *,
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    seed: int = 1,
    changes: dict[str, object] | None = None,
) -> Net:
    return models.build(
        name,
        options or {},
        classes=classes,
        shape=shape,
        mean=[0.5] * shape[0],
        std=[0.25] * shape[0],
        generator=torch.Generator().manual_seed(seed),
        changes=changes,
    )


def on_meta(name: str, classes: int, shape: tuple[int, int, int], **options: object) -> Net:
    """Shapes without numbers: nothing is initialised or computed."""
    with torch.device("meta"):
        trunk, head = models.family(name, options).build(classes, shape)
        return Net(trunk, head, [0.5] * shape[0], [0.25] * shape[0]).eval()


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def norm_channels(net: nn.Module) -> int:
    return sum(m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@EVERY
@torch.inference_mode()
def test_contract(name: str) -> None:
    net = make(name, classes=43).eval()
    x = pixels(2, 3, 32, 32)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out: seen.append((out, out.clone())))
        for m in net.modules()
        if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)
    ]
    logits = net(x)
    for hook in hooks:
        hook.remove()

    assert logits.shape == (2, 43), "logits are [B, K]"
    assert logits.isfinite().all()
    assert type(net.classifier) is nn.Linear, "the last layer is a plain linear layer"
    features = net.features(x)
    assert features.shape == (2, net.classifier.in_features), "features are [B, D]"
    assert torch.equal(net.classifier(features), logits), "classifier(features(x)) is forward(x)"
    assert not torch.equal(features[0], features[1]), "features depend on the image"
    assert seen, "hooks on the norms were called"
    assert all(torch.equal(now, then) for now, then in seen), (
        "no later layer overwrites what a hook on a norm has seen"
    )
    assert torch.equal(net.normalise(x), (x - 0.5) / 0.25)
    net.normalise.get_buffer("mean").fill_(0.1)
    assert not torch.equal(net.features(x), features), "the normaliser comes first"


@EVERY
@torch.inference_mode()
def test_weights_come_from_the_generator_alone_and_fit_safetensors(name: str) -> None:
    before = torch.get_rng_state()
    net = make(name, shape=(1, 32, 32)).eval()
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    torch.rand(3)
    again = make(name, shape=(1, 32, 32)).state_dict()
    state = safetensors.torch.load(safetensors.torch.save(net.state_dict()))
    assert state.keys() == again.keys(), "no tensor is shared with another"
    assert all(torch.equal(state[key], again[key]) for key in state), "same seed, same bits"
    net.load_state_dict(state)
    assert net(pixels(2, 1, 32, 32)).shape == (2, 10)


def test_another_seed_is_another_network() -> None:
    assert not torch.equal(make("tiny").classifier.weight, make("tiny", seed=2).classifier.weight)


@pytest.mark.parametrize("name", OTHERS)
@torch.inference_mode()
def test_contract_beyond_images(name: str) -> None:
    """Logits and features as images' networks have them; weights from the generator alone."""
    shape = FAMILIES[name].usual
    given = {"classes": 7, "shape": shape, "mean": [], "std": []}

    def built() -> Net:
        generator = torch.Generator().manual_seed(1)
        return models.build(name, {}, **given, generator=generator).eval()

    net, again = built(), built()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    x = pixels(2, *shape)
    features = net.features(x)
    assert features.shape == (2, net.classifier.in_features)
    assert net(x).shape == (2, 7) and torch.allclose(net.classifier(features), net(x))
    alone = torch.cat([net(x[:1]), net(x[1:])])
    assert torch.allclose(alone, net(x), atol=1e-5), "a sample does not see its neighbours"


def test_a_pointnet_does_not_see_the_order_of_points() -> None:
    for name in ("pointnet", "pointnet-small"):
        generator = torch.Generator().manual_seed(1)
        given = {"classes": 7, "shape": (32, 3), "mean": [], "std": [], "generator": generator}
        net, x = models.build(name, {}, **given).eval(), pixels(2, 32, 3)
        assert torch.allclose(net(x), net(x.flip(1)), atol=1e-6)


def test_what_a_video_network_cannot_take_is_said() -> None:
    with pytest.raises(SweepError, match="at least 16 pixels"):
        models.family("r3d-18", {}).build(5, (8, 3, 8, 8))
    trunk, head = models.family("r3d-small", {"width": 2}).build(5, (1, 1, 1, 1))
    assert head(trunk(torch.zeros(2, 1, 1, 1, 1))).shape == (2, 5), "as small as can be"


@EVERY
@pytest.mark.parametrize("side", [64, 224])
def test_larger_images(name: str, side: int) -> None:
    net = on_meta(name, 43, (3, side, side))
    assert net(torch.empty(2, 3, side, side, device="meta")).shape == (2, 43)


# The others take seconds on one core and are made of the same layers.
@pytest.mark.parametrize(
    "name",
    "tiny resnet18 preact-resnet18 wrn-16-1 vgg11-bn mobilenet-v2 shufflenet-v2 vit-tiny".split(),
)
def test_trains_a_step_in_bf16_and_channels_last(name: str) -> None:
    net = make(name).to(memory_format=torch.channels_last)
    x = pixels(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(net(x).float(), torch.tensor([0, 1]))
    loss.backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{key} takes part"
        assert parameter.grad.isfinite().all(), f"{key} has a finite gradient"


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 96, 64), (1, 2, 2)])
def test_tiny_takes_any_size(shape: tuple[int, int, int]) -> None:
    net = make("tiny", shape=shape)
    assert net(pixels(2, *shape)).shape == (2, 10)


@EVERY
def test_digits_work_or_are_refused_in_words(name: str) -> None:
    try:
        net = on_meta(name, 10, (1, 8, 8))
    except SweepError as error:
        assert name in str(error) and "at least" in str(error) and "8 x 8" in str(error)
        assert name.startswith("vgg")
    else:
        assert net(torch.empty(2, 1, 8, 8, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("resnet18", {}, 4800),
        ("resnet18", {"width": 16}, 1200),
        ("vgg16-bn", {}, 4224),
        ("vgg19-bn", {}, 5504),
        ("vit-tiny", {}, 0),
    ],
)
def test_batch_norm_channels(name: str, options: dict[str, object], channels: int) -> None:
    assert norm_channels(on_meta(name, 10, (3, 32, 32), **options)) == channels


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_173_962),
        ("wrn-28-10", 36_479_194),  # the paper, table 4: 36.5 M
        ("wrn-16-1", 175_066),
        ("tiny", 292_954),
    ],
)
def test_parameters_on_cifar10(name: str, count: int) -> None:
    assert parameters(on_meta(name, 10, (3, 32, 32))) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # torchvision's `num_params` for the ImageNet weights.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("mobilenet-v2", 3_504_872),
        ("densenet121", 7_978_856),
        ("shufflenet-v2", 2_278_604),
        ("vit-tiny", 5_717_416),  # DeiT-Ti: 5.7 M
    ],
)
def test_parameters_on_imagenet(name: str, count: int) -> None:
    assert parameters(on_meta(name, 1000, (3, 224, 224))) == count


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_is_torchvisions(name: str) -> None:
    import torchvision

    theirs = getattr(torchvision.models, name)(num_classes=10).eval()
    ours = make(name, {"stem": "imagenet"}, shape=(3, 64, 64)).eval()
    missing, extra = ours.trunk.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == [] and extra == ["fc.weight", "fc.bias"]
    ours.classifier.load_state_dict(theirs.fc.state_dict())
    x = pixels(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs((x - 0.5) / 0.25))


def test_stems_of_resnet() -> None:
    sides = {}
    for stem in ("auto", "cifar", "cifar-pool", "imagenet"):
        net = on_meta("resnet18", 10, (3, 64, 64), stem=stem)
        sides[stem] = net.trunk[:4](torch.empty(1, 3, 64, 64, device="meta")).shape[-1]
    assert sides == {"auto": 64, "cifar": 64, "cifar-pool": 32, "imagenet": 16}


def test_changes_replace_the_options_a_family_has() -> None:
    given = {"stem": "cifar-pool", "width": 2}
    asked = make("resnet18", {**given, "stem": "cifar"})
    changed = make("resnet18", given, changes={"stem": "cifar"})
    assert isinstance(changed.trunk.get_submodule("maxpool"), nn.Identity)
    assert all(map(torch.equal, changed.state_dict().values(), asked.state_dict().values()))
    plain = make("tiny", {"width": 4}, changes={"stem": "cifar"})
    assert parameters(plain) == parameters(make("tiny", {"width": 4})), "tiny has no stem"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet81", {}, ["did you mean 'resnet18'", "Known: ", "tiny"]),
        ("resnet18", {"wdith": 16}, ["'wdith'", "did you mean 'width'", "stem"]),
        ("resnet18", {"name": "resnet34"}, ["no option 'name'"]),
        ("resnet18", {"width": "wide"}, ["width: needs a whole number", "'wide'"]),
        ("resnet18", {"width": True}, ["width: needs a whole number", "True"]),
        ("resnet18", {"width": 0}, ["width: needs a whole number of at least 1, not 0"]),
        ("resnet18", {"stem": "cfar"}, ["stem", "'cfar'", "'cifar-pool'"]),
        ("mobilenet-v2", {"dropout": 1.5}, ["dropout", "1.5"]),
        ("vit-tiny", {"heads": 5}, ["192", "5"]),
        ("vit-tiny", {"patch": 5}, ["multiple", "patch of 5"]),
        ("vit-tiny", {"patch": 32}, ["at least 64"]),
    ],
)
def test_errors_name_what_is_wrong(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SweepError) as caught:
        make(name, options)
    for word in words:
        assert word in str(caught.value)


EXTRA = '''
"""A linear model."""
from dataclasses import dataclass
from typing import ClassVar
from torch import nn
from sweeper.models.base import Family


@dataclass(frozen=True, kw_only=True)
class Linear(Family):
    """A linear model."""
    names: ClassVar[tuple[str, ...]] = ({names})

    def build(self, classes, shape):
        size = shape[0] * shape[1] * shape[2]
        return nn.Flatten(), nn.Linear(size, classes)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A further folder of the package, forgotten after the test."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("sweeper.models."):
            del sys.modules[name]
            delattr(models, name.rpartition(".")[2])


def test_a_new_file_is_a_new_family(folder: Path) -> None:
    (folder / "linear.py").write_text(EXTRA.format(names="'linear',"))
    (folder / "_part.py").write_text("raise RuntimeError('names with an underscore are skipped')")
    assert issubclass(models.families()["linear"], Family)
    assert make("linear", shape=(1, 8, 8))(pixels(2, 1, 8, 8)).shape == (2, 10)


def test_two_files_with_one_name_are_refused(folder: Path) -> None:
    (folder / "linear.py").write_text(EXTRA.format(names="'linear', 'tiny'"))
    with pytest.raises(SweepError, match="'tiny' stands both in"):
        models.families()


def test_a_file_without_a_family_is_refused(folder: Path) -> None:
    (folder / "notes.py").write_text('"""Nothing."""\n')
    with pytest.raises(SweepError, match="notes.py defines 0 families"):
        models.families()


def test_the_package_is_light() -> None:
    code = "import sys, sweeper.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_strided_depthwise_convolution_has_the_numbers_of_torchs() -> None:
    plain = torch.nn.Conv2d(24, 24, 3, 2, 1, groups=24, bias=False)
    fast = copy.deepcopy(plain)
    fast_depthwise(fast)
    assert type(fast) is not type(plain)
    images = torch.randn(4, 24, 9, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for conv in (plain, fast):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(x)
        first = torch.autograd.grad(out.float().pow(3).sum(), (x, conv.weight), create_graph=True)
        second = torch.autograd.grad(first[1].square().sum(), (x, conv.weight))
        found.append([out, *first, *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0.02, atol=0.02 * float(one.detach().abs().max())
        )
    for one, other in zip(found[0][:3], found[1][:3], strict=True):
        assert torch.equal(one, other), "the first derivative has the same bits"


def test_a_strided_depthwise_convolution_gives_gradients_of_single_samples() -> None:
    conv = torch.nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False)
    fast_depthwise(conv)
    weights = dict(conv.named_parameters())

    def score(weights: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, weights, (image[None],)).float().square().sum()

    images = pixels(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        each = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0))(weights, images)
        for image, found in zip(images, each["weight"], strict=True):
            expected = torch.autograd.grad(score(weights, image), conv.weight)[0]
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.1)
