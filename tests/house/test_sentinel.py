"""No defense can reach a test image, a trigger, a role or the target through its case.

Real cells of a real sweep make the cases; then every object that can be reached from a case is
looked at: attributes, items, closures, defaults. Modules, classes and module globals are left out:
any Python code can import those.
"""

from __future__ import annotations

import functools
import gc
import math
import types
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.base import Attack
from defenses.base import SEES, Case
from sweeper.core import catalog
from sweeper.core.types import Cell, ImageSet, Poisoned, Role, Triggered
from sweeper.data import Dataset
from sweeper.plan.sweep import Sweep
from sweeper.run import driver
from sweeper.run.job import Job
from sweeper.run.material import Context
from sweeper.run.walk import Walk
from sweeper.run.work import Work
from sweeper.store.artifacts import Store
from tests.support import sweeps, toys

DEFENSES = catalog.names("defense")
ATTACKS = ["badnets", "blend", {"attack": "badnets", "preset": "d-br-all2all"}]
SECRET = (Attack, Poisoned, Triggered, Cell, Dataset, Work)
"""Kinds of objects that hold, or lead to, what a defense must not see."""
SKIPPED = (types.ModuleType, type, types.FrameType, types.CodeType, types.BuiltinFunctionType)
TARGET = 7
"""Target label of the sweep; no other number of it is called a target."""


class Well(sweeps.Silent):
    """A watcher that wants all to end well."""

    def finished(self, cell: Cell, result: Any) -> None:
        assert result["status"] == "ok", result["error"]


def declared(store: Path, defenses: Sequence[Any]) -> Job:
    """A sweep of ATTACKS on 300 digits, one epoch each."""
    values = {
        "name": "sentinel",
        "datasets": [{"dataset": "digits", "train_size": 300, "test_size": 60}],
        "models": [{"model": "tiny", "width": 4}],
        "attacks": ATTACKS,
        "poison_rates": [0.2],
        "targets": [TARGET],
        "clean_budgets": [30],
        "defenses": defenses,
        "recipe": {"epochs": 1},
    }
    sweep = Sweep.model_validate(values)
    return driver.prepare(sweep, Context(store=str(store), sweep=sweep.name, device="cpu"))


@dataclass(frozen=True)
class Secrets:
    """What must not be reachable, as rows of bytes and as addresses of storages."""

    rows: frozenset[bytes]
    """Each test image and triggered image, less what equals a training image."""
    roles: tuple[Tensor, ...]
    """Roles, and the positions of poisoned samples."""
    tensors: tuple[Tensor, ...]
    """Whose storage must not be shared; kept alive, so that no address is used twice."""
    pixels: int
    """Values of one image."""


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Work]:
    """(attack, defense) -> the cell of that defense at work; victims are trained, nothing more."""
    store = tmp_path_factory.mktemp("sentinel")
    driver.execute(declared(store, ["none"]), driver.inline, Well())
    plan = declared(store, DEFENSES).plan
    found = {}
    for cell in plan.cells.values():
        if cell.kind in ("defend", "stage"):
            above = Walk(plan.cells, plan.cells).ancestors(cell.key)
            context = Context(store=str(store), sweep="sentinel", device="cpu")
            work = Work(cell, above, context, Store(str(store)), None)
            name = cell.axes.get("defense") or f"stage {cell.axes['stage']}"
            found[cell.axes["attack"], name] = work
    return found


def cases(work: Work) -> Case:
    """The case the cell itself would make."""
    if work.cell.kind == "stage":
        stage = work.defense.stage()
        assert stage is not None
        return work.case(stage.sees, {})
    return work.case(work.defense.sees, {})


def secrets(work: Work) -> Secrets:
    """What the defense of this cell must not reach."""
    test, hit, poisoned = work.dataset.test, work.triggered(), work.poisoned()
    pixels = test.images[0].numel()
    known = rows(work.dataset.train.images, pixels) | rows(poisoned.images, pixels)
    hidden = rows(test.images, pixels) | rows(hit.images, pixels)
    chosen = (poisoned.role == int(Role.POISON)).nonzero().flatten()
    tensors = (test.images, test.labels, hit.images, hit.labels, hit.counts, poisoned.role)
    return Secrets(
        frozenset(hidden - known),
        (poisoned.role, chosen),
        tensors,
        pixels,
    )


