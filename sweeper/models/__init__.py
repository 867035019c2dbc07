"""Network architectures: found by file name, built with options, initialised from a generator.

A new family is one new file in this folder, or in a folder appended to `sweeper.models.__path__`.
Importing this package does not import torch; the first question about a family does.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sweeper.core.errors import SweepError, unknown

if TYPE_CHECKING:
    import torch

    from sweeper.models.base import Family, Net

__all__ = ["build", "families", "family", "has_batchnorm", "least_batch"]


def families() -> dict[str, type[Family]]:
    """Return the family class of every architecture, by the architecture's name, sorted.

    Raises:
        SweepError: A file has not exactly one family, or two files provide the same name.
    """
    by_name: dict[str, type[Family]] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name == "base" or info.name.startswith("_"):
            continue
        cls = _family_of(importlib.import_module(f"{__name__}.{info.name}"))
        for name in cls.names:
            if name in by_name:
                raise SweepError(
                    f"models: {name!r} stands both in {by_name[name].__module__} and in "
                    f"{cls.__module__}; rename one of them in its `names`."
                )
            by_name[name] = cls
    return dict(sorted(by_name.items()))


def family(name: str, options: Mapping[str, Any]) -> Family:
    """Return the family of `name` with `options` checked and its defaults filled in.

    Args:
        name: An architecture, such as "resnet18".
        options: Options of that family by name, as they stand in a sweep file.

    Raises:
        SweepError: There is no such architecture or option, or a value has the wrong type.
    """
    known = families()
    if name not in known:
        raise SweepError(f"models: {unknown('model', name, known)}")
    from sweeper.core.options import construct

    return construct(known[name], options, f"models: {name}", name=name)


def build(
    name: str,
    options: Mapping[str, Any],
    *,
    classes: int,
    shape: tuple[int, ...],
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
    changes: Mapping[str, Any] | None = None,
) -> Net:
    """Build a network on the CPU; its weights depend on the arguments and `generator` alone.

    Args:
        name: An architecture, such as "resnet18".
        options: Options of its family; what is left out takes the family's default.
        classes: Number of classes.
        shape: Of what it is shown of one sample; (C, H, W) of an image.
        mean: Mean of each channel, in [0, 1], for the normaliser; empty: nothing is normalised.
        std: Standard deviation of each channel, in [0, 1], for the normaliser.
        generator: CPU generator; one number is drawn from it. torch's global random state is
            left as it was.
        changes: Options that replace those given; one the family does not have is left out.

    Raises:
        SweepError: Unknown name or option, the architecture does not fit the image size, or the
            file of `weights` does not fit the architecture.
    """
    import torch

    from sweeper.core.options import names

    known = names(families()[name]) if changes and name in families() else ()
    kept = {option: value for option, value in (changes or {}).items() if option in known}
    architecture = family(name, {**options, **kept})
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    # torch's initialisers draw from the global CPU generator: lend it our seed and put it back.
    # torch.manual_seed would also reseed every GPU, which fork_rng(devices=[]) does not restore.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        net = architecture.joined(*architecture.build(classes, shape), mean, std)
    if architecture.weights:
        from sweeper.models import _weights

        _weights.start(net, architecture.weights, name)
    return net


def has_batchnorm(
    name: str, options: Mapping[str, Any], classes: int, shape: tuple[int, ...]
) -> bool:
    """Return whether a network has BatchNorm layers; it is built without memory, once a machine.

    Raises:
        SweepError: Unknown name or option, or the architecture does not fit the image size.
    """
    return bool(_kept("has_batchnorm", family(name, options), classes, shape))


def least_batch(name: str, options: Mapping[str, Any], classes: int, shape: tuple[int, ...]) -> int:
    """Return how many samples a batch of a training must have: 2 where BatchNorm sees one value.

    A channel has but one where the last maps are of one pixel, as of a ResNet on images of 8
    pixels, and in the head of a PointNet.

    Raises:
        SweepError: Unknown name or option, or the architecture does not fit the image size.
    """
    return int(_kept("least_batch", family(name, options), classes, shape))


@functools.lru_cache(maxsize=256)
def _kept(question: str, architecture: Family, classes: int, shape: tuple[int, ...]) -> Any:
    """What `_undrawn` answers of a network, kept for later processes: it takes torch to ask."""
    from sweeper.core import code, kept, options, seeds
    from sweeper.models import _undrawn

    kind = type(architecture)
    asked = [question, architecture.name, options.canonical(architecture), classes, shape]
    made_by = [code.of(kind), code.of_modules(_undrawn.__name__)]
    made_by += map(metadata.version, ("torch", "torchvision"))
    file = kept.cache() / "networks" / f"{seeds.digest([asked, made_by])}.json"
    return kept.kept(file, lambda: getattr(_undrawn, question)(architecture, classes, shape))


def _family_of(module: ModuleType) -> type[Family]:
    """Return the one family a module defines."""
    from sweeper.models.base import Family

    subclasses = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Family)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(subclasses) != 1:
        raise SweepError(
            f"models: {module.__file__} defines {len(subclasses)} families, expected one subclass "
            "of Family; move the others to files of their own, or begin the file's name with '_'."
        )
    return subclasses[0]
