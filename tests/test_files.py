"""The files around the code: cluster.yaml against Ray's schema, the README, the shipped sweeps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_cluster_file_fits_rays_schema() -> None:
    import importlib.util

    import jsonschema

    spec = importlib.util.find_spec("ray")
    assert spec and spec.origin
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0], "the dashboard listens on loopback only"


def test_the_readme_has_two_commands_and_a_real_table() -> None:
    marked = README.partition("<!-- commands -->")[2].partition("<!-- end -->")[0]
    commands = [line for line in marked.splitlines() if line.startswith("    ")]
    assert len(commands) == 2 and "sweeper run quickstart" in commands[0]
    assert "pytest" in commands[1]
    table = README.partition("<!-- quickstart -->")[2].partition("<!-- end quickstart -->")[0]
    assert len(re.findall(r"^\| (badnets|blend|blend-strip) ", table, re.MULTILINE)) == 6


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readme_sweep_is_valid(tmp_path: Path) -> None:
    from sweeper import spec

    (text,) = blocks("yaml")
    path = tmp_path / "my-sweep.yaml"
    path.write_text(text)
    assert spec.load(str(path)).name == "my-sweep"


def test_the_readme_defense_is_listed_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import defenses
    from sweeper import catalog
    from tests import sweeps

    (text,) = blocks("python")
    package = tmp_path / "extra"
    package.mkdir()
    (package / "forget.py").write_text(text)
    monkeypatch.setattr(defenses, "__path__", [*defenses.__path__, str(package)])
    assert "forget" in catalog.names("defense")
    path = sweeps.write(
        tmp_path, attacks=["badnets"], poison_rates=[0.1], seeds=1, defenses=["none", "forget"]
    )
    counts, _ = sweeps.inline(path, tmp_path / "store")
    assert counts == {"ok": 3}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_of_the_readme_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_method_tables_are_current() -> None:
    from sweeper import listing

    assert "| `badnets` |" in README and "| `anp-oracle` |" in README
    message = "the files changed: run `python -m sweeper.listing README.md`"
    assert listing.rewrite(README) == README, message
