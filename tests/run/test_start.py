"""What Ray is started with: our cores, and nothing that others may read."""

from __future__ import annotations

import importlib.util
import io
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sweeper import api
from sweeper.core import machine
from sweeper.core.errors import SweepError
from sweeper.plan.sweep import Shape
from tests.support import sweeps
from tests.support.places import ROOT


@pytest.fixture
def open_mask() -> Iterator[None]:
    """New files are for everybody, unless who makes them says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("on_path", ["ours", "another", "none"])
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_the_command_that_prints_the_token_is_this_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_path: str, mode: str
) -> None:
    from sweeper.run import start

    for place in ("ours", "another"):
        (tmp_path / place).mkdir()
        for name in ("ray", "python"):
            (tmp_path / place / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "ours/python"))
    monkeypatch.setenv("PATH", str(tmp_path / on_path))
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    ray = "ray" if on_path == "ours" else tmp_path / "ours/ray"
    wanted = f"{ray} get-auth-token" if mode == "token" else ""
    assert start.token_command() == wanted
    (tmp_path / "ours/ray").unlink()  # as where Ray lies in another folder than Python
    if mode == "token":
        words = start.token_command().split()
        assert words[:2] == [sys.executable, "-m"] and importlib.util.find_spec(words[2])


def test_a_start_says_that_it_takes_place_and_how_to_open_the_dashboard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sweeper.run import rays, start

    monkeypatch.setattr(rays, "room", lambda *_: 1)
    monkeypatch.setattr(start, "connect", lambda *_: "http://here:8265")
    monkeypatch.setattr(rays.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(start, "token_command", lambda: "ray get-auth-token")
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=50, highlight=False)
        api._with_ray(SimpleNamespace(shapes=[Shape()]), None, console)
        said = console.file.getvalue()  # type: ignore[attr-defined]
        token = "(token: `ray get-auth-token`)"
        link = f"Ray dashboard: http://here:8265 {token}\n"  # one line, to be copied
        waited = "starting Ray ...\n"
        if terminal:
            waited += "\x1b[?25h\r\x1b[1A\x1b[2K"  # and is gone
        assert said.endswith(waited + link)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path that leaves room for sockets below it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def begun(short: Path, monkeypatch: pytest.MonkeyPatch, open_mask: None) -> dict[str, Any]:
    """What `connect` gave `ray.init`, and the modes at that moment; Ray itself does not start."""
    from sweeper.run import rays

    seen: dict[str, Any] = {}

    def init(**options: Any) -> Any:
        seen.update(options, modes=modes(short))
        raise RuntimeError("seen enough")

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(short / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    monkeypatch.setattr(rays.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(rays.ray, "init", init)
    (short / "home").mkdir(mode=0o700)
    return seen


def modes(folder: Path) -> dict[str, int]:
    """Path below a folder -> its permissions; links have none of their own."""
    found = (p for p in folder.rglob("*") if not p.is_symlink())
    return {str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) for p in found}


def connect(address: str | None = None) -> None:
    from sweeper.run import start

    with pytest.raises(SweepError, match="seen enough"):
        start.connect(address)


def test_ray_gets_the_cores_that_are_ours(
    begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    connect()
    assert begun["num_cpus"] == machine.cores() == 1


def test_the_token_is_its_owners_before_ray_starts(begun: dict[str, Any], short: Path) -> None:
    connect()
    assert begun["modes"]["home/.ray"] == 0o700
    assert begun["modes"]["home/.ray/auth_token"] == 0o600
    token = (short / "home/.ray/auth_token").read_text()
    assert len(token) == 64 and int(token, 16), "as Ray makes one"
    connect()
    assert (short / "home/.ray/auth_token").read_text() == token
    assert [p.name for p in (short / "home/.ray").iterdir()] == ["auth_token"]


@pytest.mark.parametrize("address", [None, "head:6379"])
def test_a_token_others_may_read_is_taken_from_them(
    address: str | None, begun: dict[str, Any], short: Path
) -> None:
    token = short / "home/.ray/auth_token"
    token.parent.mkdir()
    token.write_text("mine")
    connect(address)
    assert token.read_text() == "mine" and begun["modes"]["home/.ray/auth_token"] == 0o600


@pytest.mark.parametrize(
    ("address", "variable", "value"),
    [
        ("head:6379", "HOME", None),
        (None, "RAY_AUTH_TOKEN", "a" * 64),
        (None, "RAY_AUTH_TOKEN_PATH", "token"),
        (None, "RAY_AUTH_MODE", "disabled"),
    ],
)
def test_no_token_is_made_where_ray_takes_another_or_none(
    address: str | None,
    variable: str,
    value: str | None,
    begun: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if value:
        monkeypatch.setenv(variable, value)
    connect(address)
    assert "home/.ray" not in begun["modes"]


def test_a_session_lies_in_a_folder_of_its_owner(begun: dict[str, Any], short: Path) -> None:
    own = short / f"sweeper-{os.getuid()}"
    own.mkdir()  # by a version, or a hand, that left it open
    connect()
    assert begun["modes"][own.name] == 0o700
    assert begun["_temp_dir"] == str(own / "ray")
    connect("head:6379")
    assert begun["address"] == "head:6379" and begun["num_cpus"], "what was given before stays"


def test_a_folder_that_is_not_ours_is_refused(
    begun: dict[str, Any], short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper.run import start

    own = short / f"sweeper-{os.getuid()}"
    own.symlink_to(short / "home")
    with pytest.raises(SweepError, match=r"sweeper-\d+ is not a folder of yours.*set RAY_TMPDIR"):
        start.connect(None)
    monkeypatch.setenv("RAY_TMPDIR", str(short / "none"))
    with pytest.raises(SweepError, match=r"none/sweeper-\d+ is not a folder of yours"):
        start.connect(None)
    assert not begun, "Ray has not started"


def test_a_long_path_makes_room_for_rays_sockets(
    begun: dict[str, Any], short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short / ("long" * 30)).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(short / ("long" * 30)))
    connect()
    assert begun["_temp_dir"] == f"/tmp/sweeper-{os.getuid()}/ray"


@pytest.mark.slow
def test_what_a_real_ray_writes_is_its_owners(tmp_path: Path, short: Path, open_mask: None) -> None:
    one = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1, "defenses": ["none"]}
    path = sweeps.write(tmp_path, **one)
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "RAY_TMPDIR": str(short)}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    ran = subprocess.run(
        [sys.executable, "-m", "sweeper", "run", str(path), "--store", str(tmp_path / "store")],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    found = modes(short)
    assert found.pop(f"sweeper-{os.getuid()}") == 0o700
    assert any(name.endswith("/logs") for name in found)
    assert all(name.startswith(f"sweeper-{os.getuid()}/") for name in found), (
        "all of it is in there"
    )
    assert modes(home)[".ray/auth_token"] == 0o600
    rows = modes(tmp_path / "store")
    assert [mode for name, mode in rows.items() if name.endswith(".parquet")] == [0o666], (
        "the mask of who runs it decides over the store: a group may share it"
    )
