"""Rows, failures and the report of a sweep tell nobody where its user's files lie."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweeper.cli import figures
from sweeper.core import catalog, text
from sweeper.run import costs, driver
from tests.support import pictures, sweeps

FAILS = """
import dataclasses

from tests.support.faulty import Faulty


class Fails(Faulty):
    def defend(self, case):
        open(self.marks + "/none").read()


class Tells(Faulty):
    def defend(self, case):
        where = [__file__, "\\n" + self.marks]
        return dataclasses.replace(super().defend(case), notes={"where": where})
"""


def test_no_path_of_a_home_is_in_what_others_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "änn"
    (start := home / "proj").mkdir(parents=True)
    (start / "mine.py").write_text(FAILS)
    labels = [i % 3 for i in range(60)]
    images = [pictures.picture(i, (8, 8)) for i in range(60)]
    pictures.write_folder(home / "data" / "train", images, labels)
    pictures.write_folder(start / "data" / "test", images[:12], labels[:12])
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(start)
    monkeypatch.setattr(catalog, "_BESIDE", [])
    monkeypatch.setattr(text, "STARTED_IN", [])
    own = [
        {"defense": f"mine:{name}", "as": name, "marks": str(home / "marks")}
        for name in ("Fails", "Tells")
    ]
    (home / "marks").mkdir()
    values = {
        "name": "small",
        "datasets": [{"dataset": "pictures", "path": str(home / "data"), "test_share": 0.2}],
        "models": [{"model": "tiny", "width": 4}],
        "attacks": ["badnets", {"attack": "tests.support.faulty:FailsToPoison", "as": "unbuilt"}],
        "poison_rates": [0.1],
        "seeds": 1,
        "defenses": ["none", *own],
        "recipe": {"epochs": 1, "batch": 16},
    }
    path = sweeps.write(start, **values)
    job = sweeps.prepared(path, start / "store", outside=())
    driver.execute(job, driver.inline, sweeps.Silent())
    (found,) = [frame.set_index(["attack", "defense"]) for frame in [sweeps.frame(start / "store")]]
    assert found.loc["badnets", "none"]["status"] == "ok", found.loc["badnets", "none"]["error"]
    assert '"path": "~/data"' in found.loc["badnets", "none"]["dataset_options"]
    assert 'File "mine.py", line' in found.loc["badnets", "Fails"]["error"]
    assert "'~/marks/none'" in found.loc["badnets", "Fails"]["error"]
    assert found.loc["badnets", "Tells"]["notes"] == '{"where": ["mine.py", "\\n~/marks"]}'
    assert set(found.loc["unbuilt"]["status"]) == {"blocked"}

    figures.report(str(path), out=start / "page.html", store=str(start / "store"))
    shown = [*(start / "store/sweeps/small").glob("failures/*"), start / "page.html"]
    assert len(shown) > 2
    texts = [file.read_text() for file in shown]
    for part in (start / "store/sweeps/small/results").glob("*.parquet"):
        texts.append(str(pq.read_table(part).to_pylist()))
    for told in texts:
        for name in (str(home), str(home).encode("unicode_escape").decode(), "änn"):
            assert name not in told

    sorts = costs.Sorts(job.plan)
    known = {sorts.of(cell) for cell in job.plan.cells.values()}
    ended = [row for row in job.store.recent_rows(costs.COLUMNS, 9) if row["status"] == "ok"]
    assert len(ended) == 2
    for row in ended:
        assert sorts.of_row(row)[0] in known, "what a cell costs is found again"
        before = {**row, "dataset_options": row["dataset_options"].replace("~", str(home))}
        assert sorts.of_row(before) == sorts.of_row(row), "and so it is of older rows"
