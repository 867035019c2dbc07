"""The one training loop, for victims and defenses alike, with hooks for methods that own a part.

Data lie whole on the device as uint8; a batch is an index, a crop and a cast. Nothing inside the
loop waits for the device: losses are summed there and read once an epoch.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from sweeper.core import seeds
from sweeper.core.errors import DivergedError
from sweeper.core.types import Samples
from sweeper.engine import augment, checkpoint, graphed
from sweeper.engine import task as tasks
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Batch as Batch  # what hooks are given: had from here too

VERSION = 1
"""Part of every trained cell's key: raised when the loop gives other numbers."""


class Hooks:
    """Places in the loop a method may own; every one does nothing by default."""

    keeps: ClassVar[tuple[str, ...]] = ()
    """Attributes of this class that carry something from an epoch to the next: a checkpoint holds
    them. Every class says so for itself, `()` where it has none; where one does not, the training
    leaves no checkpoints."""

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Before the first step."""

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """The optimiser of the loop, over the parameters that require a gradient."""
        return optimizer(model, recipe)

    def batch(self, batch: Batch, rng: Generator) -> Batch:
        """The batch before augmentation."""
        return batch

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """The batch after augmentation."""
        return batch

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loss of one step: the task's, with the recipe's label smoothing."""
        task = tasks.task(batch.task)
        return task.loss(task.forward(model, batch), batch, smoothing=recipe.label_smoothing)

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        """One update; `loss` runs the forward pass and may be called more than once."""
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    def stepped(self, model: nn.Module, step: int) -> None:
        """After an update: projections, masks."""

    def learned(self) -> dict[str, Tensor]:
        """After training: what the method learned beside the model, such as a trigger generator."""
        return {}

    def epoch(self, model: nn.Module, epoch: int) -> None:
        """After an epoch."""


_GIVEN = ("inputs", "labels")
"""What a batch has of every task's tensors by name."""
OWNED = ("optimizer", "loss", "step", "stepped", "epoch")
"""Hooks that work within the step, or may put other tensors in the place of the model's: a recorded
step would not know."""


def kept(hooks: Hooks) -> list[str] | None:
    """Return which attributes of hooks a checkpoint holds; None where a class does not say."""
    classes = [cls for cls in type(hooks).__mro__ if issubclass(cls, Hooks)]
    if not all("keeps" in vars(cls) for cls in classes):
        return None
    return [name for cls in classes for name in cls.keeps]


def owned(hooks: Hooks) -> list[str]:
    """Return the hooks among `OWNED` that are not the loop's own."""

    def code(of: Any, name: str) -> Any:
        found = getattr(of, name)
        return getattr(found, "__func__", found)

    return [name for name in OWNED if code(hooks, name) is not code(Hooks, name)]


def sgd(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return the recipe's SGD over the parameters that require a gradient."""
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=True,
    )


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over the parameters that require a gradient."""
    if recipe.optimizer == "sgd":
        return sgd(model, recipe)
    return torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.lr,
        betas=(recipe.momentum, 0.98),
        weight_decay=recipe.weight_decay,
    )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step (from 0), with `steps` steps an epoch."""
    epoch, warm = step // steps, recipe.warmup * steps
    if step < warm:
        return recipe.lr * min(1.0, (step + 1) / warm)
    if recipe.schedule == "linear":
        total = recipe.epochs * steps
        return recipe.lr * (total - step) / max(1.0, total - warm)
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * epoch / (recipe.period or recipe.epochs))) / 2
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** sum(epoch >= at for at in recipe.milestones)
    return recipe.lr


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="ignore")
        return device.type == "cpu" and ("avx512_bf16" in flags or "amx_bf16" in flags)
    return False


