"""A victim is measured apart from its training: a repaired metric retrains and redraws nothing."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sweeper import api
from sweeper.engine import metrics, training
from tests.support import sweeps

ONE: dict[str, Any] = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}


def test_a_repaired_metric_measures_anew_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = sweeps.write(tmp_path, **ONE), tmp_path / "store"
    sweeps.inline(path, store)
    before = sweeps.frame(store).set_index("defense")
    real = metrics.evaluate

    def halved(*given: Any, **more: Any) -> dict[str, float | int | None]:
        found = real(*given, **more)
        return {**found, "acc": (found["acc"] or 0) / 2}

    monkeypatch.setattr(metrics, "VERSION", metrics.VERSION + 1)
    monkeypatch.setattr(metrics, "evaluate", halved)
    counts, ran = sweeps.inline(path, store)
    assert counts == {"ok": 2} and {kind for kind, _ in ran} == {"defend"}
    after = sweeps.frame(store).set_index("defense")
    for name in ("acc", "acc_before"):
        pd.testing.assert_series_equal(after[name], before[name] / 2)
    for name in ("asr", "asr_before", "ra", "notes", "victim_seconds"):
        pd.testing.assert_series_equal(after[name], before[name])
    assert len(list((store / "artifacts" / "measure").iterdir())) == 2


def test_a_row_says_under_what_it_was_measured(tmp_path: Path) -> None:
    """One key, two precisions: columns tell them apart."""
    path, store = sweeps.write(tmp_path, **ONE, recipe={"epochs": 1}), tmp_path / "store"
    sweeps.inline(path, store)
    native = training.native_bf16(torch.device("cpu"))
    for row in sweeps.frame(store).to_dict("records"):
        assert row["dtype"] == row["victim_dtype"] == ("bf16" if native else "fp32")
        assert row["threads"] == row["victim_threads"] == 1
        assert row["device_kind"] == row["victim_device_kind"] == "cpu" and pd.isna(row["cuda"])
        assert row["capability"] == torch.backends.cpu.get_cpu_capability()
        assert row["torch"] == row["victim_torch"] == torch.__version__
        assert row["python"] == platform.python_version() and len(row["data_hash"]) > 9
        assert set(json.loads(row["code"])) == {"attack", "defense", "engine", "victim_engine"}
        assert (row["seen"], row["left_behind"]) == ("[]", "[]")
    again = tmp_path / "again"
    again.mkdir()
    asked = sweeps.write(again, **ONE, recipe={"epochs": 1, "precision": "fp32"})
    sweeps.inline(asked, store)
    assert set(sweeps.frame(store)["dtype"]) == {"fp32"}


def test_a_victim_trained_again_is_measured_again(tmp_path: Path) -> None:
    path, store = sweeps.write(tmp_path, **ONE), tmp_path / "store"
    sweeps.inline(path, store)
    (made,) = (store / "artifacts" / "measure").glob("*/manifest.json")
    first = made.read_text(encoding="utf-8")
    made.write_text(first.replace('"acc": 0', '"acc": 7'), encoding="utf-8")
    (victim,) = (store / "artifacts" / "train").iterdir()
    victim.rename(tmp_path / "lost")
    grown = sweeps.write(tmp_path, **ONE, defenses=["none", {"defense": "clp", "u": 2.0}])
    sweeps.inline(grown, store)
    assert made.read_text(encoding="utf-8") == first


def test_a_store_of_older_code_is_read_and_run_on(tmp_path: Path) -> None:
    """Its victims hold their metrics themselves and say nothing of how they were made."""
    path, store = sweeps.write(tmp_path, **ONE), tmp_path / "store"
    sweeps.inline(path, store)
    (victim,) = (store / "artifacts" / "train").glob("*/manifest.json")
    (measure,) = (store / "artifacts" / "measure").glob("*/manifest.json")
    about = json.loads(victim.read_text(encoding="utf-8"))
    about["meta"]["result"] |= json.loads(measure.read_text(encoding="utf-8"))["meta"]["result"]
    for name in ("conditions", "code", "left_behind"):
        del about["meta"][name]
    victim.write_text(json.dumps(about), encoding="utf-8")
    measure.unlink()
    found = api.load_victim(victim.parent.name, store=store).metrics
    assert found["acc"] > 0, "its own figures, until it is measured again"
    grown = sweeps.write(tmp_path, **ONE, defenses=["none", {"defense": "clp", "u": 2.0}])
    counts, ran = sweeps.inline(grown, store)
    assert counts == {"ok": 1} and ran == [("defend", "ok")]
    rows = sweeps.frame(store).set_index("defense")
    assert rows.loc["clp", "acc_before"] == rows.loc["none", "acc_before"] == found["acc"]
    assert rows.loc["clp", "dtype"] == "fp32" or rows.loc["clp", "dtype"] == "bf16"
    assert pd.isna(rows.loc["clp", "victim_dtype"]) and pd.isna(rows.loc["clp", "victim_torch"])
    assert json.loads(rows.loc["clp", "code"])["attack"] is None


def test_who_trains_anew_does_so_as_models_of_the_data_set_are_trained(tmp_path: Path) -> None:
    """Not for the one epoch by which the attack tuned its victim."""
    path = sweeps.write(
        tmp_path,
        models=[{"model": "tiny", "width": 8}],
        attacks=[{"attack": "trojan-nn", "steps": 5}],
        poison_rates=[0.1],
        seeds=1,
        defenses=[{"detect": "spectral-signatures", "then": "retrain", "as": "again"}],
        recipe={"epochs": 12},
    )
    sweeps.inline(path, tmp_path / "store")
    (row,) = sweeps.frame(tmp_path / "store").to_dict("records")
    assert row["status"] == "ok" and row["acc"] > 0.8
    assert json.loads(row["recipe"])["epochs"] == 1, "the row says how the victim was trained"
