"""What is said of every name: its source, each option with its sentence, an entry that is valid."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator

import pytest
import yaml

from sweeper.cli import describe, listing, names
from sweeper.cli.describe import KEYS
from sweeper.core import catalog, options
from sweeper.engine import recipes
from sweeper.plan import spec
from tests.support import sweeps
from tests.support.commands import call

Capture = pytest.CaptureFixture[str]


described = functools.cache(describe.describe)


@pytest.fixture(autouse=True, scope="module")
def _no_networks() -> Iterator[None]:
    """No architecture is built to ask whether defenses run on it: docs/methods.md is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_victims", lambda: [])
        yield


def test_the_kinds_that_are_typed_are_those_that_are_described() -> None:
    assert tuple(KEYS) == names.KEYS


@pytest.mark.parametrize("kind", KEYS)
def test_a_page_has_all_of_every_name_of_its_kind(kind: str) -> None:
    for name in describe.known(kind):
        about = described(kind, name)
        page = describe.markdown(about)
        assert page.startswith(f"# {about.title}\n") and page.count("\n# ") == 0, name
        assert about.head and all(about.facts.values()), name
        for option in about.options:
            assert option.sentence, f"{name}: {option.name} has no sentence"
            assert option.range, f"{name}: {option.name} has no range"
            assert f"| `{option.name}` | " in page
        for line in re.findall(r"^\|.*", page, re.MULTILINE):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 5), f"{name}: {line}"
        for preset, values in about.presets.items():
            assert all(f"{option}: " in page for option in values), (name, preset)
        screen = describe.screen(about, 72)
        assert about.title.split()[0] in screen.splitlines()[0]
        long = [line for line in screen.splitlines() if len(line) > 72 and " " in line.strip()]
        assert not [line for line in long if not line.startswith("  ")], name


@pytest.mark.parametrize("kind", [kind for kind in KEYS if kind != "analysis"])
def test_the_entry_that_is_shown_is_valid(kind: str) -> None:
    for name in describe.known(kind):
        about = described(kind, name)
        shown = about.example
        if name != "imported":  # its folder is the user's
            spec.parse({**sweeps.SMALL, **shown})
        (entry,) = re.findall(r"```yaml\n(.*?)```", describe.markdown(about), re.DOTALL)
        assert yaml.safe_load(entry) == shown


def test_the_lines_of_a_recipe_say_what_it_comes_to() -> None:
    """Entries for one place are one line: no line between may change what they set."""
    for name in recipes.RECIPES:
        lines = describe.describe("recipe", name).presets
        for dataset in ("digits", "cifar10", "gtsrb", "tiny-imagenet", "imagenette", "other"):
            for model in ("tiny", "resnet18", "vit-tiny"):
                found = {}
                for place, values in lines.items():
                    data, _, net = place.removeprefix("then ").partition(" with ")
                    patterns = {"any data": "*"}.get(data, data), net or "*"
                    if all(map(recipes.fnmatch, (dataset, model), patterns)):
                        found |= values
                whole = recipes.resolve(name, dataset, model)
                assert options.construct(recipes.Recipe, found, "recipe") == whole


def test_what_a_method_inherits_and_does_not_use_is_no_option_of_it() -> None:
    for kind in ("attack", "defense"):
        for name in catalog.names(kind):
            told = [option.name for option in described(kind, name).options]
            assert told == options.names(catalog.method(kind, name))


def test_a_range_is_said_in_words() -> None:
    words = {
        options.Count: "a whole number of at least 1",
        options.Share: "a number from 0 to 1",
        options.PositiveShare | None: "a number above 0 and at most 1, or null",
        options.ProperShare: "a number of at least 0 and below 1",
        options.AnyNumber: "a number",
        tuple[options.Whole, ...]: "a list of whole numbers, each of at least 0",
        options.Some[options.Count]: "a list of whole numbers, each of at least 1 of 1 or more",
        bool: "true or false",
    }
    for hint, text in words.items():
        assert options.span(hint) == text


def test_describe(capsys: Capture) -> None:
    said = call(capsys, "describe", "none")
    assert "attack none: " in said.out and "defense none: " in said.out and not said.err
    said = call(capsys, "describe", "anp")
    assert "eps: auto" in said.out and "defense anp" in said.out
    assert said.err == "anp is also a recipe and an analysis: --kind recipe shows it\n"
    said = call(capsys, "describe", "anp", "--kind", "recipe", "--markdown")
    assert said.out.startswith("# Recipe anp") and not said.err
    (found,) = json.loads(call(capsys, "describe", "badnets", "--json").out)
    assert found == json.loads(
        json.dumps(dataclasses.asdict(describe.describe("attack", "badnets")))
    )
    dotted = call(capsys, "describe", "tests.support.faulty:Raises")
    assert dotted.code == 0 and "defense tests.support.faulty:Raises" in dotted.out