def rows(images: Tensor, pixels: int) -> set[bytes]:
    """Each image as bytes, whatever the layout and scale it is kept in."""
    images = images.detach()
    if images.is_floating_point() and images.numel() and float(images.max()) <= 1:
        images = images * 255
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    whole = images.double().round().clamp(0, 255).to(torch.uint8)
    return {row.numpy().tobytes() for row in whole.reshape(-1, pixels)}


def reachable(root: Any) -> Iterator[tuple[Any, str]]:
    """Every object reachable from `root`, with the way to it."""
    seen: set[int] = set()
    kept, todo = [], [(root, type(root).__name__)]
    while todo:
        item, way = todo.pop()
        if id(item) in seen or isinstance(item, SKIPPED):
            continue
        seen.add(id(item))
        kept.append(item)  # so that no address is used twice
        yield item, way
        todo += [(below, f"{way} > {type(below).__name__}") for below in neighbours(item)]


def neighbours(item: Any) -> list[Any]:
    """What one object leads to; of a function its closure and defaults, not its globals."""
    if isinstance(item, types.FunctionType):
        cells = [cell.cell_contents for cell in item.__closure__ or () if filled(cell)]
        return [*cells, item.__defaults__, item.__kwdefaults__, item.__dict__]
    if isinstance(item, weakref.ref):
        return [item()]
    if isinstance(item, Tensor):
        return [item.grad, item._base, *vars(item).values()]
    return gc.get_referents(item)


def filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not ...
    except ValueError:
        return False


def leaks(case: Case, hidden: Secrets) -> list[str]:
    """One line for everything reachable from the case that a defense must not see."""
    found = []
    for item, way in reachable(case):
        if isinstance(item, SECRET):
            found.append(f"{type(item).__name__}: {way}")
        elif isinstance(item, Tensor):
            found += [f"{what}: {way}" for what in exposed(item, hidden)]
        elif isinstance(item, np.ndarray) and item.dtype.kind in "uifb":
            found += [f"{what}: {way}" for what in exposed(torch.from_numpy(item), hidden)]
        elif isinstance(item, dict) and {"target", "poison_rate"} & set(map(str, item)):
            found.append(f"the attack's settings: {way}")
    return found


def exposed(tensor: Tensor, hidden: Secrets) -> list[str]:
    """What a tensor gives away."""
    found = []
    secret = {t.untyped_storage().data_ptr() for t in hidden.tensors}
    if tensor.numel() and tensor.untyped_storage().data_ptr() in secret:
        found.append("storage of a secret tensor")
    if any(t.shape == tensor.shape and bool((t == tensor).all()) for t in hidden.roles):
        found.append("roles")
    if tensor.numel() and tensor.numel() % hidden.pixels == 0 and tensor.ndim > 1:
        if rows(tensor, hidden.pixels) & hidden.rows:
            found.append("test or triggered images")
    return found


def test_no_defense_reaches_test_data_triggers_roles_or_the_target(
    works: dict[tuple[str, str], Work],
) -> None:
    walked = set()
    for (attack, name), work in works.items():
        case = cases(work)
        if "oracle" not in work.defense.sees:
            assert not leaks(case, secrets(work)), f"{name} against {attack}"
            assert "oracle" not in case._given
            walked.add(name)
    assert walked >= {name for name in DEFENSES if not name.endswith("-oracle")}


def test_a_defense_that_sees_all_but_the_oracle_reaches_no_secret(
    works: dict[tuple[str, str], Work],
) -> None:
    """Whatever future defenses declare, the cell gives no more than the words say."""
    for (attack, name), work in works.items():
        case = work.case(frozenset(SEES) - {"oracle"}, {})
        assert set(case._given) == {"model", "clean", "train", "queries"}
        assert not leaks(case, secrets(work)), f"{name} against {attack}"
        assert type(case.train) is ImageSet


