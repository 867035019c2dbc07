"""A folder of the user's that has our modules' names: never imported in place of ours, or told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import sweeps
from tests.support.places import ROOT

SHADOW = "raise RuntimeError('shadowed')\n"
ENTRY = "from sweeper.cli import main\n\nif __name__ == '__main__':\n    main()\n"
"""What the command `sweeper` is."""


def run(folder: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, this checkout being installed after `path`."""
    here = {"PYTHONPATH": os.pathsep.join(filter(None, (path, str(ROOT)))), "PYTHONSAFEPATH": ""}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **here},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A folder with modules of the names of ours and of Python's, beside one of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("attacks", "defenses", "sweeper"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(SHADOW)
    (folder / "random.py").write_text(SHADOW)
    (folder / "own.py").write_text("from defenses.clp import CLP\nclass Own(CLP): pass\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "start.py").write_text(ENTRY)
    return folder


@pytest.mark.parametrize("way", ["-m", "PYTHONPATH=.", "-c"])
@pytest.mark.parametrize("file", ["attacks/__init__.py", "defenses.py"])
def test_a_package_that_stands_before_ours_is_one_sentence(
    tmp_path: Path, way: str, file: str
) -> None:
    folder = tmp_path / "work"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text(SHADOW)
    (tmp_path / "start.py").write_text(ENTRY)
    python = (
        "import sweeper\ntry: sweeper.Sweep\n"
        "except sweeper.SweepError as error: raise SystemExit(str(error))\n"
    )
    words, path = {
        "-m": (["-m", "sweeper", "list", "attacks"], ""),
        "PYTHONPATH=.": (["../start.py", "plan", "quickstart"], "."),
        "-c": (["-c", python], ""),
    }[way]
    said = run(folder, *words, path=path)
    (line,) = said.stderr.splitlines()
    name = Path(file).parts[0].removesuffix(".py")
    assert line.startswith(f"{name}: {folder / Path(file).parts[0]} is imported in place of ")
    assert str(ROOT / name) in line and "with `sweeper`, not" in line and "PYTHONPATH" in line
    assert said.returncode == (1 if way == "-c" else 2) and not said.stdout


@pytest.mark.slow
def test_a_child_imports_what_its_cell_does_whatever_lies_in_the_folder(shadows: Path) -> None:
    (shadows.parent / "bin" / "probe.py").write_text(
        "import os, random, sys\n"
        "from sweeper.run import apart\n"
        "def found(log):\n"
        "    import attacks, sweeper\n"
        "    kept = [os.environ.get(n) for n in ('PYTHONPATH', 'PYTHONSAFEPATH')]\n"
        "    return [attacks.__file__, sweeper.__file__, *sys.path, *kept]\n"
        "if __name__ == '__main__':\n"
        "    import probe\n"
        "    assert apart.call(probe.found, (), 60, None) == found(None)\n"
        "    print('the same')\n"
    )
    said = run(shadows, "../bin/probe.py")
    assert said.stdout == "the same\n", said.stderr


@pytest.mark.parametrize("address", [None, "auto"])
def test_ray_is_told_where_this_process_finds_modules_and_no_folder_before_that(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    from sweeper.run import rays, start  # Ray is imported where it is needed

    given: dict[str, Any] = {}

    def init(**options: Any) -> SimpleNamespace:
        given.update(options, path=os.environ["PYTHONPATH"], safe=os.environ["PYTHONSAFEPATH"])
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(rays.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(rays.ray, "init", init)
    monkeypatch.setattr(start, "nodes", list)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    before = dict(os.environ)
    start.connect(address)
    assert given["path"].split(os.pathsep) == [str(Path.cwd()), *sys.path[1:]]
    assert given["safe"] and dict(os.environ) == before
    config = given["job_config"]
    assert config._runtime_env_has_working_dir(), "so Ray adds no folder of its own accord"
    assert not config._get_proto_job_config().py_driver_sys_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_runs_from_a_folder_with_packages_of_our_names(shadows: Path) -> None:
    defenses = ["none", {"defense": "own:Own", "as": "own"}]
    one = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1, "defenses": defenses}
    path = sweeps.write(shadows, **one)
    said = run(shadows, "../bin/start.py", "run", path.name, "--store", "store")
    assert said.returncode == 0, said.stderr
    assert set(sweeps.frame(shadows / "store")["status"]) == {"ok"}
