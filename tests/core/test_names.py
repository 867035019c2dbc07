"""Names, titles and abbreviations of methods, without importing one of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sweeper.core import catalog, names
from sweeper.core.errors import together, unknown

SHORT = {
    ("attack", "badnets"): "BadNets",
    ("attack", "semantic"): "Semantic",
    ("attack", "wb"): "WB",
    ("defense", "anp"): "ANP",
    ("defense", "f-fip"): "f-FIP",
    ("defense", "fine-tuning"): "FT",
    ("defense", "mcr-pair"): "MCR",
    ("defense", "none"): "No defense",
    ("defense", "mine:Own"): "mine:Own",
}


@pytest.mark.parametrize("kind", names.KINDS)
def test_the_title_that_is_read_is_that_of_the_class(kind):
    for name in names.names(kind):
        assert names.title(kind, name) == catalog.method(kind, name).title, name


@pytest.mark.parametrize(("kind", "name"), SHORT)
def test_a_table_calls_a_method_as_a_paper_does(kind, name):
    assert names.short(kind, name) == SHORT[kind, name]


@pytest.mark.parametrize("name", ["../setup", "base", "parts", "nobody"])
def test_what_is_no_method_has_no_title(name):
    assert names.title("attack", name) == ""


def test_titles_wait_for_no_torch():
    code = "import sys; from sweeper.core import names; names.short('defense', 'anp')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


MEANT = {
    "attack": {
        "blended": "blend",
        "BLEND": "blend",
        "Input_Aware": "input-aware",
        "inputaware": "input-aware",
        "lf": "low-frequency (LF)",
        "LC": "clean-label (CL)",
        "cl": "clean-label (CL)",
        "ISSBA": "ssba (SSBA / ISSBA)",
        "trojannn": "trojan-nn",
        "adaptive_blend": "adaptive-blend",
    },
    "defense": {
        "ft": "fine-tuning (FT)",
        "NC": "neural-cleanse (NC)",
        "ac": "activation-clustering (AC)",
        "ss": "spectral-signatures (SS)",
        "spectral": "spectral-signatures (SS)",
        "fp": "fine-pruning (FP)",
        "ft_sam": "ft-sam",
        "i_bau": "i-bau",
        "ibau": "i-bau",
        "ANP": "anp",
        "MCR": "mcr",
        "Strip": "strip",
        "soda": "",
        "Fine Tuning": "fine-tuning",
        "Adversarial Neuron Pruning": "anp",
    },
    "model": {"ResNet-18": "resnet18", "resnet_18": "resnet18"},
    "data set": {"CIFAR-10": "cifar10"},
    "name": {"ft": "fine-tuning (FT)", "ResNet-18": "resnet18"},
    "option": {"learning_rate": "lr", "batch_size": "batch"},
}
KNOWN = {
    "model": ["resnet18", "resnet34", "vgg16-bn"],
    "data set": ["cifar10", "cifar100"],
    "name": ["fine-tuning", "resnet18", "cifar10"],
    "option": ["lr", "batch", "steps"],
}


@pytest.mark.parametrize("kind", MEANT)
def test_what_people_type_is_answered_with_the_name_that_is_meant(kind):
    known = KNOWN.get(kind) or names.names(kind)
    for typed, meant in MEANT[kind].items():
        if meant:
            assert unknown(kind, typed, known) == f"no {kind} {typed!r}: write {meant}"


@pytest.mark.parametrize("kind", names.KINDS)
def test_no_abbreviation_stands_for_two_methods(kind):
    """Where two share one, it is the name of the one, or neither is meant."""
    found = names.aliases(kind)
    for name in names.names(kind):
        assert found[names.letters(name)] == name
    assert set(found.values()) == set(names.names(kind))


def test_a_name_of_the_other_kind_is_told_to_be_one():
    said = unknown("defense", "badnets", names.names("defense"))
    assert said == "no defense 'badnets': it is an attack, which stands below `attacks`"
    assert unknown("attack", "NC", names.names("attack")).endswith("stands below `defenses`")


def test_only_what_is_there_is_meant():
    assert unknown("attack", "blended", ["badnets"]) == "no attack 'blended'. Known: badnets"
    assert unknown("poison rate", "0.10", ["0.1"]).startswith("no poison rate '0.10', did you mean")


def test_long_lists_of_several_mistakes_are_told_once_at_the_end():
    lines = [f"defenses: {unknown('defense', name, names.names('defense'))}" for name in "xy"]
    assert together(lines[:1]) == lines[0], "one mistake is one sentence"
    first, second, head, *rest = together(lines).splitlines()
    assert (first, second) == ("defenses: no defense 'x'.", "defenses: no defense 'y'.")
    assert head.startswith("Every defense: abl, activation-clustering,")
    assert max(map(len, [head, *rest])) <= 80
    assert " ".join([head, *rest]).split(": ")[1].replace(",", "").split() == names.names("defense")
