"""What every option that is a number must keep: it declares its range, and no other value is taken.

Options of all attacks, defenses, stages, recipes, model families and analyses are found and asked;
sentences speak to the author of an option.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest

from sweeper import models
from sweeper.analyses import looks
from sweeper.core import catalog, options
from sweeper.core.errors import SweepError
from sweeper.engine import recipes

Leaf = tuple[dict[str, float], Callable[[Any], Any]]
"""A number within a type: the ends of its range by pydantic's names; a number -> what holds it."""


def owners() -> dict[str, tuple[type, dict[str, Any]]]:
    """Each class that has options, with its axes, by what it is."""
    found: dict[str, tuple[type, dict[str, Any]]] = {"recipe": (recipes.Recipe, {})}
    for kind in ("attack", "defense"):
        found |= {
            f"{kind}-{name}": (catalog.method(kind, name), {}) for name in catalog.names(kind)
        }
    stages = [catalog.make("defense", name, {}).stage() for name in catalog.names("defense")]
    found |= {f"stage-{stage.name}": (type(stage), {}) for stage in stages if stage is not None}
    found |= {f"analysis-{name}": (looks.analysis(name), {}) for name in looks.names()}
    families = models.families().items()
    return found | {f"model-{name}": (family, {"name": name}) for name, family in families}


def leaves(hint: Any, held: Callable[[Any], Any] = lambda number: number) -> Iterator[Leaf]:
    """The numbers within a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (int, float):
        yield {}, held
    elif origin is Annotated and inner[0] in (int, float):
        bounds = [bound for extra in inner[1:] for bound in extra.metadata]
        ends = {
            end: getattr(b, end)
            for b in bounds
            for end in ("ge", "gt", "le", "lt")
            if hasattr(b, end)
        }
        yield ends, held
    elif origin in (tuple, list):
        count = 1 if inner[-1] is ... else len(inner)
        yield from leaves(inner[0], lambda number: held([number] * count))
    else:
        for part in inner:
            yield from leaves(part, held)


NUMBERS = [
    pytest.param(cls, axes, name, leaf, id=f"{what}-{name}-{place}")
    for what, (cls, axes) in owners().items()
    for name in options.names(cls)
    for place, leaf in enumerate(leaves(options._hints(cls)[name]))
]
"""Every number among the options of all classes."""


@pytest.mark.parametrize(("cls", "axes", "name", "leaf"), NUMBERS)
def test_a_number_out_of_its_range_is_refused(
    cls: type, axes: dict[str, Any], name: str, leaf: Leaf
) -> None:
    ends, held = leaf
    assert ends.keys() & {"ge", "gt"}, f"{name} has no least value: take a type of core/options.py"
    assert ends.keys() & {"le", "lt"}, (
        f"{name} has no largest value: take a type of core/options.py"
    )
    below = ends["ge"] - 1 if "ge" in ends else ends["gt"]
    above = ends["le"] + 1 if "le" in ends else ends["lt"]
    for value in (below, above, -1e30, 1e30, math.nan, math.inf, -math.inf, True):
        with pytest.raises(SweepError) as caught:
            options.construct(cls, {name: held(value)}, "it", **axes)
        said = str(caught.value)
        assert said.startswith(f"it: {name}: needs ") and f"not {value!r}" in said.replace("[", "")
        assert "\n" not in said, f"{name}: one sentence says why {value} is refused"


@pytest.mark.parametrize("cls", [cls for cls, _ in owners().values()], ids=list(owners()))
def test_every_default_lies_in_its_range(cls: type) -> None:
    for item in dataclasses.fields(cls):
        if item.name in options.names(cls) and item.default is not dataclasses.MISSING:
            assert options._convert(options._hints(cls)[item.name], item.default) == item.default


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_lies_in_the_ranges(name: str) -> None:
    patterns = {pattern for pattern, _, _ in recipes.RECIPES[name]}
    kinds = {pattern for _, pattern, _ in recipes.RECIPES[name]}
    for dataset, model in itertools.product(patterns, kinds):
        assert recipes.resolve(name, dataset, model).batch >= 1
