"""Old numbers after an edit: what runs again by itself, what is said, and `--fresh`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from attacks.badnets import BadNets
from defenses.fine_tuning import FineTuning
from sweeper.api import Sweep
from sweeper.core import catalog, code
from sweeper.core.errors import SweepError
from sweeper.run import fresh
from sweeper.store.artifacts import Store
from tests.support import sweeps

MINE = """
from dataclasses import dataclass
from defenses.base import Defense
from sweeper.core.types import Outcome
from own_helper import EPOCHS


@dataclass(frozen=True, kw_only=True)
class Mine(Defense):
    title = "Mine"
    paper = "test"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    lr: float = 0.1

    def defend(self, case):
        '''Fine-tune.'''
        model = case.fresh_model()
        case.fit(model, case.clean, epochs=EPOCHS, lr=self.lr)
        return Outcome(model=model.eval())
"""
ONE: dict[str, Any] = {"attacks": ["badnets"], "poison_rates": [0.2], "seeds": 1}

Run = Callable[..., dict[str, int]]


def run(path: Path, store: Path, *again: str) -> dict[str, int]:
    """A call of `sweeper run`: states of the cells it ran."""
    return Sweep.from_yaml(path).run(store=store, executor="inline", quiet=True, fresh=again)


def rows(path: Path, store: Path) -> pd.DataFrame:
    """What a table shows, by defense."""
    return Sweep.from_yaml(path).results(store=store).set_index("defense")


def other_code(path: Path, store: Path) -> list[str]:
    """What `sweeper plan` and `run` say of other code."""
    plan = Sweep.from_yaml(path).plan(store=store)
    return [fresh.sentence(item) for item in plan["other_code"]]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """A method beside the sweep file; edits one of its files as if in another process."""
    files = {"own_method.py": MINE, "own_helper.py": "EPOCHS = 3\n"}
    monkeypatch.syspath_prepend(str(tmp_path))

    def edit(name: str = "", old: str = "", new: str = "") -> None:
        if name:
            assert old in files[name]
            files[name] = files[name].replace(old, new)
        for file, text in files.items():
            (tmp_path / file).write_text(text)
            sys.modules.pop(file.removesuffix(".py"), None)
        catalog.method.cache_clear()

    edit()
    return edit


def test_an_edited_defense_runs_again_and_its_old_row_is_shown_no_more(
    own: Callable[..., None], tmp_path: Path
) -> None:
    path = sweeps.write(tmp_path, **ONE, defenses=["none", "own_method:Mine"])
    store = tmp_path / "store"
    assert run(path, store) == {"ok": 3}
    first = rows(path, store).loc["own_method:Mine"]
    assert run(path, store) == {}
    for name, old, new in (
        ("own_method.py", "'''Fine-tune.'''", "'''Fine-tunes all.'''  # a remark"),
        ("own_helper.py", "EPOCHS = 3", "# as published\nEPOCHS = 3"),
    ):
        own(name, old, new)
        assert run(path, store) == {}, "what does not run changes no key"
    own("own_method.py", "case.fit(model, case.clean, epochs=EPOCHS, lr=self.lr)", "pass")
    assert run(path, store) == {"ok": 1}, "the defense alone runs again"
    second = rows(path, store)
    edited, none = second.loc["own_method:Mine"], second.loc["none"]
    assert (edited.acc, edited.asr) == (none.acc, none.asr) != (first.acc, first.asr)
    assert edited.key != first.key and len(second) == 2
    assert edited.defense_options == first.defense_options == '{"lr": 0.1}'
    own("own_helper.py", "EPOCHS = 3", "EPOCHS = 4")
    assert run(path, store) == {"ok": 1}, "what it imports beside it counts"


def test_an_edited_attack_trains_its_victims_again(
    own: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "own_attack.py").write_text(
        "from attacks.badnets import BadNets\nclass Mine(BadNets):\n    title = 'Mine'\n"
    )
    path = sweeps.write(tmp_path, **{**ONE, "attacks": ["own_attack:Mine"]}, defenses=["none"])
    assert run(path, tmp_path / "store") == {"ok": 2}
    (tmp_path / "own_attack.py").write_text(
        "from attacks.badnets import BadNets\nclass Mine(BadNets):\n    title = 'Mine'\n"
        "    def stamp(self, images, **given):\n        return images.clone()\n"
    )
    sys.modules.pop("own_attack")
    own()
    assert run(path, tmp_path / "store") == {"ok": 2}, "the victim and its row"
    sys.modules.pop("own_attack")


def test_a_cell_whose_code_is_not_the_planned_one_fails(
    own: Callable[..., None], tmp_path: Path
) -> None:
    """Edited between the plan and the cell: in a worker that imports it late."""
    path = sweeps.write(tmp_path, **ONE, defenses=["own_method:Mine"])
    job = sweeps.prepared(path, tmp_path / "store")
    own("own_helper.py", "EPOCHS = 3", "EPOCHS = 4")
    from sweeper.run import driver

    counts = driver.execute(job, driver.inline, sweeps.Silent())
    assert counts == {"ok": 1, "failed": 1}
    (row,) = Sweep.from_yaml(path).results(store=tmp_path / "store").to_dict("records")
    assert "not the one the sweep was planned with" in row["error"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of three defenses on two victims."""
    folder = tmp_path_factory.mktemp("finished")
    changes = {"defenses": ["none", {"defense": "fine-tuning", "epochs": 1, "as": "ft"}, "clp"]}
    path = sweeps.write(folder, **{**ONE, "attacks": ["badnets", "blend"]}, **changes)
    assert run(path, folder / "store") == {"ok": 8}
    return folder


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """That sweep and its store, a copy of the test's own."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "small.yaml", tmp_path / "store"


def test_rows_and_victims_say_what_code_they_come_from(done: tuple[Path, Path]) -> None:
    path, place = done
    frame, store = Sweep.from_yaml(path).results(store=place), Store(str(place))
    for row in frame.to_dict("records"):
        said = json.loads(row["code"])
        assert set(said) == {"attack", "defense", "engine", "victim_engine"}
        assert all(re.fullmatch("[0-9a-f]{12}", value) for value in said.values())
        about = store.meta("train", row["victim"])["code"]
        assert about == {"attack": said["attack"], "engine": said["victim_engine"]}
    codes = frame["code"].map(json.loads)
    assert codes.map(lambda c: c["attack"]).nunique() == 2
    assert codes.map(lambda c: c["defense"]).nunique() == 3
    assert not other_code(path, place)


def edited(monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
    """Let the code of a class be another."""
    for name in ("of", "_now"):
        real = getattr(code, name)

        def found(*classes: type, real: Callable[..., str] = real) -> str:
            return "0" * 12 if cls in classes else real(*classes)

        monkeypatch.setattr(code, name, found)


def test_other_code_of_a_shipped_method_is_said(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = done
    with monkeypatch.context() as patch:
        edited(patch, FineTuning)
        assert other_code(path, store) == [
            "2 rows come from other code of fine-tuning under the same version: "
            "`sweep.run(fresh=['fine-tuning'])` runs them again"
        ]
        assert run(path, store, "fine-tuning") == {"ok": 2}
        assert other_code(path, store) == []
    assert len(other_code(path, store)) == 1, "the code of before is now the other one"
    with monkeypatch.context() as patch:
        edited(patch, BadNets)
        said = other_code(path, store)
        assert said[0] == (
            "1 victim comes from other code of badnets under the same version: "
            "`sweep.run(fresh=['badnets'])` trains it again, and runs all below"
        )
        assert run(path, store, "badnets") == {"ok": 4}
    with monkeypatch.context() as patch:
        patch.setattr(code, "engine", lambda family: "0" * 12)
        lines = other_code(path, store)
        again = "`sweep.run(fresh=['engine'])` runs them again"
        assert f"6 rows come from other code of the engine: {again}" in lines
        assert run(path, store, "engine") == {"ok": 8}


def test_victims_without_a_row_tell_of_other_code_too(
    done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another sweep is about to use them."""
    other = sweeps.write(tmp_path, **ONE, name="other", defenses=["fine-pruning"])
    edited(monkeypatch, BadNets)
    assert other_code(other, done[1])[0].startswith("1 victim comes from other code of badnets")