def precision(recipe: Recipe, device: torch.device) -> str:
    """Return what the recipe's precision comes to on a device: bf16 | fp32 | portable."""
    if recipe.precision == "auto":
        return "bf16" if native_bf16(device) else "fp32"
    if recipe.precision == "portable" and device.type != "cpu":
        return "fp32"
    return recipe.precision


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which this recipe's forward passes run on this device."""
    bf16 = precision(recipe, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def place(model: nn.Module, device: torch.device, rank: int) -> nn.Module:
    """Move a model to the device; where inputs have rank 4 (images), with its channels last."""
    if rank != 4:
        return model.to(device)
    placed: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def asked(model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Lay out, in place, a model that will only be asked about images: faster, with the same bits.

    On a CPU in bf16 its channels are last: answers take 0.45 of the time (tiny), 0.65 (ResNet-18)
    on a Xeon with AMX. Elsewhere, and in training, bits would change.
    """
    if device.type == "cpu" and precision(recipe, device) == "bf16":
        place(model, device, 4)


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, H, W, C] on the device, the layout batches are cut from."""
    return images.permute(0, 2, 3, 1).contiguous().to(device)


def augmented(images: Tensor, recipe: Recipe, rng: Generator) -> Tensor:
    """uint8 [B, H, W, C] -> float [B, C, H, W] in [0, 1], cropped, mirrored, rotated, erased."""
    cropped = augment.crop_flip(images, recipe.crop, recipe.flip, rng, recipe.crop_probability)
    out = augment.to_float(cropped)
    if recipe.rotation:
        out = augment.rotate(out, recipe.rotation, rng, recipe.rotation_probability)
    return augment.erase(out, recipe.erase, rng) if recipe.erase else out


def order(count: int, batch: int, rng: Generator) -> list[Tensor]:
    """Return one epoch's batches of indices; a last batch of one sample joins none (BatchNorm)."""
    batches = list(torch.randperm(count, generator=rng).split(batch))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def fit(
    model: nn.Module,
    data: Samples,
    recipe: Recipe,
    *,
    key: str,
    device: torch.device,
    hooks: Hooks | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    keeper: checkpoint.Keeper | None = None,
) -> list[float]:
    """Train `model` in place; it is left in eval mode.

    Args:
        model: On any device; moved to `device`.
        data: The training set, labels as given.
        recipe: Optimiser, schedule, augmentation, precision.
        key: Identity of this training; all its random draws derive from it.
        device: Where to train.
        hooks: The parts a method owns.
        progress: Called after each epoch with (epoch, epochs, mean loss).
        keeper: Keeps checkpoints of it, and may have one from which it goes on to the same bits.

    Returns:
        The mean loss of each epoch, of those before the checkpoint too.

    Raises:
        DivergedError: A loss became NaN or infinite.
    """
    hooks, rng = hooks or Hooks(), seeds.generator(key, "fit")
    place(model, device, data.inputs.ndim)
    task = tasks.of(data)
    tensors = task.load(data, device)
    hooks.start(model, device)
    optimizer = hooks.optimizer(model, recipe)
    update = updater(model, optimizer, recipe, hooks, device)
    losses: list[float] = []
    parts = {"model": model, "optimizer": optimizer, "rng": rng, "losses": losses}
    checkpoints = _resumed(keeper, parts, hooks, update, device)
    model.train()
    steps = len(order(len(data), recipe.batch, seeds.generator(key)))
    step = len(losses) * steps
    for epoch in range(len(losses), recipe.epochs):
        total = torch.zeros((), device=device)
        for index in torch.cat(order(len(data), recipe.batch, rng)).to(device).split(recipe.batch):
            graphed.set_rate(optimizer, learning_rate(recipe, step, steps))
            batch = _batch(tensors, index, epoch, step, data.task)
            batch = task.augmented(hooks.batch(batch, rng), recipe, rng)
            total += update(hooks.augmented(batch, rng))
            hooks.stepped(model, step)
            step += 1
        losses.append(total.item() / steps)
        if not math.isfinite(losses[-1]):
            raise DivergedError(f"the loss of epoch {epoch + 1} is {losses[-1]}")
        hooks.epoch(model, epoch)
        if progress:
            progress(epoch + 1, recipe.epochs, losses[-1])
        checkpoints.epoch(recipe.epochs - len(losses))
    model.eval()
    return losses


def _batch(tensors: Mapping[str, Tensor], index: Tensor, epoch: int, step: int, task: str) -> Batch:
    """The samples at `index` of what `Task.load` gave."""
    more = {name: value[index] for name, value in tensors.items() if name not in _GIVEN}
    shown = tensors["inputs"].index_select(0, index)
    return Batch(shown, tensors["labels"][index], index, epoch, step, task, more)


def _resumed(
    keeper: checkpoint.Keeper | None,
    parts: Mapping[str, Any],
    hooks: Hooks,
    update: Callable[[Batch], Tensor],
    device: torch.device,
) -> checkpoint.Checkpoints:
    """The checkpoints of a training, which is where the newest one left it, if there is one."""
    names = kept(hooks)
    if names is None or isinstance(update, graphed.Step):  # steps would be recorded anew, elsewhere
        keeper = None
    loop = SimpleNamespace(**parts, draws=checkpoint.Draws(device))
    changing = [(loop, name) for name in vars(loop)] + [(hooks, name) for name in names or ()]
    checkpoints = checkpoint.Checkpoints(keeper, changing)
    checkpoints.resume()
    return checkpoints


def updater(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    hooks: Hooks,
    device: torch.device,
) -> Callable[[Batch], Tensor]:
    """Return what updates the model on an augmented batch: its loss, valid until the next call."""
    update: Callable[[Batch], Tensor] = functools.partial(_step, model, optimizer, recipe, hooks)
    if graphed.asked(device) and not owned(hooks) and recipe.optimizer == "sgd":
        return graphed.Step(update, optimizer, device)
    return update


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    hooks: Hooks,
    batch: Batch,
) -> Tensor:
    """One update with the forward pass under autocast."""

    def loss() -> Tensor:
        with autocast(recipe, batch.inputs.device):
            return hooks.loss(model, batch, recipe)

    return hooks.step(model, optimizer, loss)


def draws(
    data: Samples, recipe: Recipe, steps: int, rng: Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs [B, ...] and labels [B] of `drawn`."""
    for batch in drawn(data, recipe, steps, rng, device):
        yield batch.inputs, batch.labels


def drawn(
    data: Samples, recipe: Recipe, steps: int, rng: Generator, device: torch.device
) -> Iterator[Batch]:
    """Yield `steps` augmented batches drawn with replacement, on the device."""
    task = tasks.of(data)
    tensors = task.load(data, device)
    for step in range(steps):
        index = torch.randint(len(data), (recipe.batch,), generator=rng).to(device)
        yield task.augmented(_batch(tensors, index, 0, step, data.task), recipe, rng)
