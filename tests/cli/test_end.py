"""How the command line leaves its process: all is said, the code is right, no pool is torn down."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.places import ROOT

CODE = """
import atexit, sys, types
atexit.register(print, "torn down")
sys.argv = ["sweeper", *{words!r}]
{before}
from sweeper import cli
cli.main()
"""
RAY = "sys.modules['ray'] = types.SimpleNamespace(is_initialized=lambda: True)"
CHILD = (
    "import multiprocessing; multiprocessing.get_context('fork').Process("
    "target=__import__('time').sleep, args=(60,), daemon=True).start()"
)


def left(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the entry point in a process of its own."""
    code = CODE.format(words=words, before=before)
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize(
    ("words", "code"),
    [(("list", "sweeps"), 0), (("list", "nothing"), 2)],
)
def test_a_short_command_tears_no_pool_down(words: tuple[str, ...], code: int) -> None:
    """Threads of torch or pyarrow that still run would end the process with an abort."""
    ended = left(*words)
    assert ended.returncode == code and "torn down" not in ended.stdout
    assert ended.stderr if code else ended.stdout.endswith("\n"), "what was said is there"


@pytest.mark.parametrize("before", [RAY, CHILD], ids=["Ray", "a child"])
def test_a_command_that_started_something_ends_it(before: str) -> None:
    assert "torn down" in left("--version", before=before).stdout


def test_a_reader_that_left_is_no_error() -> None:
    words = [sys.executable, "-m", "sweeper", "list", "sweeps", "--json"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
