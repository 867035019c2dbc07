"""Methods by name: found, listed, built; every wrong name or option is answered in words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import attacks
import defenses
from attacks.badnets import BadNets
from attacks.base import Attack
from defenses.anp import ANP
from defenses.base import Case, Defense
from sweeper.core import catalog, options
from sweeper.core.errors import SweepError
from sweeper.core.types import Outcome

ROOMS = {"attack": attacks, "defense": defenses}
ATTACK = '''"""Corner dot (toy)."""

from dataclasses import dataclass

from attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class {name}(Attack):
    """A dot."""

    value: int = 255
    """Value of the dot."""

    title = "Dot"
    paper = "toy"
    presets = {{"grey": {{"value": 128}}}}

    def stamp(self, images, *, split, state, rng):
        out = images.clone()
        out[:, :, -1, -1] = self.value
        return out
'''
DEFENSE = '''"""Gives the model back (toy)."""

from dataclasses import dataclass

from defenses.base import Defense
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class {name}(Defense):
    """Nothing."""

    title = "Nothing"
    paper = "toy"
    kind = "repair"
    sees = frozenset({{"model"}})

    def defend(self, case):
        return Outcome(model=case.fresh_model())
'''

Drop = Callable[[str, str, str], None]


@pytest.fixture
def drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drop]:
    """Put a file into a folder beside a package's own."""
    for kind, package in ROOMS.items():
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
    dropped = []

    def put(kind: str, name: str, text: str) -> None:
        (tmp_path / kind / f"{name}.py").write_text(text)
        dropped.append((kind, name))

    yield put
    for kind, name in dropped:
        sys.modules.pop(f"{kind}s.{name}", None)
        if hasattr(ROOMS[kind], name):
            delattr(ROOMS[kind], name)


@pytest.mark.parametrize("kind", ROOMS)
def test_names_are_the_files_of_the_folder(kind: str) -> None:
    files = {
        path.stem.replace("_", "-")
        for path in Path(next(iter(ROOMS[kind].__path__))).glob("*.py")
        if not path.stem.startswith("_") and path.stem != "base"
    }
    found = catalog.names(kind)
    assert found == sorted(files) and "none" in found


@pytest.mark.parametrize(("kind", "text"), [("attack", ATTACK), ("defense", DEFENSE)])
def test_a_file_dropped_in_is_found_listed_and_built(drop: Drop, kind: str, text: str) -> None:
    assert "corner-dot" not in catalog.names(kind)
    drop(kind, "corner_dot", text.format(name="CornerDot"))
    drop(kind, "_shared", "raise RuntimeError")
    assert "corner-dot" in catalog.names(kind) and "shared" not in str(catalog.names(kind))
    cls = catalog.method(kind, "corner-dot")
    assert cls.__name__ == "CornerDot" and isinstance(catalog.make(kind, "corner-dot", {}), cls)
    (record,) = [r for r in catalog.describe(kind) if r["name"] == "corner-dot"]
    assert record["title"] == cls.title and record["paper"] == "toy"
    if kind == "attack":
        assert record["options"]["value"] == 255 and record["presets"] == ["grey"]
        assert catalog.make(kind, "corner-dot", {"preset": "grey"}).value == 128
    with pytest.raises(SweepError, match="did you mean 'corner-dot'"):
        catalog.method(kind, "corner-dots")


@pytest.mark.parametrize(("kind", "text"), [("attack", ATTACK), ("defense", DEFENSE)])
def test_a_file_defines_exactly_one_method(drop: Drop, kind: str, text: str) -> None:
    drop(kind, "twins", text.format(name="One") + "\n\n" + text.format(name="Two"))
    with pytest.raises(SweepError, match=r"twins\.py must define exactly one .*, it defines 2"):
        catalog.method(kind, "twins")
    drop(kind, "nothing", '"""Empty."""\n')
    with pytest.raises(SweepError, match="it defines 0"):
        catalog.method(kind, "nothing")


def test_imported_and_abstract_classes_do_not_count(drop: Drop) -> None:
    more = "\n\nfrom attacks.badnets import BadNets\n\n\nclass Half(Attack):\n    pass\n"
    drop("attack", "beside", ATTACK.format(name="Own") + more)
    assert catalog.method("attack", "beside").__name__ == "Own"


