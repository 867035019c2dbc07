"""How often `sweeper inspect` is right: every victim of a store, beside what it is.

    python -m tests.benchmarks.inspected STORE --out FOLDER [--share 1/2]

Data lie in SWEEPER_DATA. Each victim of the store's sweeps is inspected as the command does at its
defaults, without repairs, and leaves FOLDER/KEY.json; one that is there is not inspected again, so
that several processes can take shares. At the end inspected.json and inspected.md hold the table
of all that are there, and the rates with Wilson's intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import sweeper
from sweeper import data
from sweeper.analyses import inspect
from sweeper.analyses.inspect import suspect
from sweeper.core.errors import SweepError
from sweeper.store import ledger
from sweeper.tables import fair, results
from sweeper.tables.stats import wilson

EVIDENCE = {
    "neural-cleanse": "Neural Cleanse",
    "ratios": "its norms as ratios",
    "soda": "SODA",
    "clp": "CLP's channels",
    "bnp": "BNP's channels",
    "noise": "noise",
}
Row = dict[str, Any]


def victims(store: str) -> Iterator[Row]:
    """The victims of every sweep of a store, each once, with what is known of them."""
    found = set()
    for place in sorted(Path(store, "sweeps").iterdir()):
        try:
            frame = results.frame(ledger.load(store, place.name)[0])
        except SweepError:  # nothing of it has been run yet
            continue
        for row in frame[frame["status"] == "ok"].to_dict("records"):
            if row["victim"] not in found:
                found.add(row["victim"])
                yield row


def looked(row: Row, store: str) -> Row:
    """Inspect a victim: the facts, and the truth."""
    victim = sweeper.load_victim(row["victim"], store=store)
    entry = {"dataset": victim.axes["dataset"], **json.loads(row["dataset_options"])}
    weights = victim.model.state_dict()
    opened = data.open_dataset(entry)
    model = suspect.of_victim(victim.key, victim.params, weights, opened, budget=500)
    facts = inspect.inspect(model, asked=[]).facts
    clean = row["attack_name"] == "none"
    truth = {name: row[name] for name in ("attack", "seed", "target", "rule", "acc")}
    return {"truth": {**truth, "asr": None if clean else row["asr"], "clean": clean}, **facts}


def right(found: Row, named: list[int]) -> bool:
    """Whether a class that is a target is among those named; all are one of all-to-all."""
    truth = found["truth"]
    everything = truth["rule"] == "all2all"
    return bool(named) if everything else truth["target"] in named


def took(found: Row) -> bool:
    """Whether an attack left a backdoor; no rate counts a model it left none in."""
    return not found["truth"]["clean"] and found["truth"]["asr"] >= fair.TOOK


def line(found: Row) -> Row:
    """One row of the table of models."""
    truth = found["truth"]

    def index(name: str) -> str:
        item = found["evidence"][name]
        number = "-" if item["number"] is None else f"{item['number']:.1f}"
        return f"{number} ({', '.join(map(str, item['named']))})" if item["named"] else number

    def hint(name: str) -> str:
        return ", ".join(map(str, found["evidence"][name]["named"])) or "-"

    attacked = found["verdict"]["attacked"]
    target = "all" if truth["rule"] == "all2all" else truth["target"]
    if truth["clean"]:
        judged = "no" if attacked else "yes"
    elif took(found):
        judged = "yes" if right(found, attacked) else "no"
    else:
        judged = "no backdoor"
    return {
        "model": f"clean, seed {truth['seed']}" if truth["clean"] else truth["attack"],
        "target": "-" if truth["clean"] else target,
        "ACC": f"{100 * truth['acc']:.1f}",
        "ASR": "-" if truth["asr"] is None else f"{100 * truth['asr']:.1f}",
        "Neural Cleanse": index("neural-cleanse"),
        "as ratios": index("ratios"),
        "SODA": index("soda"),
        "CLP": hint("clp"),
        "BNP": hint("bnp"),
        "noise": hint("noise"),
        "looks attacked": ", ".join(map(str, attacked)) or "-",
        "right": judged,
    }


def rates(models: list[Row]) -> Iterator[Row]:
    """Hits and false alarms of the verdict and of each evidence, with intervals of 95 %."""
    named: dict[str, Callable[[Row], list[int]]] = {
        "verdict": lambda found: found["verdict"]["attacked"]
    }
    for name in EVIDENCE:
        named[name] = lambda found, name=name: found["evidence"][name]["named"]
    backdoored = [found for found in models if took(found)]
    clean = [found for found in models if found["truth"]["clean"]]
    for name, of in named.items():
        yield {
            "by": EVIDENCE.get(name, name),
            "backdoored: a target class is named": rate(
                [right(found, of(found)) for found in backdoored]
            ),
            "backdoored: only other classes": rate(
                [bool(of(found)) and not right(found, of(found)) for found in backdoored]
            ),
            "clean: an alarm": rate([bool(of(found)) for found in clean]),
        }


def rate(hits: list[bool]) -> str:
    """A share with its interval: `12 of 20 (39-78 %)`."""
    low, high = wilson(sum(hits), len(hits))
    return f"{sum(hits)} of {len(hits)} ({100 * low:.0f}-{100 * high:.0f} %)"


def written(out: Path) -> str:
    """The tables of all that were inspected, as Markdown; they are left in the folder too."""
    files = [path for path in sorted(out.glob("*.json")) if path.stem != "inspected"]
    models = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    models.sort(key=lambda f: (f["truth"]["clean"], f["truth"]["attack"], f["truth"]["seed"]))
    rows, shares = [line(found) for found in models], list(rates(models))
    tables = [pd.DataFrame(part) for part in (shares, rows)]
    text = "\n\n".join(t.to_markdown(index=False, disable_numparse=True) for t in tables)
    (out / "inspected.md").write_text(f"{text}\n", encoding="utf-8")
    whole = json.dumps({"rates": shares, "models": rows}, indent=1)
    (out / "inspected.json").write_text(f"{whole}\n", encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", default="1/1", help="such as 2/3: the second of three")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, asked.share.split("/"))
    asked.out.mkdir(parents=True, exist_ok=True)
    for row in list(victims(asked.store))[part - 1 :: parts]:
        path = asked.out / f"{row['victim']}.json"
        if not path.exists():
            found = looked(row, asked.store)
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
            sys.stderr.write(f"{row['attack']}: {found['verdict']['headline']}\n")
    sys.stdout.write(f"{written(asked.out)}\n")


if __name__ == "__main__":
    main()
