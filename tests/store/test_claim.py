"""One driver a sweep: the second is refused, a dead one replaced, different sweeps go together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sweeper.core.errors import SweepError
from sweeper.store import claim, status
from sweeper.store.claim import claimed
from sweeper.store.ledger import Ledger
from tests.support import sweeps
from tests.support.places import ROOT


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of a twentieth of a second; two seconds without one are silence."""
    monkeypatch.setattr(claim, "BEAT", 0.05)
    monkeypatch.setattr(claim, "SILENT", 2.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path))


def elsewhere(**more: Any) -> dict[str, Any]:
    """The claim of a driver on a machine that is not this one."""
    about = {"run": "other", "who": "ada@far", "pid": 7, "place": "far pid:[1]", "since": "noon"}
    return {**about, "beat": 3, **more}


def test_a_claim_lives_while_its_driver_does(ledger: Ledger) -> None:
    with claimed(ledger, "small", "one"):
        first = ledger.claim("small")
        assert first and first["run"] == "one" and first["pid"] == os.getpid()
        time.sleep(0.3)
        later = ledger.claim("small")
        assert later and later["beat"] > first["beat"]
    assert ledger.claim("small") is None
    with pytest.raises(KeyError), claimed(ledger, "small", "two"):
        raise KeyError
    assert ledger.claim("small") is None, "an error frees it too"


def test_the_second_driver_is_refused_in_one_sentence(ledger: Ledger) -> None:
    with claimed(ledger, "small", "one"):
        with pytest.raises(SweepError) as refused, claimed(ledger, "small", "two"):
            pass
        said = str(refused.value)
        assert f"(process {os.getpid()}, since " in said and "wait for it, or stop it" in said
        assert "\n" not in said and "a dead driver is replaced after 2 s of silence" in said
        assert (ledger.claim("small") or {})["run"] == "one", "the first keeps it"
        with claimed(ledger, "another", "two"):
            pass


def test_a_driver_elsewhere_is_replaced_after_its_silence(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "SILENT", 0.5)
    ledger.save_claim("small", elsewhere())
    started = time.monotonic()
    with claimed(ledger, "small", "one"):
        assert 0.5 <= time.monotonic() - started < 20
        assert (ledger.claim("small") or {})["run"] == "one"


def test_two_machines_of_one_name_are_two(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers are all called alike, and in each the first process is 1 of the same namespace."""
    with claimed(ledger, "small", "one"):
        mine = ledger.claim("small") or {}
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert boot in mine["place"]
    dead = subprocess.Popen(["true"])
    dead.wait()
    ledger.save_claim("small", {**mine, "run": "other", "pid": dead.pid})
    with monkeypatch.context() as nobody_waits_for_the_dead:
        nobody_waits_for_the_dead.setattr(claim.time, "sleep", None)
        with claimed(ledger, "small", "one"):
            pass
    monkeypatch.setattr(claim, "SILENT", 0.5)
    for place in (mine["place"].replace(boot, "another"), mine["place"].replace(f" {boot}", "")):
        ledger.save_claim("small", {**mine, "run": "other", "pid": dead.pid, "place": place})
        started = time.monotonic()
        with claimed(ledger, "small", "one"):
            assert time.monotonic() - started >= 0.5, "what lives there is not seen from here"


def test_a_driver_that_ends_while_it_is_watched_makes_room(ledger: Ledger) -> None:
    ledger.save_claim("small", elsewhere())
    threading.Timer(0.1, ledger.drop_claim, ["small"]).start()
    with claimed(ledger, "small", "one"):
        pass


def test_a_driver_that_was_replaced_stops(ledger: Ledger) -> None:
    was = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    with pytest.raises(SweepError, match=r"taken over by ada@far \(process 7, since noon\)"):
        with claimed(ledger, "small", "one"):
            with pytest.raises(KeyboardInterrupt):
                for _ in range(500):  # it beats too: a beat of ours may fall upon its first
                    ledger.save_claim("small", elsewhere())
                    time.sleep(0.1)
    signal.signal(signal.SIGINT, was)
    assert (ledger.claim("small") or {})["run"] == "other", "the new driver's claim is left alone"


def test_a_beat_survives_a_store_that_is_away(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimed(ledger, "small", "one"):
        with monkeypatch.context() as patch:

            def away(*_: object) -> None:
                raise OSError("the store is away")

            patch.setattr(ledger, "save_claim", away)
            time.sleep(0.2)
        before = ledger.claim("small")
        time.sleep(0.3)
        assert ledger.claim("small") != before


DRIVER = """
import sys, time
from sweeper.store import claim
from sweeper.store.ledger import Ledger
claim.BEAT = 0.05
with claim.claimed(Ledger(sys.argv[1]), "small", "other"):
    print("running", flush=True)
    time.sleep(600)
"""


def test_two_drivers_of_one_sweep_and_two_sweeps_of_one_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    few: dict[str, Any] = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}
    path = sweeps.write(tmp_path, **few, defenses=["none"])
    first = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(store)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert first.stdout and first.stdout.readline() == b"running\n"
        with pytest.raises(SweepError, match=rf"being run by .*process {first.pid}"):
            sweeps.inline(path, store)
        assert Ledger(str(store)).sweep_text("small") == "", "it has written nothing"
        other = sweeps.write(tmp_path, name="other", **few, defenses=["none"])
        assert sweeps.inline(other, store)[0] == {"ok": 2}, "another sweep of the store may run"
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert Ledger(str(store)).claim("small"), "a killed driver leaves its claim"
    started = time.monotonic()
    claim.SILENT = 60.0
    assert sweeps.inline(path, store)[0] == {}, "the other sweep made its victim and its row"
    assert time.monotonic() - started < 30, "dead on this machine: nobody waits for its silence"
    found = status.status(Ledger(str(store)), "small")
    assert found["done"] == 2 and found["driver"] is None


def test_a_claim_says_what_its_driver_has_begun(ledger: Ledger) -> None:
    begun = {"a" * 20: "train digits tiny badnets"}
    with claimed(ledger, "small", "one", lambda: begun):
        deadline = time.monotonic() + 10
        while (ledger.claim("small") or {}).get("at_work") != begun:
            assert time.monotonic() < deadline
            time.sleep(0.01)
