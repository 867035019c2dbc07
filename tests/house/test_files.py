"""The files around the code: cluster.yaml against Ray's schema, the README, the shipped sweeps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


CLUSTER = (ROOT / "cluster.yaml").read_text(encoding="utf-8")


def clusters() -> list[dict[str, Any]]:
    """cluster.yaml as it stands, and with each of its commented blocks in place."""
    found = [yaml.safe_load(CLUSTER)]
    for head, text in re.findall(r"^# \[(.*)\]\n((?:# .*\n)+)", CLUSTER, re.MULTILINE):
        block = yaml.safe_load(re.sub("^# ", "", text, flags=re.MULTILINE))
        kept = {key: value for key, value in found[0].items() if key not in head}
        found.append({**kept, **block})
    return found


def test_cluster_file_fits_rays_schema() -> None:
    import importlib.util

    import jsonschema
    from ray.autoscaler._private.util import prepare_config

    spec = importlib.util.find_spec("ray")
    assert spec and spec.origin
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    aws, gcp, local = clusters()
    assert [each["provider"]["type"] for each in (aws, gcp, local)] == ["aws", "gcp", "local"]
    local = prepare_config(local)  # Ray turns its addresses into node types, without asking anyone
    (kind,) = local["available_node_types"].values()
    assert kind["max_workers"] == 2 and local["file_mounts"]
    for cluster in (aws, gcp, local):
        jsonschema.validate(cluster, schema)
        with pytest.raises(jsonschema.ValidationError, match="max_worker"):
            jsonschema.validate({**cluster, "max_worker": 3}, schema)


def test_starting_ray_asks_for_a_token_and_keeps_the_dashboard_here() -> None:
    cluster = yaml.safe_load(CLUSTER)
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0], "the dashboard listens on loopback only"


def test_grafana_asks_for_what_is_counted() -> None:
    """Every expression names a metric of `sweeper.run.meter` or one of Ray's nodes."""
    dashboard = json.loads((ROOT / "sweeper/run/grafana.json").read_text(encoding="utf-8"))
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    asked = set(re.findall(r"ray_(sweeper_\w+?)(?:_total|_bucket)?\b", " ".join(expressions)))
    code = (ROOT / "sweeper/run/meter.py").read_text(encoding="utf-8")
    assert asked == set(re.findall(r'"(sweeper_\w+)"', code)) and len(asked) == 7
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_readme_has_two_commands_and_a_real_table() -> None:
    marked = README.partition("<!-- commands -->")[2].partition("<!-- end -->")[0]
    commands = [line for line in marked.splitlines() if line.startswith("    ")]
    assert len(commands) == 2 and "sweeper run quickstart" in commands[0]
    assert "pytest" in commands[1]
    table = README.partition("<!-- quickstart -->")[2].partition("<!-- end quickstart -->")[0]
    assert len(re.findall(r"^\| (BadNets|Blend|Trojan) ", table, re.MULTILINE)) == 3


def test_the_readme_is_short_and_begins_with_what_one_sees_and_types() -> None:
    assert len(README.split()) <= 1800, "what is long stands in docs/"
    lines = README.splitlines()
    places = [
        next(number for number, line in enumerate(lines) if line.startswith(start))
        for start in ("![", "<!-- commands -->", "<!-- end -->", "|")
    ]
    assert places == sorted(places), "picture, commands, then the first table"
    assert places[2] < 40, "picture and commands are on the first screen"


@pytest.mark.parametrize(
    ("page", "known"),
    [
        ("README.md", ["- on the data: adaptive-blend,", "- repair: anp, anp-oracle,"]),
        (
            "docs/methods.md",
            ["](attacks.md#badnets) |", "](defenses.md#anp-oracle) |", "| all but vit-tiny |"],
        ),
    ],
)
def test_the_lists_of_methods_are_current(page: str, known: list[str]) -> None:
    from sweeper.cli import listing

    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(words in text for words in known)
    message = f"the files changed: run `python -m sweeper.cli.listing {page}`"
    assert listing.rewrite(text) == text, message


def test_the_readme_names_every_method_once() -> None:
    from sweeper.core.names import names

    listed = README.partition("<!-- names -->")[2].partition("<!-- end names -->")[0]
    attacks, defenses = listed.split("**Defenses**")
    for kind, text in (("attack", attacks), ("defense", defenses)):
        items = re.findall(r"^- [a-z0-9 ]+: (.*(?:\n  .*)*)", text, re.MULTILINE)
        assert sorted(word for item in items for word in re.split(r",\s+", item)) == names(kind)


def test_the_rooms_are_described_as_they_are_held() -> None:
    from tests.house.test_structure import ROOMS

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    heads = re.findall(
        r"^ {4}(\w\S*(?: \S+)*) {2,}\S", text.partition("divided into *rooms*")[2], re.MULTILINE
    )
    rooms = [re.sub(r"sweeper/|\.py|,", "", head).split() for head in heads]
    held = [line.split() for line in ROOMS if line and line != "__main__"]
    assert rooms[: len(held)] == held
    drawn = (ROOT / "docs/rooms.svg").read_text(encoding="utf-8")
    assert all(f">{name}<" in drawn for line in held for name in line)


def test_the_citation_is_the_packages() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert cited["message"] and cited["title"] and cited["abstract"] and cited["keywords"]
    assert all(set(author) == {"name"} for author in cited["authors"]), "an entity, no person"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for field in ("version", "license"):
        (value,) = re.findall(rf'^{field} = "(.*)"$', project, re.MULTILINE)
        assert cited[field] == value, f"CITATION.cff: {field} is not that of pyproject.toml"


def test_every_package_is_installed() -> None:
    """setuptools finds the folders that have an `__init__.py`."""
    for package in ("attacks", "defenses", "sweeper"):
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} would not be installed"
