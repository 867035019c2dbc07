"""Runs the benchmarks named, or all: `python -m tests.benchmarks [NAME ...] [--out FILE]`."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tabulate import tabulate

from sweeper.run import record
from tests.benchmarks import gpu

OWN = ("inspected",)
"""What has a command of its own, as it needs a store."""
NAMES = sorted({p.stem for p in Path(__file__).parent.glob("[a-z]*.py")} - {*OWN})


def tables(names: list[str]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Benchmark, title and rows of each table, as soon as it is measured; one fails alone."""
    for name in names:
        module = importlib.import_module(f"tests.benchmarks.{name}")
        try:
            found = module.tables() if name == "gpu" else [(name, module.rows())]
            for title, rows in found:
                yield name, title, rows
        except Exception as error:
            traceback.print_exc()
            yield name, name, [{"error": f"{type(error).__name__}: {error}"}]


def spoken(value: Any) -> Any:
    """A value as people read it; nothing for none."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else value


def main() -> None:
    """Measure, print and write; the exit code is 1 where a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.parquet"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    lack = gpu.lacking()
    if lack and "gpu" in asked.names:
        sys.stderr.write(f"{lack}\n")
        raise SystemExit(2)
    torch.set_num_threads(asked.threads)
    frames = []
    for name, title, rows in tables(asked.names or [n for n in NAMES if not (lack and n == "gpu")]):
        frame = pd.DataFrame(rows)
        shown = tabulate(frame.map(spoken), "keys", "github", showindex=False)
        sys.stdout.write(f"\n## {title}\n\n{shown}\n")
        sys.stdout.flush()
        device = record.device_name("cuda" if name == "gpu" else "cpu")
        about = {"benchmark": name, "table": title, "device": device, "threads": asked.threads}
        frames.append(frame.assign(**about, torch=torch.__version__))
        pd.concat(frames).to_parquet(asked.out, index=False)  # what is measured is not lost
    if any("error" in frame for frame in frames):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
