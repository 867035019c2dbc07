"""SSD detectors: one small enough for a CPU, and torchvision's two.

Liu et al., ECCV 2016 (arXiv 1512.02325); ssdlite320: Sandler et al., CVPR 2018. Heads, default
boxes and the two larger networks are torchvision's. `ssd-small` has this project's ResNet-18 as
its backbone: feature maps at strides 8, 16 and 32. The mean of the last is added to it by a layer
of its own, as in ParseNet (Liu et al., 2015), and a feature pyramid (Lin et al., CVPR 2017) joins
them where `pyramid` is not 0: every box sees the whole image. Norms in the pyramid let SGD take
steps of 0.02 and more; without them it diverged at 0.02.

A detector answers with `Heads` in training and evaluation alike: what they mean as losses and as
boxes is the task's. The large ones resize what they are shown to their own side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Whole
from sweeper.models._layers import need_side, not_in_place
from sweeper.models.base import Family, Net, Shape
from sweeper.models.resnet import ResNet

_TORCHVISION = {"ssd300-vgg16": 300, "ssdlite320": 320}
"""Side in pixels of what they look at."""
_STAGES = ("layer2", "layer3", "layer4")


class Heads(NamedTuple):
    """What a detector says of images, one row for each of A default boxes."""

    logits: Tensor
    """float [B, A, K + 1]; class 0 is the background."""
    offsets: Tensor
    """float [B, A, 4]: the boxes relative to the default boxes, as `BoxCoder` encodes them."""
    anchors: Tensor
    """float [A, 4]: the default boxes x1, y1, x2, y2 in pixels of the images as shown."""


@dataclass(frozen=True, kw_only=True)
class SSD(Family):
    """Single-shot detectors."""

    names: ClassVar[tuple[str, ...]] = ("ssd-small", *_TORCHVISION)
    tasks = frozenset({"boxes"})
    usual = (3, 96, 96)

    width: Count = 16
    """Channels of ssd-small's first stage; the others have 2, 4 and 8 times as many."""
    pyramid: Whole = 64
    """Channels of ssd-small's feature pyramid; 0: none, the stages' maps go to the heads."""
    scales: tuple[Annotated[float, Field(gt=0, le=2)], ...] = (0.1, 0.22, 0.36, 0.7)
    """Sides of ssd-small's default boxes at strides 8, 16 and 32, as shares of the image's side,
    and of one more between which and the last lies the largest."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build the trunk (images -> feature maps) and the heads (feature maps -> `Heads`).

        Raises:
            SweepError: The images are too small, or not in colour where torchvision wants that.
        """
        if self.name == "ssd-small":
            return self._small(classes, shape)
        import torchvision.models.detection as zoo  # here: it takes a second

        if shape[0] != 3:
            raise SweepError(f"models: {self.name} needs colour images, got {shape[0]} channels")
        make, side = zoo.ssd300_vgg16, _TORCHVISION[self.name]
        if self.name == "ssdlite320":
            make = zoo.ssdlite320_mobilenet_v3_large
        net = make(weights=None, weights_backbone=None, num_classes=classes + 1)
        not_in_place(net)
        for part in net.modules():
            if isinstance(part, nn.Hardswish | nn.Hardsigmoid):
                part.inplace = False
        trunk = Maps(net.backbone, side)
        return trunk, Head(net.head, net.anchor_generator, trunk, shape, side)

    def _small(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
        from torchvision.models.detection.ssd import SSDHead

        need_side(self.name, shape, 32)
        if len(self.scales) != 4:
            raise SweepError(
                f"models: {self.name}: scales: needs four numbers, got "
                f"{', '.join(map(str, self.scales))}"
            )
        body, _ = ResNet(name="resnet18", width=self.width, stem="imagenet").build(classes, shape)
        widths = [self.width * 2**stage for stage in (1, 2, 3)]
        trunk = Maps(Stages(body, widths, self.pyramid))
        generator = DefaultBoxGenerator([[2]] * 3, scales=list(self.scales))
        channels = [self.pyramid] * 3 if self.pyramid else widths
        head = SSDHead(channels, generator.num_anchors_per_location(), classes + 1)
        for part in head.modules():  # at torchvision's own, larger by ten, SGD diverges at once
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
        return trunk, Head(head, generator, trunk, shape)

    def joined(
        self, trunk: nn.Module, classifier: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> Detector:
        """Join trunk and heads to a detector."""
        return Detector(trunk, classifier, mean, std)


class Detector(Net):
    """normalise -> feature maps -> heads; takes pixels in [0, 1]."""

    def features(self, x: Tensor) -> Tensor:
        """Return the mean of every channel of every feature map, [B, D]."""
        return torch.cat([found.mean((2, 3)) for found in self.trunk(self.normalise(x))], 1)

    def forward(self, x: Tensor) -> Heads:  # type: ignore[override]
        """Return what the heads say of images [B, C, H, W] in [0, 1]."""
        said: Heads = self.classifier(self.trunk(self.normalise(x)))
        return said


class Maps(nn.Module):
    """Images [B, C, H, W] -> the backbone's feature maps, finest first; resized where asked."""

    def __init__(self, backbone: nn.Module, side: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.side = side

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return feature maps [B, D, h, w]."""
        if self.side is not None and x.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
        return list(self.backbone(x).values())


class Stages(nn.Module):
    """The last three stages of a ResNet by name, with a feature pyramid over them."""

    def __init__(self, body: nn.Module, widths: Sequence[int], pyramid: int) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        body.avgpool = nn.Identity()
        self.body = body
        self.neck: nn.Module = nn.Identity()
        self.context = nn.Conv2d(widths[-1], widths[-1], 1)
        if pyramid:
            self.neck = FeaturePyramidNetwork(list(widths), pyramid, norm_layer=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map [B, C, H, W] to three maps, of strides 8, 16 and 32."""
        found = {}
        for name, part in self.body.named_children():
            x = part(x)
            if name in _STAGES:
                found[name] = x
        found["layer4"] = found["layer4"] + self.context(x.mean((2, 3), keepdim=True))
        maps: dict[str, Tensor] = self.neck(found)
        return {name: functional.relu(value) for name, value in maps.items()}


class Head(nn.Module):
    """Feature maps -> `Heads`, with the default boxes for one size of images."""

    anchors: Tensor
    """float [A, 4], see `Heads`."""

    def __init__(
        self, head: nn.Module, generator: nn.Module, trunk: nn.Module, shape: Shape, side: int = 0
    ) -> None:
        """Lay out the default boxes.

        Args:
            head: torchvision's.
            generator: Of default boxes.
            trunk: Its feature maps' sizes are asked for.
            shape: (C, H, W) of the images.
            side: What the trunk resizes them to; 0: nothing.
        """
        super().__init__()
        self.head = head
        self.register_buffer("anchors", _anchors(generator, trunk, shape, side), persistent=False)

    def forward(self, maps: list[Tensor]) -> Heads:
        """Map feature maps [B, D, h, w] to what is said of every default box."""
        said: dict[str, Any] = self.head(maps)
        return Heads(said["cls_logits"], said["bbox_regression"], self.anchors)


@torch.no_grad()
def _anchors(generator: nn.Module, trunk: nn.Module, shape: Shape, side: int) -> Tensor:
    """The default boxes [A, 4] in pixels of images of a shape."""
    from torchvision.models.detection.image_list import ImageList

    channels, height, width = shape
    rows, columns = (side or height), (side or width)
    mode = trunk.training
    maps = trunk.eval()(torch.zeros(1, channels, rows, columns))
    trunk.train(mode)
    with torch.device("cpu"):
        grids = [torch.zeros(1, 1, *found.shape[2:]) for found in maps]
        images = ImageList(torch.zeros(1, 1, rows, columns), [(rows, columns)])
        (boxes,) = generator(images, grids)
        scale = torch.tensor([width / columns, height / rows]).repeat(2)
        found: Tensor = boxes * scale
    return found