def test_rows_that_do_not_say_are_not_counted(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, place = done
    store = Store(str(place))
    for row in store.tables("small")[0].to_pylist():
        store.write_row({**row, "code": None})
    for item in ("train", "prepare"):
        for key in store.keys(item):
            store.put(
                item, key, {}, {k: v for k, v in store.meta(item, key).items() if k != "code"}
            )
    edited(monkeypatch, FineTuning)
    assert other_code(path, place) == []


def started(path: Path, store: Path) -> dict[tuple[str, str], str]:
    frame = Sweep.from_yaml(path).results(store=store)
    return {(r["attack"], r["defense"]): r["started_at"] for r in frame.to_dict("records")}


def again(path: Path, store: Path, *names: str) -> set[tuple[str, str]]:
    """Which rows of a finished sweep `--fresh` has written anew."""
    before = started(path, store)
    run(path, store, *names)
    after = started(path, store)
    assert before.keys() == after.keys() and not Store(str(store)).replacing()
    return {cell for cell in after if after[cell] != before[cell]}


def test_fresh_runs_what_it_names_and_all_below(done: tuple[Path, Path]) -> None:
    path, store = done
    every = set(started(path, store))
    fine = {("badnets", "ft"), ("blend", "ft")}
    victims = Store(str(store)).keys("train")
    assert again(path, store, "ft") == again(path, store, "fine-tuning") == fine
    assert again(path, store, "badnets") == {cell for cell in every if cell[0] == "badnets"}
    assert again(path, store, "clp", "blend") == {c for c in every if "clp" in c or "blend" in c}
    frame = Sweep.from_yaml(path).results(store=store)
    (row,) = frame[(frame.attack == "blend") & (frame.defense == "clp")].to_dict("records")
    assert again(path, store, row["key"][:9]) == {("blend", "clp")}
    assert again(path, store, row["victim"][:9]) == {c for c in every if "blend" in c}
    assert again(path, store, "all") == every
    assert again(path, store, "engine") == set(), "all of it is of today's"
    assert Store(str(store)).keys("train") == victims
    kept = [p.name for p in (store / "replaced").rglob("*") if "defend" in p.name]
    assert any(row["key"] in name for name in kept), "what was done before can be looked at"


def test_fresh_of_an_unknown_name_gives_the_near_matches(done: tuple[Path, Path]) -> None:
    path, store = done
    before = started(path, store)
    with pytest.raises(SweepError, match="'bednets', did you mean 'badnets'"):
        run(path, store, "bednets")
    with pytest.raises(SweepError, match="no cells of small have a key"):
        run(path, store, "0123456789ab")
    assert started(path, store) == before


@pytest.mark.parametrize(
    ("name", "moves"), [*(("badnets", n) for n in range(5)), *(("ft", n) for n in range(3))]
)
def test_fresh_stopped_while_it_moves_shows_nothing_old(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, moves: int, name: str
) -> None:
    path, store = done
    before, count = started(path, store), [moves]
    with monkeypatch.context() as patch:
        for method in ("_away", "_rows_away"):
            real = getattr(Store, method)

            def stop(self: Store, *given: Any, go: Any = real) -> None:
                if not count[0]:
                    raise KeyboardInterrupt
                count[0] -= 1
                go(self, *given)

            patch.setattr(Store, method, stop)
        with pytest.raises(KeyboardInterrupt):
            run(path, store, name)
    run(path, store)
    after = started(path, store)
    new = {cell for cell in before if before[cell] != after[cell]}
    assert new == {cell for cell in before if name in cell}
    assert not Store(str(store)).replacing()
    assert run(path, store) == {}


def test_fresh_stopped_while_it_runs_goes_on_with_a_plain_run(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = done
    before = started(path, store)
    from sweeper.run import cells

    ran, real = [], cells.run

    def once(*given: Any, **more: Any) -> Any:
        if ran:
            raise KeyboardInterrupt
        ran.append(given)
        return real(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "run", once)
        with pytest.raises(KeyboardInterrupt):
            run(path, store, "all")
    shown = Sweep.from_yaml(path).results(store=store)
    assert not len(shown), "no old row stands beside the new ones"
    assert run(path, store) == {"ok": 7}, "what was run anew stays"
    after = started(path, store)
    assert all(after[cell] != before[cell] for cell in before)


def test_other_sweeps_of_the_store_lose_the_rows_and_take_over_the_new(
    done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = done
    defenses = ["none", {"defense": "fine-pruning", "epochs": 1}]
    changes = {**ONE, "attacks": ["badnets", "blend"], "name": "other"}
    other = sweeps.write(tmp_path, **changes, defenses=defenses)
    assert run(other, store) == {"ok": 2}, "victims and `none` are shared"
    before, claims, real = started(other, store), [], fresh.claimed
    with monkeypatch.context() as patch:
        patch.setattr(fresh, "claimed", lambda s, name, r: claims.append(name) or real(s, name, r))
        run(path, store, "badnets")
    assert claims == ["other", "small"], "no driver may be at work on what is moved"
    assert set(started(other, store)) == {("blend", "none"), ("blend", "fine-pruning")}, (
        "a row does not outlive the victim it was measured on"
    )
    assert run(other, store) == {"ok": 1}, "`none` is taken over, fine-pruning runs"
    after = started(other, store)
    assert after["badnets", "none"] == started(path, store)["badnets", "none"]
    assert after["blend", "none"] == before["blend", "none"]


def test_a_refused_fresh_run_has_written_nothing(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver is at work on the sweep: its file stays its own, and nothing is moved."""
    path, store = done
    ledger, before = Store(str(store)), sweeps.frame(store)["started_at"]
    (name,) = ledger.sweeps()
    text = ledger.sweep_text(name)
    path.write_text(path.read_text(encoding="utf-8").replace("epochs: 1", "epochs: 2"))

    def taken(*_: Any) -> Any:
        raise SweepError("is being run by somebody else")

    monkeypatch.setattr(fresh, "claimed", taken)
    with pytest.raises(SweepError, match="somebody else"):
        run(path, store, "all")
    assert ledger.sweep_text(name) == text
    assert sweeps.frame(store)["started_at"].equals(before)
    assert not (store / "replaced").exists()