def test_an_oracle_reaches_the_test_set_through_its_oracle_alone(
    works: dict[tuple[str, str], Work],
) -> None:
    found = 0
    for work in works.values():
        if "oracle" in work.defense.sees:
            case, found = cases(work), found + 1
            assert leaks(case, secrets(work)), "the walk must see what an oracle holds"
            del case._given["oracle"]
            assert not leaks(case, secrets(work)), "an oracle may hold test data in `oracle` alone"
    assert found


def test_the_walk_sees_all_a_case_holds(works: dict[tuple[str, str], Work]) -> None:
    work = works["badnets", "none"]
    case = work.case(frozenset({"model", "clean", "train"}), {"stage": torch.ones(3)})
    met = {id(item) for item, _ in reachable(case)}
    held = [case._given["train"].images, case.clean.labels, case.state["stage"]]
    held += [*case._given["model"].parameters(), *case._given["model"].buffers(), case.recipe]
    assert all(id(item) in met for item in held)


def leak_by_closure(secret: Any) -> Any:
    return lambda: secret


def leak_by_default(secret: Any) -> Any:
    def ask(found: Any = secret) -> Any:
        return found

    return ask


def leak_by_method(secret: Any) -> Any:
    class Holder:
        def __init__(self) -> None:
            self.kept = {"deep": [secret]}

        def ask(self) -> None:
            pass

    return Holder().ask


WAYS = {
    "value": lambda secret: secret,
    "closure": leak_by_closure,
    "default": leak_by_default,
    "method": leak_by_method,
    "partial": lambda secret: functools.partial(print, secret),
    "cache": lambda secret: _warm(functools.lru_cache(lambda: secret)),
}


def _warm(cached: Any) -> Any:
    cached()
    return cached


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "what",
    ["attack", "work", "poisoned", "triggered", "cell", "test", "copy", "floats", "roles", "index"],
)
def test_a_leak_is_caught(works: dict[tuple[str, str], Work], way: str, what: str) -> None:
    """The walk above is worth something only if it finds what is hidden on purpose."""
    work = works["badnets", "none"]
    test, poisoned = work.dataset.test, work.poisoned()
    secret = {
        "attack": lambda: work.attack,
        "work": lambda: work,
        "poisoned": lambda: poisoned,
        "triggered": work.triggered,
        "cell": lambda: work.cell,
        "test": lambda: test.images[3:9],
        "copy": lambda: ImageSet(test.images[5:6].clone(), test.labels[:1].clone(), test.classes),
        "floats": lambda: work.triggered().images.permute(0, 2, 3, 1).float().div(255),
        "roles": lambda: poisoned.role.bool(),
        "index": lambda: (poisoned.role == 1).nonzero().flatten().numpy(),
    }[what]()
    hidden, case = secrets(work), cases(work)
    assert not leaks(case, hidden)
    case._given = {**case._given, "more": WAYS[way](secret)}
    assert leaks(case, hidden)


def test_the_training_set_is_not_in_an_order_that_tells_roles(
    works: dict[tuple[str, str], Work],
) -> None:
    """The poisoned samples do not stand together at one end of the set a defense is given."""
    for (attack, name), work in works.items():
        if name == "none":
            poisoned = (work.poisoned().role == int(Role.POISON)).nonzero().flatten()
            count = len(work.attacker)
            middle = float(poisoned.double().mean()) / count
            assert 0.3 < middle < 0.7 and len(poisoned) > 20, attack


def test_the_log_of_an_inline_run_holds_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a case reports progress with must not lead to the cell and so to the target."""
    found: list[str] = []
    honest = Work.case

    def spied(self: Work, *given: Any) -> Case:
        case = honest(self, *given)
        found.extend(leaks(case, secrets(self)))
        return case

    monkeypatch.setattr(Work, "case", spied)
    driver.execute(declared(tmp_path, ["none"]), driver.inline, Well())
    assert not found


def test_toy_cases_keep_the_same_promise() -> None:
    """The cases the contract suite makes by hand hold no records of the attacker either."""
    poisoned = toys.poisoned_set()
    hidden = Secrets(frozenset(), (poisoned.role,), (poisoned.role,), math.prod(toys.QUARTER))
    case = toys.case(frozenset({"model", "clean", "train", "queries"}))
    assert not leaks(case, hidden)
    assert leaks(toys.case(frozenset(), state={"roles": poisoned.role}), hidden)