def test_names_are_listed_without_importing_the_files(drop: Drop) -> None:
    drop("attack", "explodes", "raise RuntimeError('imported')\n")
    assert "explodes" in catalog.names("attack")
    with pytest.raises(RuntimeError, match="imported"):
        catalog.method("attack", "explodes")


@dataclass(frozen=True, kw_only=True)
class Elsewhere(Defense):
    """A defense of a third party."""

    strength: int = 3
    """How strong."""

    title = "Elsewhere"
    paper = "toy"
    kind = "repair"
    sees = frozenset({"model"})

    def defend(self, case: Case) -> Outcome:
        return Outcome(model=case.fresh_model())


def test_a_class_is_named_by_module_and_class() -> None:
    assert catalog.method("attack", "attacks.badnets:BadNets") is BadNets
    made = catalog.make("defense", f"{__name__}:Elsewhere", {"strength": 5})
    assert made == Elsewhere(strength=5)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("attack", "no.such.module:X", "cannot import no.such.module:X"),
        ("attack", "attacks.badnets:BadNet", "cannot import"),
        ("attack", "attacks.badnets:GRID", "not a subclass of attacks.base.Attack"),
        ("attack", "defenses.anp:ANP", "not a subclass of attacks.base.Attack"),
        ("defense", "attacks.badnets:BadNets", "not a subclass of defenses.base.Defense"),
        ("attack", "attacks.base:Attack", "abstract"),
    ],
)
def test_a_class_that_will_not_do_is_refused(kind: str, name: str, words: str) -> None:
    with pytest.raises(SweepError, match=words):
        catalog.make(kind, name, {})


def test_an_entry_point_is_a_name_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="elsewhere", value=f"{__name__}:Elsewhere")
    monkeypatch.setattr(
        "sweeper.core.names.points", lambda kind: (point,) if kind == "defense" else ()
    )
    assert "elsewhere" in catalog.names("defense")
    assert "elsewhere" not in catalog.names("attack")
    assert catalog.make("defense", "elsewhere", {"strength": 4}).strength == 4


@pytest.mark.parametrize(
    ("kind", "asked", "near"),
    [
        ("attack", "badnet", "badnets"),
        ("attack", "blendd", "blend"),
        ("defense", "finetunning", "fine-tuning"),
        ("defense", "anp-orakel", "anp-oracle"),
    ],
)
def test_an_unknown_name_is_answered_with_the_near_ones_and_the_list(
    kind: str, asked: str, near: str
) -> None:
    with pytest.raises(SweepError) as caught:
        catalog.make(kind, asked, {})
    text = str(caught.value)
    assert f"no {kind} '{asked}', did you mean" in text and f"'{near}'" in text
    assert all(name in text for name in catalog.names(kind))
    with pytest.raises(SweepError) as far:
        catalog.make(kind, "zzzzzz", {})
    assert "did you mean" not in str(far.value) and near in str(far.value)


