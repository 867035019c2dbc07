"""A victim whose trigger is not known: it enters sweeps, defenses run, its ASR stays unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import sweeper
from attacks.imported import Imported
from sweeper.analyses import exchange, show
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.tables import fair, points, render, report, tables
from tests.analyses.test_exchange import said
from tests.support import sweeps, toys

DEFENSES = [
    "none",
    {"defense": "fine-tuning", "epochs": 1},
    "strip",
    "spectral-signatures",
    "anp-oracle",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A victim of the tiny network for grey images, without a trigger."""
    home = tmp_path_factory.mktemp("unknown")
    weights, net = home / "w.safetensors", toys.network(seeds.generator("w"), shape=toys.GREY)
    save_file(net.state_dict(), weights)
    given = exchange.Foreign(weights, None, "tiny", {"width": 4}, 3, shape=toys.GREY)
    assert exchange.import_model(given, home / "in")["trigger"] is False
    return home / "in"


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    here = {"attack": "imported", "path": str(folder), "as": "theirs"}
    small = {"models": [{"model": "tiny", "width": 4}], "targets": [3], "seeds": 1}
    return {**sweeps.SMALL, **small, "attacks": [here], "defenses": DEFENSES, **changes}


@pytest.fixture(scope="module")
def ran(folder: Path) -> tuple[sweeper.Sweep, pd.DataFrame]:
    sweep = sweeper.Sweep.from_values(values(folder))
    sweep.run(store=folder.parent / "store", executor="inline", quiet=True)
    return sweep, sweep.results(store=folder.parent / "store")


def test_every_defense_runs_and_an_oracle_says_why_it_does_not(
    ran: tuple[sweeper.Sweep, pd.DataFrame],
) -> None:
    rows = ran[1].set_index("defense")
    states = rows["status"].to_dict()
    assert states.pop("anp-oracle") == "not_applicable" and set(states.values()) == {"ok"}, rows[
        "error"
    ].to_dict()
    assert "ASR, which is not known without its trigger" in rows["error"]["anp-oracle"]
    assert rows["acc"][["none", "fine-tuning"]].notna().all() and rows["acc_before"].notna().any()
    for metric in ("asr", "asr_before", "asr_all", "ra", "ra_before", "der", "auroc"):
        assert rows[metric].isna().all() or metric == "auroc", metric
    assert (rows["n_triggered"].drop("anp-oracle") == 0).all()


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_tables_say_what_is_not_known(ran: tuple[sweeper.Sweep, pd.DataFrame], form: str) -> None:
    built = tables.build(
        ran[1], values=["acc", "asr", "auroc", "der"], rows=["defense"], cols=["attack"]
    )
    states = {line.labels[0]: [entry.state for entry in line.entries] for line in built.lines}
    assert states["none"] == ["ok", "unknown", "undefined", "unknown"] == states["fine-tuning"]
    assert states["strip"] == ["undefined", "undefined", "unknown", "undefined"]
    assert states["spectral-signatures"] == ["undefined"] * 4
    text = render.render(built, form)
    assert "?" in text and "not known, as the victim came without its trigger" in text


def test_no_average_leaves_an_unknown_asr_out_silently(
    ran: tuple[sweeper.Sweep, pd.DataFrame],
) -> None:
    rows = ran[1].assign(acc_before=0.9)  # that of a network that learned nothing is no average's
    known = rows.assign(attack="badnets", attack_name="badnets", asr=0.5, asr_before=0.9)
    known = known.assign(n_triggered=90, key=rows["key"] + "k", victim=rows["victim"] + "k")
    both = pd.concat([rows, known], ignore_index=True)
    built = tables.build(
        both, values=["acc", "asr"], rows=["attack"], cols=["defense"], average=True
    )
    (mean,) = [line for line in built.lines if line.labels[0] not in ("badnets", "theirs")]
    entries = {
        (column.groups[0], column.metric): entry.state
        for column, entry in zip(built.columns, mean.entries, strict=True)
    }
    assert entries["none", "acc"] == "ok" and entries["none", "asr"] == "unknown"


def test_an_unknown_victim_is_not_said_to_have_no_backdoor(
    ran: tuple[sweeper.Sweep, pd.DataFrame],
) -> None:
    rows = ran[1].assign(acc_before=0.9)  # an ACC near chance is another matter
    rows["acc"] = rows["acc"].where(rows["acc"].isna(), 0.9)
    assert not fair.untaken(rows).any() and fair.sentence(fair.victims(rows)) == ""


def test_the_report_shows_it(ran: tuple[sweeper.Sweep, pd.DataFrame]) -> None:
    found = points.points(ran[1]).set_index("defense")
    assert found["blind"][["none", "fine-tuning", "strip"]].all()
    page = report.build(ran[1], "small", {})
    assert "not known, as the victim came without its trigger" in page


def test_what_needs_the_trigger_says_so(
    ran: tuple[sweeper.Sweep, pd.DataFrame], folder: Path
) -> None:
    attack = Imported(path=str(folder))
    with pytest.raises(SweepError, match="came with no trigger, so no other image can be"):
        attack.stamp(toys.image_set(2).images, split="test", state={}, rng=seeds.generator("s"))
    for given in (values(folder), {**sweeps.SMALL, "attacks": ["none"]}):
        sweep = sweeper.Sweep.from_values({**given, "seeds": 1, "defenses": ["none"]})
        with pytest.raises(SweepError, match="has no trigger to show"):
            show.triggered(sweep.declared, sweep.context(folder.parent / "show"))


def test_exported_it_stays_without_one(
    ran: tuple[sweeper.Sweep, pd.DataFrame], folder: Path, tmp_path: Path
) -> None:
    sweep, rows = ran
    context = sweep.context(folder.parent / "store")
    about = exchange.export(sweep.declared, context, rows["victim"][0], tmp_path / "out")
    assert about["trigger"] is False and not (tmp_path / "out/trigger.safetensors").exists()
    one, other = (load_file(at / "model.safetensors") for at in (folder, tmp_path / "out"))
    assert all((one[name] == other[name]).all() for name in one)
    assert not Imported(path=str(tmp_path / "out")).triggers


def test_a_trigger_that_is_lost_is_not_one_that_is_unknown(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    about = tmp_path / "victim.json"
    about.write_text(about.read_text().replace('"trigger": false', '"trigger": true'))
    with pytest.raises(SweepError, match=r"no trigger\.safetensors in"):
        Imported(path=str(tmp_path))


def test_the_shape_is_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("import-model", folder.parent / "w.safetensors", "--as", "theirs", "--model", "tiny")
    words += ("--option", "width=4", "--out", tmp_path)
    for given, why in (
        ([], "--shape: is needed where there is no --trigger"),
        (["--shape", "8,8"], r"--shape: [8, 8] is no C,H,W"),
        (["--shape", "1,8,x"], "--shape 1,8,x: needs numbers such as 3,32,32"),
    ):
        code, _, line = said(capsys, *words, *given)
        assert code == 2 and line.startswith(why)
    code, out, _ = said(capsys, *words, "--shape", "1,8,8")
    assert code == 0 and "attack: imported" in out
