"""Names, titles and abbreviations of methods, without importing one of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sweeper.core import catalog, names

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
