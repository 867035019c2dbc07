"""The files around the code: cluster.yaml against Ray's schema, the README, the shipped sweeps."""

from __future__ import annotations

import json
import re
from pathlib import Path

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


def test_the_method_tables_are_current() -> None:
    from sweeper import listing

    assert "| `badnets` |" in README and "| `anp-oracle` |" in README
    message = "the files changed: run `python -m sweeper.listing README.md`"
    assert listing.rewrite(README) == README, message


def test_every_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'"([\w.]+)"', text.partition("packages = [")[2].partition("]")[0]))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("attacks", "defenses", "sweeper")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found
