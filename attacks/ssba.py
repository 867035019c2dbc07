"""SSBA / ISSBA (Li et al., ICCV 2021): bits hidden in an image by a trained encoder trigger.

`T(x) = E(x, s)`: the encoder E hides one fixed secret s in every image, with a residual that
depends on the image; train and test images carry the same bits. The attacker controls the data
only. `prepare` trains encoder and decoder from scratch on the attacker's training images;
`bit_accuracy` and `residual` (mean absolute change, 0..255) of its state say whether that worked:
above 0.95 and below 8.

- variant `a` (BackdoorBox): a residual, 20 bits, a spatial transformer in the decoder. Only the
  bits count in the first tenth of the epochs (2 of 20) and until 90 % of a batch's are right, then
  `10 * mean(r^2) + 1.5 * BCE`.
- variant `b` (BackdoorBench): the whole image through a sigmoid, 100 bits. Only the bits count
  until a batch's bits are 90 % right; after 5 % of all steps more the weight of the image rises
  linearly to 10 within the next 15 %.

Deviations: no LPIPS term (its weights are a download), for which A's weight of the residual is 10
instead of 2; no discriminator; A also waits for the bits, which two epochs of a small set do not
teach; the bits are random instead of a BCH code of a word; the test images
never train the encoder; B's waiting times (1,000 and 3,000 iterations) are shares of the steps. The
ISSBA and D-BR releases use a pretrained 224 px encoder for which variant B stands here. Images are
rounded to uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from attacks.base import Attack, Lab
from attacks.parts.loop import in_batches
from attacks.parts.nets import built, packed, unpacked
from attacks.parts.steganography import Decoder, Encoder
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Stride
from sweeper.core.types import Samples, State
from sweeper.engine import training

SAMPLE = 1000
"""Training images the state's quality is measured on."""


@dataclass(frozen=True, kw_only=True)
class Ssba(Attack):
    """Sample-specific trigger of a steganographic encoder."""

    variant: str = "a"
    """a (residual, BackdoorBox) | b (whole image, BackdoorBench)."""
    bits: Count = 20
    """Length of the secret."""
    epochs: Count = 20
    """Epochs of the encoder."""
    batch: Count = 32
    """Images of a step of the encoder."""
    lr: Stride = 1e-4
    """Learning rate of Adam."""

    title = "SSBA / ISSBA"
    paper = "Li et al., ICCV 2021 (arXiv 2012.03816)"
    prepares = True
    presets = {
        "backdoorbox": {"rate_base": "all"},
        "backdoorbench": {
            "variant": "b",
            "bits": 100,
            "batch": 64,
            "rate_base": "all",
            "rounding": "nearest",
        },
        "issba": {"variant": "b", "bits": 100, "batch": 64, "rate_base": "all"},
        "d-br": {"variant": "b", "bits": 100, "batch": 64},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown variant.
        """
        super().__post_init__()
        if self.variant not in ("a", "b"):
            raise SweepError(f"variant: {self.variant!r} is not one of a, b")

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Train encoder and decoder, draw the secret, measure both."""
        shape = tuple(train.images.shape[1:])
        encoder = built(lambda: self.net(Encoder, shape), lab.rng("encoder")).to(lab.device)
        decoder = built(lambda: self.net(Decoder, shape), lab.rng("decoder")).to(lab.device)
        weights = [*encoder.parameters(), *decoder.parameters()]
        adam = torch.optim.Adam(weights, lr=self.lr)
        images, rng = train.images.to(lab.device), lab.rng("draws")
        steps = self.epochs * len(training.order(len(train), self.batch, lab.rng("count")))
        decoded_step = torch.full((), float("inf"), device=lab.device)
        step = 0
        for epoch in range(self.epochs):
            for index in training.order(len(train), self.batch, rng):
                x = images[index.to(lab.device)].float().div(255)
                secret = torch.randint(2, (len(x), self.bits), generator=rng).float()
                secret = secret.to(lab.device)
                encoded = encoder(x, secret)
                logits = decoder(encoded)
                bit_accuracy = ((logits > 0) == (secret > 0.5)).float().mean().detach()
                decoded_step = torch.where(
                    bit_accuracy > 0.9, decoded_step.clamp(max=step), decoded_step
                )
                image_weight, bit_weight = self.weights(step, steps, decoded_step)
                bit_loss = functional.binary_cross_entropy_with_logits(logits, secret)
                adam.zero_grad(set_to_none=True)
                (image_weight * functional.mse_loss(encoded, x) + bit_weight * bit_loss).backward()
                adam.step()
                step += 1
            lab.log(epoch=epoch + 1, epochs=self.epochs, loss=bit_loss.item())
        secret = torch.randint(2, (self.bits,), generator=lab.rng("secret")).float()
        state = {**packed(encoder, "encoder"), **packed(decoder, "decoder"), "secret": secret}
        return state | self.quality(state, images[:SAMPLE])

    def weights(self, step: int, steps: int, decoded_step: Tensor) -> tuple[Tensor | float, float]:
        """Weights of the image's and the bits' loss; `decoded_step`: when the bits were right."""
        if self.variant == "a":
            early = step < max(1, round(0.1 * steps))
            return (0.0, 1.0) if early else (10.0 * (decoded_step < step), 1.5)
        progress = (step - decoded_step - 0.05 * steps) / max(1.0, 0.15 * steps)
        return 10 * progress.clamp(0, 1), 1.0

    def net(self, kind: Any, shape: tuple[int, ...]) -> Any:
        """The encoder or decoder of this variant."""
        return kind(shape, self.bits, residual=self.variant == "a")

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Hide the secret in every image."""
        shape, device = tuple(images.shape[1:]), images.device
        encoder = unpacked(lambda: self.net(Encoder, shape), state, "encoder", device)
        secret = state["secret"].to(device)
        return in_batches(images, lambda x: encoder(x, secret.expand(len(x), -1)))

    def quality(self, state: State, images: Tensor) -> dict[str, Tensor]:
        """How well the secret is hidden in uint8 images, and read from them.

        Returns:
            bit_accuracy: share of the bits the decoder reads, after rounding to uint8;
            residual: mean absolute change of a pixel, 0..255.
        """
        shape, device = tuple(images.shape[1:]), images.device
        encoded = self.stamp(images, split="test", state=state, rng=torch.Generator())
        decoder = unpacked(lambda: self.net(Decoder, shape), state, "decoder", device)
        secret = state["secret"].to(device) > 0.5
        with torch.inference_mode():
            bit_accuracies = [
                ((decoder(part.float().div(255)) > 0) == secret).float().mean(1)
                for part in encoded.split(500)
            ]
        residual = (encoded.float() - images.float()).abs().mean()
        return {"bit_accuracy": torch.cat(bit_accuracies).mean().cpu(), "residual": residual.cpu()}
