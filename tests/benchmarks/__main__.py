"""Runs the benchmarks named, or all: `python -m tests.benchmarks [NAME ...] [--out FILE]`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import pandas as pd
import torch
from tabulate import tabulate

from sweeper.run import record

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.parquet"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    torch.set_num_threads(asked.threads)
    frames = []
    for name in asked.names or NAMES:
        frame = pd.DataFrame(importlib.import_module(f"tests.benchmarks.{name}").rows())
        sys.stdout.write(f"\n## {name}\n\n{tabulate(frame, 'keys', 'github', showindex=False)}\n")
        sys.stdout.flush()
        frames.append(frame.assign(benchmark=name))
    device = record.device_name(torch.device("cpu"))
    every = pd.concat(frames).assign(device=device, threads=asked.threads, torch=torch.__version__)
    every.to_parquet(asked.out, index=False)


if __name__ == "__main__":
    main()
