"""Every analysis found by its file name leaves a picture and its numbers for each victim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeper.analyses import analyze, looks
from sweeper.core.errors import SweepError
from sweeper.plan import spec
from sweeper.run.material import Context
from tests.support import sweeps, toys


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep of one victim: (its file, its store)."""
    folder = tmp_path_factory.mktemp("analyses")
    defenses = ["none", {"defense": "fine-tuning", "epochs": 1}]
    path = sweeps.write(folder, attacks=["badnets"], poison_rates=[0.2], seeds=1, defenses=defenses)
    sweeps.inline(path, folder / "store")
    return path, folder / "store"


def look(swept: tuple[Path, Path], out: Path, name: str, **changes: Any) -> list[Path]:
    sweep = spec.load(str(swept[0]))
    context = Context(store=str(swept[1]), sweep=sweep.name, device="cpu")
    look = toys.small_look(name)
    return list(analyze.pictures(name, look, sweep, context, out, **changes))


@pytest.mark.parametrize("name", looks.names())
def test_picture_and_numbers(name: str, swept: tuple[Path, Path], tmp_path: Path) -> None:
    (path,) = look(swept, tmp_path, name)
    assert path.name.startswith(f"{name}-badnets-0.2-digits-tiny-seed-0-")
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 5000
    found = pd.read_parquet(path.with_suffix(".parquet"))
    assert len(found) > 1 and not found.isna().all().any()
    (again,) = look(swept, tmp_path / "again", name)
    pd.testing.assert_frame_equal(found, pd.read_parquet(again.with_suffix(".parquet")))


def test_after_a_defense_and_what_is_not_there(swept: tuple[Path, Path], tmp_path: Path) -> None:
    said: list[Any] = []
    (path,) = look(swept, tmp_path, "tsne", after="fine-tuning", log=lambda **s: said.append(s))
    assert "after-fine-tuning" in path.name
    assert said == [{"victim": "1/1: badnets 0.2, digits, tiny, seed 0, after fine-tuning"}]
    with pytest.raises(SweepError, match="did you mean 'fine-tuning'"):
        look(swept, tmp_path, "tsne", after="fine-tunning")
    with pytest.raises(SweepError, match="no victim"):
        look(swept, tmp_path, "tsne", victim="zzz")


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same of point clouds."""
    folder = tmp_path_factory.mktemp("clouds")
    solids = {"dataset": "solids", "per_class": 12, "test_per_class": 4, "points": 32}
    pcba = {"attack": "pcba", "points": 4, "steps": 3, "starts": 2, "clouds": 4}
    values = {"datasets": [solids], "models": ["pointnet-small"], "attacks": [pcba], "seeds": 1}
    values |= {"poison_rates": [0.5], "reserve": 0.25, "clean_budgets": [16]}
    values |= {"recipe": {"epochs": 1}, "defenses": ["none", {"defense": "seam", "epochs": 1}]}
    path = sweeps.write(folder, **values)
    sweeps.inline(path, folder / "store")
    return path, folder / "store"


@pytest.mark.parametrize("name", looks.names())
def test_beyond_images_a_look_is_taken_or_refused(
    name: str, clouds: tuple[Path, Path], tmp_path: Path
) -> None:
    if looks.analysis(name).tasks.isdisjoint({"any", "points"}):
        with pytest.raises(SweepError, match=f"{name} is made for image data, these are points"):
            look(clouds, tmp_path, name)
        return
    (path,) = look(clouds, tmp_path, name)
    assert path.name.startswith(f"{name}-pcba-0.5-solids-pointnet-small-seed-0-")
    assert len(pd.read_parquet(path.with_suffix(".parquet"))) > 1
