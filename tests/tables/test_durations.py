"""docs/time.md: its tables are current, tell devices apart, and show a dash for the unmeasured."""

from __future__ import annotations

import pandas as pd
import pytest

from sweeper.tables import durations, measured
from tests.support.places import ROOT


def test_the_times_are_current() -> None:
    page = (ROOT / "docs/time.md").read_text("utf-8")
    assert len(durations.MARKED.findall(page)) == 3
    message = "a row was added: run `python -m sweeper.tables.durations docs/time.md`"
    assert page == durations.rewrite(page), message
    shown = {
        name.strip()
        for _, _, names, _ in durations.MARKED.findall(page)
        for name in names.split(",")
    }
    assert shown == set(measured.sweeps()), "a measured sweep has no line"


def test_devices_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured.frame("quickstart")
    faster = rows.assign(device="H200", victim_device="H200", victim_seconds=2.0, seconds=1.0)
    faster = faster[faster["defense"] != "fip"]
    both = pd.concat([rows, faster], ignore_index=True)
    monkeypatch.setattr(measured, "frame", lambda sweep: both)
    slow, fast = durations.victims(["quickstart"]).splitlines()[2:]
    assert "| CPU Intel Xeon" in slow and "| H200" in fast and "| 2 " in fast
    head, _, *lines = durations.defenses(["quickstart"]).splitlines()
    assert "quickstart, CPU Intel Xeon" in head and "quickstart, H200" in head
    ends = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines}
    assert ends == {"anp": "1", "fine-tuning": "1", "fip": "-"}
