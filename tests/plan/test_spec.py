"""A sweep file: every mistake is one sentence with its line, all of them at once; valid forms."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.cli import app
from sweeper.core import catalog, rows
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts
from sweeper.plan import matrix, source, spec, view
from tests.support import beyond
from tests.support.places import ROOT
from tests.support.written import loaded, refused, text

ATTACK = "\n  - attack: badnets\n    "
"""An entry over several lines: the attack stands in line 5, what follows in line 6."""

MISTAKES = [
    # (name, file, line, all of these are said)
    ("unknown key", text("seedz: 3"), 6, ["no key 'seedz'", "did you mean 'seeds'?"]),
    ("key that is a number", text("1: 3"), 1, ["no key '1'", "Known: attacks"]),
    ("missing key", "name: study\nmodels: [tiny]\nattacks: [none]\ndefenses: [none]\n", 1,
     ["datasets: is missing"]),
    ("unknown attack", text(attacks="\n  - none\n  - badnet"), 6,
     ["no attack 'badnet'", "did you mean 'badnets'", "Known: "]),
    ("unknown defense", text(defenses="[fine-tunning]"), 5,
     ["no defense 'fine-tunning'", "did you mean 'fine-tuning'"]),
    ("unknown model", text(models="[resnet-18]"), 3, ["no model 'resnet-18': write resnet18"]),
    ("impossible name of a data set", text(datasets="[my/data]"), 2,
     ["'my/data' is no name of a data set", "`path`"]),
    ("unknown option", text(attacks=f"{ATTACK}opacityy: 0.5"), 6,
     ["badnets: no option 'opacityy'", "did you mean 'opacity'", "Known: "]),
    ("what is an option of the recipe", text("epochs: 5"), 6,
     ["epochs: belongs into the recipe: write `recipe: {epochs: 5}`"]),
    ("what is one, beside a recipe", text("recipe: d-br\nlr: 0.1"), 7,
     ["lr: belongs into the recipe: write `recipe: {base: d-br, lr: 0.1}`"]),
    ("another word for one", text("batch_size: 64"), 6, ["write `recipe: {batch: 64}`"]),
    ("what cells are given", text("gpus: 1"), 6,
     ["gpus: belongs into the resources: write `resources: {gpus: 1}`"]),
    ("what the table has", text("values: [acc]"), 6, ["write `table: {values: [acc]}`"]),
    ("one attack", text("attack: blend"), 6, ["attack: write `attacks: [blend]`"]),
    ("one rate", text("poison_rate: 0.05"), 6, ["poison_rate: write `poison_rates: [0.05]`"]),
    ("several, in the singular", text("seed: [1, 2]"), 6, ["seed: write `seeds: [1, 2]`"]),
    ("another word for rates", text("pratio: 0.1"), 6, ["pratio: write `poison_rates: [0.1]`"]),
    ("what is an option of an entry", text("opacity: 0.5"), 6,
     ["opacity: belongs into an entry: write `attacks: [{attack: badnets, opacity: 0.5}]`"]),
    ("one of an entry that has others", text("tau: 0.1", defenses="[{defense: anp, steps: 9}]"), 6,
     ["write `defenses: [{defense: anp, steps: 9, tau: 0.1}]`"]),
    ("what is one in a scale", text("scales:\n  small:\n    epochs: 1"), 8,
     ["scales.small: epochs: belongs into the recipe: write `recipe: {epochs: 1}`"]),
    ("rate in percent", text("poison_rates: [10%]"), 6,
     ["poison_rates: '10%' is text here: write 0.1"]),
    ("budget in percent", text("clean_budgets: [0.5 %]"), 6,
     ["clean_budgets: '0.5 %' is text here: write 0.005"]),
    ("reserve in percent", text("reserve: 20%"), 6, ["reserve: '20%' is text here: write 0.2"]),
    ("option in percent", text(attacks=f"{ATTACK}opacity: 20%"), 6,
     ["badnets: opacity: '20%' is text here: write 0.2"]),
    ("rate of percents", text("poison_rates: [10]"), 6,
     ["10 is no poison rate, did you mean 0.1? It needs a share above 0 and at most 1"]),
    ("abbreviation of a defense", text(defenses="[none, ft]"), 5,
     ["defenses: no defense 'ft': write fine-tuning (FT)"]),
    ("option of the wrong type", text(attacks=f"{ATTACK}opacity: high"), 6,
     ["badnets: opacity: needs a number, not 'high'"]),
    ("truth value for a number", text(attacks=f"{ATTACK}size: yes"), 6,
     ["badnets: size: needs a whole number, not True"]),
    ("option that is no number", text(attacks=f"{ATTACK}opacity: .nan"), 6,
     ["badnets: opacity: needs a number, not nan"]),
    ("impossible value", text(attacks=f"{ATTACK}opacity: 3"), 6,
     ["badnets: opacity: needs a number of at most 1, not 3"]),
    ("unknown preset", text(attacks=f"{ATTACK}preset: d-brr"), 6,
     ["badnets: no preset 'd-brr'", "did you mean 'd-br'"]),
    ("preset that is no name", text(attacks=f"{ATTACK}preset: [d-br]"), 5,
     ["preset: needs the name of one, not ['d-br']"]),
    ("unknown option of a model", text(models="[{model: resnet18, widht: 8}]"), 3,
     ["resnet18: no option 'widht'", "did you mean 'width'"]),
    ("unknown option of a data set", text(datasets="\n  - dataset: digits\n    train_sise: 9"), 4,
     ["digits: no option 'train_sise'", "did you mean 'train_size'?"]),
    ("rate 0", text("poison_rates:\n  - 0.1\n  - 0"), 8,
     ["poison_rates: 0 is no poison rate: needs a share above 0 and at most 1"]),
    ("rate above 1", text("poison_rates: [1.5]"), 6, ["poison_rates: 1.5 is no poison rate"]),
    ("negative rate", text("poison_rates: [-0.1]"), 6, ["poison_rates: -0.1 is no poison rate"]),
    ("rate that is no number", text("poison_rates: [ten]"), 6,
     ["poison_rates: needs a number, not 'ten'"]),
    ("rate of one attack", text(attacks=f"{ATTACK}poison_rates: [2]"), 6,
     ["attacks.poison_rates: 2 is no poison rate"]),
    ("scalar rate of one attack", text(attacks=f"{ATTACK}poison_rates: 0.1"), 6,
     ["attacks.poison_rates: needs a list, such as [a, b], not 0.1"]),
    ("no rate of one attack", text(attacks=f"{ATTACK}poison_rates: []"), 6,
     ["attacks.poison_rates: needs at least one value"]),
    ("empty list", text(attacks="[]"), 4, ["attacks: needs at least one value"]),
    ("nothing where a list belongs", text(attacks=""), 4,
     ["attacks: needs a list, such as [a, b], not None"]),
    ("scalar where a list belongs", text(datasets="digits"), 2,
     ["datasets: needs a list, such as [a, b], not 'digits'"]),
    ("scalar rates", text("poison_rates: 0.1"), 6,
     ["poison_rates: needs a list, such as [a, b], not 0.1"]),
    ("entry that is a number", text(models="[3]"), 3,
     ["needs a name, or a mapping with `model: NAME` and options, not 3"]),
    ("entry without its name", text(attacks="[{badnets: {opacity: 1}}]"), 4,
     ["an entry with options needs `attack: NAME`"]),
    ("label that is none", text(attacks="[{attack: badnets, as: []}]"), 4,
     ["as: needs a label, not []"]),
    ("label that is a truth value", text(attacks="[{attack: badnets, as: off}]"), 4,
     ["as: needs a label, not False; quote "]),
    ("label that is nothing", text(models="[{model: tiny, as: null}]"), 3,
     ["as: needs a label, not None; quote "]),
    ("label of spaces", text(defenses="[none, {defense: anp, as: '  '}]"), 5,
     ["as: needs a label, not '  '"]),
    ("label of two lines", text(attacks='[{attack: badnets, as: "a\\nb"}]'), 4,
     ["label 'a\\nb' has a character that breaks a line"]),
    ("label with a tab", text(datasets='[{dataset: digits, as: "a\\tb"}]'), 2,
     ["label 'a\\tb' has"]),
    ("label with a separator of lines", text(attacks='[{attack: badnets, as: "a\\u2028b"}]'), 4,
     ["label 'a\\u2028b' has a character"]),
    *[(f"label that begins with {sign}", text(defenses=f"[{{defense: anp, as: '{sign}1'}}]"), 5,
       [f"label '{sign}1' is a formula to a spreadsheet: write `as: LABEL` that begins with"])
      for sign in "=+-@"],
    ("label that is a negative number", text(attacks="[{attack: badnets, as: -1}]"), 4,
     ["label '-1' is a formula"]),
    ("label that is a name", text(datasets="['@mine']"), 2,
     ["datasets: label '@mine' is a formula to a spreadsheet: write `as: LABEL`"]),
    ("label of a chain", text(defenses="[{detect: {defense: scan, as: '=a'}, then: d-br}]"), 5,
     ["label '=a' is a formula"]),
    ("seeds 0", text("seeds: 0"), 6, ["seeds: needs a count above 0, or a list", "not 0"]),
    ("seeds in words", text("seeds: three"), 6, ["seeds: needs a count above 0", "'three'"]),
    ("seed that is text", text("seeds: [0, a]"), 6, ["seeds: needs a whole number, not 'a'"]),
    ("seed no row can hold", text(f"seeds: [1, {10**20}]"), 6,
     [f"seeds: needs a number of at most {2**63 - 1}, not {10**20}"]),
    ("seed without brackets", text(f"seeds: {10**20}"), 6,
     ["seeds: 100000000000000000000 are too many: needs a count up to 10000, or a list: [1000"]),
    ("target no row can hold", text(f"targets: [{2**63}]"), 6, ["targets: needs a number of at m"]),
    ("budget no row can hold", text(f"clean_budgets: [0.05, {2**63}]"), 6, ["no clean budget"]),
    ("budget beyond all", text(f"clean_budgets: [{10**400}]"), 6, ["00 is no clean budget: needs"]),
    ("threads no row can hold", text(f"resources: {{cpus: {2**63}}}"), 6,
     ["resources.cpus: needs a number of at most"]),
    ("negative seed", text("seeds: [-1]"), 6, ["seeds: needs a number of at least 0, not -1"]),
    ("seed twice", text("seeds: [1, 1]"), 6, ["seeds: 1 stands twice; remove one"]),
    ("negative target", text("targets: [-1]"), 6, ["targets: needs a number of at least 0"]),
    ("name with a slash", text(name="a/b"), 1, ["name: needs letters, digits", "'a/b'"]),
    ("name that climbs", text(name="../x"), 1, ["name: needs letters, digits"]),
    ("name that is a number", text(name="3"), 1, ["name: needs text, not 3"]),
    ("budget 0", text("clean_budgets: [0]"), 6, ["clean_budgets: 0 is no clean budget"]),
    ("budget 1.5", text("clean_budgets: [1.5]"), 6,
     ["1.5 is no clean budget: needs a share between 0 and 1, such as 0.05, or a whole number"]),
    ("budget 1.0", text("clean_budgets: [1.0]"), 6, ["clean_budgets: 1.0 is no clean budget"]),
    ("negative budget", text("clean_budgets: [-5]"), 6, ["clean_budgets: -5 is no clean budget"]),
    ("infinite budget", text("clean_budgets: [.inf]"), 6, ["clean_budgets: inf is no clean"]),
    ("budget twice", text("clean_budgets: [500, 500.0]"), 6, ["clean_budgets: 500 stands twice"]),
    ("unknown recipe", text("recipe: d-bt"), 6, ["recipe: no recipe 'd-bt'", "'d-br'"]),
    ("unknown base", text("recipe:\n  base: d-bt\n  epochs: 3"), 6, ["recipe: no recipe 'd-bt'"]),
    ("unknown setting of a recipe", text("recipe:\n  base: fip\n  epochz: 3"), 8,
     ["recipe: no option 'epochz'", "did you mean 'epochs'?"]),
    ("value of a recipe", text("recipe:\n  lr: fast\n  epochs: 3"), 7,
     ["recipe: lr: needs a number, not 'fast'"]),
    ("impossible value of a recipe", text("recipe:\n  lr: 0.1\n  epochs: 0"), 8,
     ["recipe: epochs: 0 is not a whole number >= 1"]),
    ("recipe that is a list", text("recipe: [d-br]"), 6,
     ["recipe: needs the name of a recipe, or changes such as {base: d-br, epochs: 60}"]),
    ("unknown axis", text("exclude:\n  - defense: none\n    atack: badnets"), 8,
     ["exclude: no axis 'atack'", "did you mean 'attack'?"]),
    ("unknown value of an axis", text("exclude: [{attack: blend}]"), 6,
     ["exclude: no attack 'blend'", "Known: badnets"]),
    ("unknown rate in exclude", text("exclude: [{poison_rate: 0.2}]"), 6,
     ["exclude: no poison rate '0.2'", "Known: 0.1"]),
    ("several values in exclude", text("exclude: [{attack: [badnets, blend]}]"), 6,
     ["exclude: attack: needs one value", "write an entry for each"]),
    ("exclude that is a name", text("exclude: [badnets]"), 6,
     ["exclude: needs a mapping such as {attack: badnets, poison_rate: 0.1}, not 'badnets'"]),
    ("exclude of everything", text("exclude: [{}]"), 6, ["exclude: needs a mapping", "not {}"]),
    ("label twice", text(attacks="\n  - badnets\n  - {attack: blend, as: badnets}"), 6,
     ["attacks: 'badnets' stands twice", "`as: OTHER`"]),
    ("one method under two labels", text(defenses="\n  - none\n  - {defense: none, as: nil}"), 7,
     ["defenses: 'nil' is the same as 'none' in every option; leave one out"]),
    ("unknown resource", text("resources: {gpu: 1}"), 6,
     ["resources: no key 'gpu'", "did you mean 'gpus'"]),
    ("no CPU", text("resources:\n  gpus: 1\n  cpus: 0"), 8,
     ["resources.cpus: needs a number of at least 1, not 0"]),
    ("one and a half GPUs", text("resources: {gpus: 1.5}"), 6,
     ["resources.gpus: 1.5 is neither a share of one GPU nor a whole number"]),
    ("resources that are a number", text("resources: 4"), 6,
     ["resources: needs a mapping, such as {cpus: 1}, not 4"]),
    ("oracle in disguise", text(defenses="\n  - {defense: anp-oracle, as: anp}"), 6,
     ["anp-oracle knows what no defender does", "`as: anp-oracle`, not 'anp'"]),
    ("reserve of all", text("reserve: 1"), 6, ["reserve: needs a number below 1, not 1"]),
    ("timeout 0", text("timeout: 0"), 6, ["timeout: needs a number above 0, not 0"]),
    ("timeout without end", text("timeout: .inf"), 6, ["timeout: needs a finite number, not inf"]),
    ("scales that are a list", text("scales: [small]"), 6, ["scales: needs {NAME: "]),
    ("scale that is a number", text("scales:\n  small: 3"), 7,
     ["scales.small: needs a mapping such as {seeds: 1}, not 3"]),
    ("unknown key in a scale", text("scales:\n  small:\n    seedz: 1"), 8,
     ["scales.small: no key 'seedz'", "did you mean 'seeds'?"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "line", "said"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_is_one_sentence_with_its_line(
    tmp_path: Path, content: str, line: int, said: list[str]
) -> None:
    found = refused(tmp_path, content)
    assert len(found) == 1, f"one mistake, {len(found)} sentences: {found}"
    assert found[0].startswith(f"study.yaml:{line}: "), f"line {line} expected: {found[0]}"
    for part in said:
        assert part in found[0], f"{part!r} is not said: {found[0]}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name: [study\n", "study.yaml:2: not YAML: expected ',' or ']'"),
        ("name: study\nseeds: 1\nname: other\n", "study.yaml:3: name: stands twice, first in line"),
        (
            "- digits\n",
            "study.yaml: is no sweep file: write keys with values, such as `name: mine`, ",
        ),
        ("", "study.yaml: is no sweep file"),
        ("name: !!python/object:os.system x\n", "study.yaml:1: not YAML: could not determine"),
        ("name: \x00\n", "study.yaml: not YAML: special characters are not allowed"),
        ("name: study\nattacks: &a\n  - none\n  - *a\n", "study.yaml:4: *a stands within what &a"),
        ("name: study\nrecipe: &r\n  <<: *r\n", "study.yaml:3: *r stands within what &r names"),
        ("a: {b: 1,\n  c: {d: 1, d: 2}}\n", "study.yaml:2: d: stands twice, first in line 2; rem"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n  d: 1\n  <<: *a\n", "study.yaml:5: <<: stands twice"),
        ("a: [" * 60 + "]" * 60, "study.yaml:1: more than 50 levels"),
        ("[" * 20_000, "study.yaml:1: more than 50 levels"),
        ("{" * 500, "study.yaml:1: more than 50 levels"),
        (
            "a: &a0 1\n" + "".join(f"b{n}: &a{n + 1} [*a{n}]\n" for n in range(60)),
            "study.yaml:49: more than 50 levels, aliases written out",
        ),
        ("name: 2020-13-45\n", "study.yaml:1: not YAML: month must be in 1..12; quote"),
        (f"seeds: {'9' * 5000}\n", "study.yaml:1: not YAML: Exceeds the limit"),
        ('name: "\\ud800"\n', "study.yaml:1: half a surrogate pair is no character"),
    ],
)
def test_what_is_no_sweep_file(tmp_path: Path, content: str, said: str) -> None:
    (found,) = refused(tmp_path, content)
    assert found.startswith(said)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"^no file .*/gone\.yaml; shipped sweeps: .*quickstart"):
        spec.load(str(tmp_path / "gone.yaml"))
    with pytest.raises(SweepError, match=r"no sweep file or shipped sweep 'quikstart', did you"):
        spec.load("quikstart")


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes("name: größe\n".encode("latin-1"))
    with pytest.raises(SweepError, match=r"not UTF-8 at byte 8: save it as UTF-8"):
        spec.load(str(path))


def test_all_mistakes_are_shown_in_the_order_of_the_file(tmp_path: Path) -> None:
    told = refused(
        tmp_path,
        text(
            "seeds: 0\nseedz: 1\nrecipe: nope\npoison_rates: [2, 3]\n",
            attacks="[badnet, {attack: blend, opacity: x, opacityy: 1}, 7]",
            defenses="[{defense: anp, steps: many}, anp-oracel]",
            models="[{model: resnet18, depth: 3}]",
        ),
    )
    found = [line for line in told if line.startswith("study.yaml:")]
    listed = told[len(found) :]
    said = [
        ("3", "no option 'depth'"),
        ("4", "no attack 'badnet'"),
        ("4", "no option 'opacityy'"),
        ("4", "opacity: needs a number, not 'x'"),
        ("4", "not 7"),
        ("5", "steps: needs a whole number, not 'many'"),
        ("5", "no defense 'anp-oracel'"),
        ("6", "seeds"),
        ("7", "no key 'seedz'"),
        ("8", "no recipe 'nope'"),
        ("9", "2 is no poison rate"),
        ("9", "3 is no poison rate"),
    ]
    assert len(found) == len(said), found
    for line, part in said:
        assert any(s.startswith(f"study.yaml:{line}:") and part in s for s in found), (part, found)
    lists = [sentence for sentence in listed if not sentence.startswith(" ")]
    assert [line.partition(":")[0] for line in lists] == [
        "Every attack",
        "Every defense",
        "Every key",
    ]
    assert not any("abl, " in sentence for sentence in found), "they stand at the end, and once"
    lines = [int(sentence.split(":")[1]) for sentence in found]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seeds", "--set seeds: write key=value, such as seeds=1"),
        ("=1", "--set =1: write key=value"),
        ("recipe..lr=1", "--set recipe..lr=1: write key=value"),
        ("seeds=[1", "--set seeds=[1: the value is not YAML: expected ',' or ']'"),
        ("seeds=0", "--set seeds=0: seeds: needs a count above 0"),
        ("seedz=1", "--set seedz=1: no key 'seedz', did you mean 'seeds'?"),
        ("epochs=5", "--set epochs=5: belongs into the recipe: write recipe.epochs=5"),
        ("gpu=1", "--set gpu=1: belongs into the resources: write resources.gpus=1"),
        ("recipe.epochs=x", "--set recipe.epochs=x: recipe: epochs: needs a whole number, not 'x'"),
        ("attacks=[badnet]", "--set attacks=[badnet]: attacks: no attack 'badnet', did you mean"),
        (
            "attacks=[{attack: blend, attack: sig}]",
            "--set attacks=[{attack: blend, attack: sig}]: at"
            "tack: stands twice, first in line 1; remove one",
        ),
        ("seeds=&a [*a]", "--set seeds=&a [*a]: *a stands within what &a names"),
        ("seeds=2020-13-45", "--set seeds=2020-13-45: the value is not YAML: month must be"),
        ("seeds=\udcff", "--set seeds="),
        ("name.x=1", "--set name.x=1: name holds 'study', no keys below it"),
        ("scale=smal", "--set scale=smal: no scale 'smal', did you mean 'small'? Known: bad, "),
        ("scale=bad", "study.yaml:8: seeds: needs a count above 0"),
    ],
)
def test_mistakes_of_an_override_name_it(tmp_path: Path, override: str, said: str) -> None:
    scales = "scales:\n  small: {seeds: 1}\n  bad: {seeds: 0}\n"
    (found,) = refused(tmp_path, text(scales), override)
    assert found.startswith(said), found


def test_overrides_without_scales(tmp_path: Path) -> None:
    assert refused(tmp_path, text(), "scale=x") == ["--set scale=x: no scale 'x'. Known: (none)"]


def test_the_command_line_says_it_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = tmp_path / "study.yaml", tmp_path / "store"
    path.write_text(text("seeds: 0", attacks="[badnet]"))
    for command in (["run", "--executor", "inline"], ["run"], ["plan"]):
        monkeypatch.setattr(
            sys, "argv", ["sweeper", command[0], str(path), "--store", str(store), *command[1:]]
        )
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        assert left.value.code == 2
        mistakes, _, names = err.partition("Every attack: ")
        assert not out and len(mistakes.splitlines()) == 2 and "Traceback" not in err
        assert "badnets" in names
        assert f"{path}:4: attacks: no attack 'badnet'" in err and f"{path}:6: seeds: " in err
        assert not store.exists(), "nothing is started, no folder is made"


def test_the_command_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sweeper",
            "run",
            "nothing.yaml",
            "--store",
            str(tmp_path / "s"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("no file nothing.yaml; shipped sweeps: ")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_names_and_mappings(tmp_path: Path) -> None:
    sweep = loaded(
        tmp_path,
        text(
            "poison_rates: [0.01, 1e-3]\nseeds: 3\nclean_budgets: [0.05, 500.0, 1]\n",
            datasets="[digits, {dataset: digits, train_size: 300, as: few}]",
            attacks="[badnets, {attack: badnets, preset: d-br-all2all}, "
            "{attack: blend, as: 3, poison_rates: [0.2]}]",
            defenses="[none, {defense: anp, steps: 5, lr: 1e-2}, anp-oracle]",
        ),
    )
    assert [entry.label for entry in sweep.datasets] == ["digits", "few"]
    assert sweep.datasets[1].options == {"train_size": 300}
    assert [entry.label for entry in sweep.attacks] == ["badnets", "badnets-d-br-all2all", "3"]
    assert sweep.attacks[1].options == {"preset": "d-br-all2all"}
    assert sweep.attacks[2].poison_rates == [0.2] and sweep.attacks[0].poison_rates is None
    assert sweep.poison_rates == [0.01, 0.001], (
        "YAML takes 1e-3 for text; it is a number all the same"
    )
    assert sweep.seeds == [0, 1, 2]
    assert sweep.clean_budgets == [0.05, 500, 1]
    assert [type(budget) for budget in sweep.clean_budgets] == [float, int, int]
    assert sweep.resources.cpus == 1 and sweep.recipe == "fast" and sweep.reserve == 0.1


def test_the_largest_numbers_that_rows_hold_are_stored(tmp_path: Path) -> None:
    most = 2**63 - 1
    sweep = loaded(
        tmp_path, text(f"seeds: [{most}]\ntargets: [{most}]\nclean_budgets: [{2**62}]\n")
    )
    (seed,), (target,), (count,) = sweep.seeds, sweep.targets, sweep.clean_budgets
    made = rows.table([{"key": "0" * 20, "seed": seed, "target": target, "n_clean": count}])
    assert made["seed"].to_pylist() == made["target"].to_pylist() == [most]
    assert made["n_clean"].to_pylist() == [2**62]


def test_seeds_as_a_list(tmp_path: Path) -> None:
    assert loaded(tmp_path, text("seeds: [7, 0]")).seeds == [7, 0]


def test_a_budget_written_as_a_float_is_the_count(tmp_path: Path) -> None:
    facts = {"digits": Facts("digits", "d", 10, (1, 8, 8), (90,) * 10, 1000, 600)}
    keys = [
        set(matrix.expand(loaded(tmp_path, text(f"clean_budgets: [{budget}]")), facts).cells)
        for budget in ("500", "500.0", "0.5")
    ]
    assert keys[0] == keys[1] == keys[2], "500 of 1,000 images, however it is written"


def test_scales_and_nested_overrides(tmp_path: Path) -> None:
    content = text("seeds: 3\nrecipe: {base: fip}\nscales:\n  small: {seeds: 1, targets: [1, 2]}\n")
    sweep = loaded(tmp_path, content, "scale=small", "recipe.epochs=2", "resources.gpus=0.25")
    assert sweep.seeds == [0] and sweep.targets == [1, 2]
    assert sweep.recipe == {"base": "fip", "epochs": 2} and sweep.resources.gpus == 0.25
    again = loaded(tmp_path, content, "scale=small", "seeds=[4]")
    assert again.seeds == [4], "what is given last counts"
    assert loaded(tmp_path, content).seeds == [0, 1, 2], "a scale counts only where it is asked for"


def test_all_stands_for_every_method_that_needs_no_option(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, text(attacks="all", defenses="all"))
    images = [n for n in catalog.names("attack") if beyond.made_for("attack", n, "image")]
    given = [name for name in images if name != "imported"]  # it needs a folder
    assert [entry.label for entry in sweep.attacks] == given
    assert [entry.label for entry in sweep.defenses] == catalog.names("defense")
    clips = text(attacks="all", defenses="[none]", datasets="[moving]", models="[r3d-small]")
    made = ["badnets", "none", "video-clean"]
    assert [entry.label for entry in loaded(tmp_path, clips).attacks] == made
    (line,) = refused(tmp_path, text(attacks="every"))
    assert "attacks: needs a list, such as [a, b], not 'every'" in line


def test_an_override_takes_entries_of_the_file_by_label(tmp_path: Path) -> None:
    content = text(
        "exclude: [{attack: patch, poison_rate: 0.1}]\npoison_rates: [0.1, 0.2]",
        attacks="[{attack: badnets, opacity: 0.5, as: patch}, blend]",
    )
    sweep = loaded(tmp_path, content, "attacks=[patch, sig]")
    assert [(e.name, e.options) for e in sweep.attacks] == [
        ("badnets", {"opacity": 0.5}),
        ("sig", {}),
    ]
    assert len(sweep.exclude) == 1
    assert loaded(tmp_path, content, "attacks=[blend]").exclude == [], "it named an attack now gone"


def test_an_override_with_a_name_the_file_has_under_other_labels_is_refused(tmp_path: Path) -> None:
    content = text(attacks="[{attack: badnets, preset: d-br, as: one}, {attack: badnets, as: b}]")
    (found,) = refused(tmp_path, content, "attacks=[badnets]")
    assert found == (
        "--set attacks=[badnets]: the file has badnets as one, b: write that, or {attack: badnets} "
        "for one without the options of the file"
    )
    plain = loaded(tmp_path, content, "attacks=[{attack: badnets}]")
    assert [(entry.label, entry.options) for entry in plain.attacks] == [("badnets", {})]
    assert [e.label for e in loaded(tmp_path, content, "attacks=[b, sig]").attacks] == ["b", "sig"]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("table: {valuess: [acc]}", "table: no key 'valuess', did you mean 'values'"),
        ("table: {values: [ac]}", "table.values: no metric 'ac', did you mean 'acc'"),
        ("table: {rows: attack}", "table.rows: needs a list, such as [a, b], not 'attack'"),
        ("table: {labels: {attak: {}}}", "table.labels: no axis 'attak', did you mean 'attack'"),
    ],
)
def test_a_wrong_layout(
    tmp_path: Path, section: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refused(tmp_path, text(section))
    assert said in line
    path = tmp_path / "layout.yaml"
    path.write_text(text(section))
    with pytest.raises(SweepError, match=re.escape(said)):
        view.of(source.read(str(path)))


def test_a_nested_override_of_a_recipe_that_is_a_name(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, text("recipe: d-br"), "recipe.epochs=2")
    assert sweep.recipe == {"base": "d-br", "epochs": 2}
    assert loaded(tmp_path, text(), "recipe.epochs=2").recipe == {"epochs": 2}
    assert loaded(tmp_path, text(), "recipe=fip").recipe == "fip"


@pytest.mark.parametrize("name", source.shipped())
def test_shipped_sweeps_load_and_say_what_for(name: str) -> None:
    sweep = spec.load(name)
    assert sweep.name == name == source.name_of(name)
    assert len(source.purpose(name)) > 20, "the header's first sentence says what the sweep is for"
    if "scales" in source.read(name).values:
        small = spec.load(name, ["scale=small"])
        facts = Facts("cifar10", "x", 10, (3, 32, 32), (540,) * 10, 6000, 600)
        plan = matrix.expand(small, {entry.label: facts for entry in small.datasets})
        assert small.name == name and not plan.inapplicable
        assert [m.name for m in small.models] == ["tiny"] and small.seeds == [0]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("nad", {"betas": []}, "nad: betas: needs at least one value"),
        ("d-br", {"epochs": -1}, "d-br: epochs: needs a whole number of at least 0, not -1"),
        ("clp", {"u": -1.0}, "clp: u: needs a number above 0, not -1.0"),
        ("clp", {"pairing": "x"}, "clp: pairing: 'x' is not one of graph, registered"),
    ],
)
def test_a_refused_option_is_said_with_its_value(
    name: str, options: dict[str, object], sentence: str
) -> None:
    from sweeper.core import catalog

    with pytest.raises(SweepError) as refused:
        catalog.make("defense", name, options)
    assert str(refused.value).endswith(sentence)
