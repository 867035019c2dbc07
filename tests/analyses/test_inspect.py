"""`sweeper inspect`: the rule of its verdict, its evidence, what it is shown, its page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sweeper import data
from sweeper.analyses import inspect as inspections
from sweeper.analyses.inspect import channels, evidence, repairs, verdict
from sweeper.analyses.inspect.evidence import Evidence
from sweeper.analyses.inspect.progress import Steps
from sweeper.analyses.inspect.suspect import Suspect, suspect
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.data import splits
from sweeper.tables import inspected
from tests.analyses.test_exchange import said
from tests.support import toys
from tests.support.places import ROOT

DIGITS = "{dataset: digits, train_size: 300, test_size: 100}"
DATA = data.Dataset(
    "toy",
    toys.image_set(400, shape=toys.QUARTER, seed=5),
    toys.image_set(120, shape=toys.QUARTER, seed=2),
    "0" * 20,
    (0.5,) * 3,
    (0.25,) * 3,
)


def toy(weights: Mapping[str, Any] | None = None, **changes: Any) -> Suspect:
    """The toy victim of BadNets under suspicion."""
    given = toys.victim(shape=toys.QUARTER).state_dict() if weights is None else weights
    found = suspect("toy.pt", "tiny", {"width": 4}, given, DATA, budget=80)
    return replace(found, **changes)


@pytest.fixture(scope="module")
def found() -> inspections.Inspection:
    sets = [toys.image_set(count, classes=6, shape=toys.GREY, seed=count) for count in (400, 120)]
    few = replace(DATA, train=sets[0], test=sets[1], mean=(0.5,), std=(0.25,))
    weights = toys.victim(classes=6, shape=toys.GREY).state_dict()
    small = suspect("toy.pt", "tiny", {"width": 4}, weights, few, budget=120)
    inversion = {"epochs": 30, "steps": 6, "batch": 12, "patience": 2, "weight": 0.01}
    return inspections.inspect(small, inversion=inversion, asked=["clp"])


def test_the_target_of_a_backdoor_is_named_with_its_evidence(found: Any) -> None:
    facts = found.facts
    assert facts["verdict"]["attacked"] == (0,)
    cleanse = facts["evidence"]["neural-cleanse"]
    assert cleanse["named"] == [0] and cleanse["number"] > cleanse["threshold"] == 2
    first = cleanse["details"]["classes"][0]
    assert first["norm"] < cleanse["details"]["median"] and first["success"] > 0.9
    text = "\n".join(inspected.lines(facts))
    assert "Class 0 (class 0) looks attacked." in text and "above 2 is unusual" in text
    (cost,) = facts["repairs"]
    assert 0 < cost["acc"] <= 1 and facts["watched"] == 0 and 0 <= cost["success"] <= 1
    assert set(found.pictures) == set(range(6))
    json.dumps(facts, allow_nan=False)


def test_the_page_runs_and_loads_nothing_and_takes_names_for_text(found: Any) -> None:
    facts = json.loads(json.dumps(found.facts))
    facts["model"]["label"] = "<script>alert(1)</script>.pt"
    facts["data"]["classes"][0] = '"><img src=x onerror=alert(1)>'
    page = inspected.page(facts, found.pictures)
    assert "<script" not in page and "<img src=x" not in page and "{{" not in page
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    assert page.count('<img src="data:image/png') == 12 == page.count(' alt="')
    assert verdict.NEVER_CLEAN in page and "looks attacked" in page


NONE = Evidence("Neural Cleanse", "nothing", 1.0, 2.0, (), True, {"x": 1})
NAMES = replace(NONE, number=4.1, named=(3,))
QUIET = replace(NONE, title="SODA")
HINT = Evidence("Noise", "it leads there", 0.9, named=(5,), details={"x": 1})
ABSENT = Evidence("BNP", "does not apply: needs BatchNorm layers")


@pytest.mark.parametrize(
    ("given", "attacked", "sentence"),
    [
        ([NONE, QUIET], (), "Nothing stands out."),
        ([NAMES, QUIET], (3,), "Class 3 (class 3) looks attacked."),
        ([NAMES, replace(QUIET, named=(3, 5))], (3, 5), "It names not all of them."),
        ([NAMES, QUIET], (3,), "SODA: nothing. It disagrees with the verdict."),
        ([NAMES, HINT], (3,), "Noise: it leads there. That does not fit the verdict."),
        ([NAMES, replace(HINT, named=(3,))], (3,), "That fits the verdict."),
        ([NONE, HINT], (), "This alone is no alarm"),
        ([ABSENT, HINT], (), "Nothing can be said"),
        ([NONE, ABSENT], (), "BNP: does not apply: needs BatchNorm layers."),
    ],
)
def test_the_verdict_follows_its_rule_and_says_what_disagrees(
    given: list[Evidence], attacked: tuple[int, ...], sentence: str
) -> None:
    judged = verdict.judge(toy(), {str(n): item for n, item in enumerate(given)}, 0.9)
    assert judged.attacked == attacked and judged.suspicious == bool(attacked)
    assert sentence in "\n".join([judged.headline, *judged.reasons])


def test_a_model_that_does_not_know_the_data_is_said_to_be_one() -> None:
    judged = verdict.judge(toy(), {"a": NONE}, 0.15)
    assert "hardly better than guessing" in judged.reasons[0]


def test_a_channel_that_stands_out_is_found_and_tried() -> None:
    weights = toys.victim(shape=toys.QUARTER).state_dict()
    norms = [name for name in weights if name.endswith("running_var") and len(weights[name]) >= 16]
    norm = norms[0].removesuffix(".running_var")
    weights[f"{norm}.weight"][7] *= 100
    result = channels.lipschitz(toy(weights))
    top = result.details["top"][0]
    assert (top["layer"], top["channel"]) == (norm, 7) and result.details["beyond"] >= 1
    assert not result.votes, "clean models have such channels too"
    model = toy(weights).model
    raised = channels.raised(model, {norm: torch.arange(len(weights[f"{norm}.weight"])) == 7})
    assert toys.differing(model, raised) == {f"{norm}.bias"}
    shift = raised.get_submodule(norm).bias - model.get_submodule(norm).bias
    expected = channels.RAISE * weights[f"{norm}.weight"].abs()
    assert torch.allclose(shift[7], expected[7], rtol=1e-4) and int((shift != 0).sum()) == 1


def test_norms_too_unequal_for_an_index_are_compared_as_ratios() -> None:
    norms = [1.8, 34.5, 75.4, 108.8, 110.0, 129.7, 58.2, 70.0, 47.3, 28.4]  # of a BadNets victim
    assert not bool(evidence.judged(torch.tensor(norms), 2.0)[1].any())
    classes = [{"class": label, "norm": norm} for label, norm in enumerate([*norms, None])]
    result = evidence.ratios(toy(), replace(NONE, details={"classes": classes}))
    assert result.named == (0,) and result.votes and "35.5 times smaller" in result.says
    even = [{"class": label, "norm": 50.0 + label} for label in range(10)]
    result = evidence.ratios(toy(), replace(NONE, details={"classes": even}))
    assert result.named == () and result.votes and "above 3.5 is unusual" in result.says
    assert not evidence.ratios(toy(), ABSENT).votes


def test_what_does_not_apply_says_so() -> None:
    net = toys.network(seeds.generator("vit"), model="vit-tiny", shape=toys.QUARTER)
    model = suspect("vit.pt", "vit-tiny", {}, net.state_dict(), DATA, budget=20)
    for result in (channels.lipschitz(model), channels.statistics(model)):
        assert "does not apply: needs BatchNorm layers" in result.says and not result.applies
    few = replace(DATA, train=toys.image_set(40, classes=4), test=toys.image_set(40, classes=4))
    weights = toys.network(seeds.generator("few"), classes=4).state_dict()
    model = suspect("few.pt", "tiny", {"width": 4}, weights, few, budget=20)
    result, triggers = evidence.neural_cleanse(model, evidence.NeuralCleanse(), print)
    assert triggers is None and "needs six classes" in result.says and not result.votes


def test_by_chance_the_most_frequent_class_has_so_many() -> None:
    draws = torch.randint(10, (2000, 500), generator=seeds.generator("chance"))
    most = torch.stack([(draws == label).float().mean(1) for label in range(10)]).amax(0)
    assert float((most > evidence.chance(500, 10)).double().mean()) <= 0.015


def test_methods_see_none_of_the_images_the_attacker_had() -> None:
    weights = toys.victim(shape=toys.QUARTER).state_dict()
    found = suspect("v", "tiny", {"width": 4}, weights, DATA, budget=30, reserve=0.1)
    attackers, _ = splits.split(DATA, 0.1)
    theirs = {image.numpy().tobytes() for image in DATA.train.inputs[attackers]}
    assert not theirs & {image.numpy().tobytes() for image in found.clean.inputs}
    assert "the model was not trained" in found.origin
    assert "may have been trained" in toy().origin
    with pytest.raises(SweepError, match="--budget: 41 clean images, there are 40: lower it"):
        suspect("v", "tiny", {"width": 4}, weights, DATA, budget=41, reserve=0.1)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fine-tunning", "--repairs: no defense 'fine-tunning', did you mean 'fine-tuning'"),
        ("abl", "needs more than a model and clean images"),
        ("anp-oracle", "needs more than a model and clean images"),
        ("strip", "needs more than a model and clean images"),
    ],
)
def test_a_repair_that_cannot_be_tried_is_refused(name: str, why: str) -> None:
    with pytest.raises(SweepError, match=why):
        repairs.chosen([name])


def test_progress_says_how_much_of_a_step_is_left() -> None:
    lines: list[tuple[str, bool]] = []
    steps = Steps(2, lambda line, passing: lines.append((line, passing)))
    steps.begin("triggers", 2)
    steps.began -= 10
    for epoch in (1, 5, 10):
        steps.log(epoch=epoch, epochs=10)
    steps.log(epoch=1, epochs=10)
    assert lines[0] == ("[1/2] triggers", False) and all(passing for _, passing in lines[1:])
    assert lines[2][0].startswith("[1/2] triggers: epoch 5 of 10, part 1 of 2, at most 30 s left")
    assert "part 2 of 2" in lines[-1][0]


# The command


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    weights = toys.network(seeds.generator("cli"), shape=toys.GREY).state_dict()
    save_file({n: v for n, v in weights.items() if not n.startswith("normalise.")}, path)
    return path


SMALL = ("--dataset", DIGITS, "--budget", "50")
WIDTH = ("--model", "tiny", "--option", "width=4")


def test_a_checkpoint_is_inspected(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "net.html"
    words = ("inspect", checkpoint, *WIDTH, *SMALL, "--epochs", 1)
    code, text, lines = said(capsys, *words, "--repairs", "clp,bnp", "--out", out)
    assert code == 0, lines
    assert "net.safetensors: tiny with width=4, digits, 10 classes" in text
    assert "[6/6] repair bnp" in lines and "\r" not in lines and str(out) in lines
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["data"]["clean"] == 50 and len(facts["repairs"]) == 2
    assert "<h1>net.safetensors</h1>" in out.read_text()
    for sentence in ("how_often", "never_clean"):
        assert facts["verdict"][sentence] in text and facts["verdict"][sentence] in out.read_text()


def test_how_often_the_rule_is_right_is_what_the_docs_measured() -> None:
    text = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| verdict .*$", text, re.MULTILINE)
    hits, _, alarms = (tuple(map(int, of)) for of in re.findall(r"(\d+) of (\d+)", line))
    assert hits == (verdict.HITS, verdict.BACKDOORED)
    assert alarms == (verdict.ALARMS, verdict.CLEAN)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "name one model: a CHECKPOINT, or --victim KEY"),
        (("FILE", "--victim", "3f"), "name one model"),
        (("FILE", "--dataset", "digits"), "`--model resnet18`"),
        (("FILE", *WIDTH), "`--dataset cifar10`"),
        (("FILE", *WIDTH, "--dataset", "phrases"), "only models of images can be inspected"),
        (("FILE", *WIDTH, "--dataset", DIGITS, "--budget", "301"), "there are 300: lower it"),
        (("FILE", *WIDTH, "--dataset", DIGITS, "--out", "page.txt"), "must end in .html"),
        (
            ("FILE", *WIDTH, "--dataset", DIGITS, "--budget", "9", "--epochs", "-1"),
            "inspect: epochs: ",
        ),
        (("FOLDER", *WIDTH), "leave out --model"),
        (("FOLDER",), "no victim.json"),
        (("FILE", "--model", "tiny", "--dataset", DIGITS), "--option"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_a_sentence(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"FILE": checkpoint, "FOLDER": tmp_path}
    code, text, line = said(capsys, "inspect", *(places.get(word, word) for word in words))
    assert code == 2 and not text and why in line and line.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))