@pytest.mark.parametrize(
    ("kind", "name", "asked", "words"),
    [
        ("attack", "badnets", {"triger": "grid"}, "badnets: no option 'triger', did you mean"),
        ("attack", "badnets", {"target": 3}, "no option 'target'"),  # the sweep's axis
        ("attack", "badnets", {"preset": "d-bra"}, "badnets: no preset 'd-bra', did you mean"),
        ("attack", "badnets", {"size": "large"}, "badnets: size: .*'large'"),
        ("attack", "badnets", {"size": 2.5}, "badnets: size: .*2.5"),
        ("attack", "badnets", {"size": [3]}, r"badnets: size: .*\[3\]"),
        ("attack", "badnets", {"trigger": 3}, "badnets: trigger: .*3"),
        ("attack", "badnets", {"opacity": None}, "badnets: opacity: .*None"),
        ("defense", "anp", {"step": 3}, "anp: no option 'step', did you mean 'steps'"),
        ("defense", "anp", {"project": "perhaps"}, "anp: project: .*'perhaps'"),
        ("defense", "anp", {"preset": "fix"}, "no preset 'fix', did you mean 'fixed'"),
        ("defense", "none", {"lr": 1}, r"none: no option 'lr'\. Known: \(none\)"),
    ],
)
def test_a_wrong_option_is_answered_in_words(
    kind: str, name: str, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(SweepError, match=words):
        catalog.make(kind, name, asked)


def test_options_stand_above_the_preset_and_the_preset_above_defaults() -> None:
    assert catalog.make("defense", "anp", {"preset": "backdoorbench"}).lr == 0.01
    made = catalog.make("defense", "anp", {"preset": "backdoorbench", "lr": 0.5})
    assert (made.lr, made.batch, made.eps) == (0.5, 256, 0.4)
    asked = {"preset": "fixed"}
    catalog.make("defense", "anp", asked)
    assert asked == {"preset": "fixed"}, "what was asked is not changed"
    assert ANP.presets["fixed"] == {"threshold": 0.2, "eps": 0.4, "averaged": False}


def test_the_rule_defaults_to_the_attack_s_first(drop: Drop) -> None:
    text = ATTACK.format(name="Own").replace(
        'paper = "toy"', 'paper = "toy"\n    rules = ("clean", "all2one")'
    )
    drop("attack", "quiet", text)
    assert catalog.make("attack", "quiet", {}).rule == "clean"
    assert catalog.make("attack", "quiet", {"rule": "all2one"}).rule == "all2one"


def test_axes_are_set_by_the_sweep_and_stand_in_no_option() -> None:
    made = catalog.make("attack", "badnets", {}, target=4)
    assert made.target == 4
    assert "target" not in options.canonical(made) and "target" not in options.names(BadNets)


def test_equal_options_are_written_equally() -> None:
    one = catalog.make("defense", "anp", {"eps": 1, "threshold": 0})
    other = catalog.make("defense", "anp", {"eps": 1.0, "threshold": 0.0})
    assert repr(options.canonical(one)) == repr(options.canonical(other))


@pytest.mark.parametrize(("kind", "contract"), [("attack", Attack), ("defense", Defense)])
def test_every_method_is_described(kind: str, contract: type) -> None:
    records = catalog.describe(kind)
    assert [record["name"] for record in records] == catalog.names(kind)
    for record in records:
        cls = catalog.method(kind, record["name"])
        assert issubclass(cls, contract)
        assert set(record["options"]) == set(options.names(cls))
        assert record["presets"] == sorted(cls.presets)


def test_the_own_folder_is_searched_for_module_and_class_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [entry for entry in sys.path if entry]  # an empty one is the folder Python runs in
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        text = "from defenses.clp import CLP\nclass Own(CLP): pass\n"
        (tmp_path / name / f"own_{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", list(before))
    monkeypatch.setattr(catalog, "_BESIDE", [])
    monkeypatch.chdir(tmp_path / "here")
    catalog.make("defense", "clp", {})
    with pytest.raises(SweepError):
        catalog.make("defense", "own_here", {})
    assert sys.path == before
    for _ in range(2):
        assert catalog.make("defense", "own_here:Own", {}).title
    assert sys.path == [*before, str(tmp_path / "here")]
    catalog.look_in(str(tmp_path / "there"))
    assert catalog.make("defense", "own_there:Own", {}).title
    assert sys.path == [*before, str(tmp_path / "here"), str(tmp_path / "there")]


def test_an_option_that_was_renamed_keeps_its_keys_and_old_files_their_meaning() -> None:
    now = catalog.make("defense", "strip", {"image_weight": 0.5})
    assert catalog.make("defense", "strip", {"alpha": 0.5}) == now
    written = options.canonical(now)
    assert written["alpha"] == 0.5 and "image_weight" not in written
    assert options.construct(type(now), written, "strip") == now
    with pytest.raises(SweepError, match="alpha is the former name of image_weight"):
        catalog.make("defense", "strip", {"alpha": 0.5, "image_weight": 0.5})


@pytest.mark.parametrize("name", catalog.names("attack"))
def test_an_attack_made_by_hand_takes_the_first_of_its_rules(name: str) -> None:
    cls = catalog.method("attack", name)
    assert cls().rule == cls.rules[0]


def test_a_method_ships_where_all_its_code_does() -> None:
    first = "tests.support.staged:First"
    assert catalog.ships(catalog.make("defense", "anp", {}))
    assert not catalog.ships(catalog.make("defense", first, {}))
    assert catalog.ships(catalog.make("defense", "retrain", {"detect": "scan"}))
    assert not catalog.ships(catalog.make("defense", "retrain", {"detect": first}))
