"""What every option that is a number must keep: it declares its range, and no other value is taken.

Options of all attacks, defenses, stages, recipes, model families and analyses are found and asked;
sentences speak to the author of an option.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest

from defenses.base import Needs
from sweeper import data, models
from sweeper.analyses import looks
from sweeper.core import catalog, options
from sweeper.core.errors import SweepError
from sweeper.engine import recipes
from sweeper.plan import matrix
from tests.support import toys

Leaf = tuple[dict[str, float], Callable[[Any], Any]]
"""A number within a type: the ends of its range by pydantic's names; a number -> what holds it."""


EVERY = [(kind, name) for kind in ("attack", "defense") for name in catalog.names(kind)]


def owners() -> dict[str, tuple[type, dict[str, Any]]]:
    """Each class that has options, with its axes, by what it is."""
    found: dict[str, tuple[type, dict[str, Any]]] = {"recipe": (recipes.Recipe, {})}
    found |= {f"{kind}-{name}": (catalog.method(kind, name), {}) for kind, name in EVERY}
    stages = [catalog.make("defense", name, {}).stage() for name in catalog.names("defense")]
    found |= {f"stage-{stage.name}": (type(stage), {}) for stage in stages if stage is not None}
    found |= {f"analysis-{name}": (looks.analysis(name), {}) for name in looks.names()}
    found |= {f"data-{kind.__name__}": (kind, {"name": "it"}) for kind in data.sources()}
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


@pytest.mark.parametrize(("cls", "axes"), owners().values(), ids=owners())
def test_numbers_out_of_their_range_are_refused(cls: type, axes: dict[str, Any]) -> None:
    for name in options.names(cls):
        for leaf in leaves(options._hints(cls)[name]):
            check_ends(cls, axes, name, leaf)


def check_ends(cls: type, axes: dict[str, Any], name: str, leaf: Leaf) -> None:
    """A number of an option has two ends, and nothing beyond them is taken."""
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


METHODS = {f"{kind}-{name}": catalog.method(kind, name) for kind, name in EVERY}
HEIRS = [
    pytest.param(name, preset, id=f"{name}-{preset}")
    for name, preset in toys.variants("defense")
    if any(base in METHODS.values() for base in catalog.method("defense", name).__mro__[1:])
]
"""Defenses that inherit from another, with their presets."""


def read_by(cls: type) -> set[str]:
    """The attributes the code of a method reads; a function it overrides is not its code."""
    found: set[str] = set()
    lineage = {base.__name__: base for base in cls.__mro__}
    modules = {base.__module__ for base in cls.__mro__}
    for module in (name for name in modules if name.startswith(("attacks.", "defenses."))):
        for top in ast.parse(inspect.getsource(sys.modules[module])).body:
            own = lineage.get(top.name) if isinstance(top, ast.ClassDef) else None
            for part in top.body if own and isinstance(top, ast.ClassDef) else [top]:
                name = getattr(part, "name", "")
                if own and vars(own).get(name) is not inspect.getattr_static(cls, name, None):
                    continue
                if name != "__post_init__":
                    found |= {n.attr for n in ast.walk(part) if isinstance(n, ast.Attribute)}
    return found


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_every_option_has_an_effect(cls: type) -> None:
    unread = set(options.names(cls)) - read_by(cls)
    assert not unread, f"nothing reads {unread}: name what is inherited for nothing in `idle`"


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_an_option_without_effect_is_refused(cls: type) -> None:
    for name in getattr(cls, "idle", ()):
        default = cls.__dataclass_fields__[name].default
        assert options.construct(cls, {name: default}, "it") == cls(), "as rows have it"
        with pytest.raises(SweepError, match=f"it: {name}: has no effect"):
            options.construct(cls, {name: 1}, "it")


def noted(method: Callable[..., Any], called: set[str]) -> Callable[..., Any]:
    """The same method, which leaves its name."""

    def inner(*given: Any, **more: Any) -> Any:
        called.add(method.__name__)
        return method(*given, **more)

    return inner


@pytest.mark.parametrize(("name", "preset"), HEIRS)
def test_what_a_defense_does_otherwise_is_done_with_every_preset(
    name: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, called = catalog.method("defense", name), set[str]()
    own = {n for n, v in vars(cls).items() if inspect.isfunction(v) and not n.startswith("__")}
    for method in own:
        monkeypatch.setattr(cls, method, noted(vars(cls)[method], called))
    defense = toys.short("defense", name, toys.asked(preset))
    matrix.misfit(defense, Needs(10, toys.QUARTER, "tiny", True, 40), "tiny")
    toys.run(defense, epochs=1, clean=40, shape=toys.QUARTER)
    assert called == own, f"{own - called} is never reached: leave out the preset that sees to that"
