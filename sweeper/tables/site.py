"""A store's results as a static site: leaderboards, a page a sweep and a method, where from.

Every page stands alone: it opens from disk as from any web server, and loads nothing. The same
rows give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.core.errors import SweepError
from sweeper.core.rows import AXES
from sweeper.core.text import without_homes
from sweeper.tables import conditions, fair, leaderboard, report, tables
from sweeper.tables.boards import Shown, boards
from sweeper.tables.elements import Child, Html, asset, document, grid, joined, prose, tag
from sweeper.tables.leaderboard import called, method_page, method_path, units
from sweeper.tables.render import fragment
from sweeper.tables.results import by_task

INDEX, SUMS = "sweeper-site.json", "sha256sums.txt"
"""What says which files a folder has of its site; the same for `sha256sum -c`."""
_FORMAT = 1


@dataclass(frozen=True)
class Method:
    """What a page says of a method that ships."""

    title: str
    """Its title."""
    facts: Mapping[str, str]
    """What is said of it in a word or two, by name: paper, sees, kind."""
    text: str
    """The head of its module."""
    options: Sequence[tuple[str, str, str, str]]
    """Options: name, default, range, what it is."""
    presets: Mapping[str, str]
    """Preset -> what it sets."""


Describe = Callable[[str, str], Method | None]
"""Takes attack or defense and a name; None for a method that does not ship."""
Say = Callable[[str], None]
"""Is told what happens, a line each."""


def made(folder: Path) -> list[str]:
    """Return the files of the site in a folder, relative to it; none where there is no site."""
    try:
        files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]
        return [INDEX, SUMS, *map(str, files)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def told(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows as anyone may read them: a path in rows of older code may name a home."""
    changed: dict[str, Any] = {}
    for name, column in rows.items():
        if name not in AXES and pd.api.types.is_string_dtype(column.dtype):
            values = column.dropna().unique()
            homes = {text: said for text in values if (said := without_homes(text)) != text}
            changed |= {str(name): column.replace(homes)} if homes else {}
    return rows.assign(**changed)


def write(
    sweeps: Sequence[Shown], folder: Path, *, title: str, describe: Describe, say: Say
) -> tuple[int, int]:
    """Write the site of sweeps into a folder.

    Args:
        sweeps: In the order to show.
        folder: An empty one.
        title: What the site is called.
        describe: Says what a method is.
        say: Told of each page that takes a while.

    Returns:
        Files and bytes.

    Raises:
        SweepError: A sweep has no rows, or rows of several settings under one label.
    """
    sums: dict[str, str] = {}
    size = 0
    for path, content in _files(sweeps, title, describe, say):
        data = content.encode() if isinstance(content, str) else content
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        sums[path] = hashlib.sha256(data).hexdigest()
        size += len(data)
    index = {"site": _FORMAT, "title": title, "sweeps": [s.name for s in sweeps], "files": sums}
    text = json.dumps(index, indent=1) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")
    listed = {**sums, INDEX: hashlib.sha256(text.encode()).hexdigest()}
    lines = [f"{digest}  {path}\n" for path, digest in sorted(listed.items())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return len(listed) + 1, size


def _files(
    sweeps: Sequence[Shown], title: str, describe: Describe, say: Say
) -> Iterator[tuple[str, str | bytes]]:
    """Yield the path and the content of every file but the two that list them."""
    for sweep in sweeps:
        say(f"{sweep.name}: {len(sweep.rows):,} rows")
        try:
            sweep.points  # noqa: B018
            yield from _sweep(sweep, title)
        except SweepError as error:
            raise SweepError(f"{sweep.name}: {error}; or leave it out with --sweep") from None
    found = methods(sweeps)
    say(f"{len(found)} methods")
    for kind, name in found:
        body = method_page(kind, name, sweeps, _described(describe(kind, name)))
        heading = called(kind, name, name)
        yield method_path(kind, name), _page(title, heading, body, up="../")
    yield "about.html", _page(title, "How these numbers were made", _about(sweeps), up="")
    say("leaderboards")
    body = [*leaderboard.body(boards(sweeps)), _listed(sweeps, found)]
    yield "index.html", _page(title, title, body, up="", script=asset("site.js"))


def methods(sweeps: Iterable[Shown]) -> list[tuple[str, str]]:
    """Return the methods that occur, (kind, name) each, sorted."""
    found = set()
    for sweep in sweeps:
        for kind in ("attack", "defense"):
            names = sweep.frame[f"{kind}_name"].fillna(sweep.frame[kind]).unique()
            found |= {(kind, str(name)) for name in names}
    return sorted(found)


def _page(
    title: str, heading: str, body: Iterable[Child], *, up: str, script: Html | None = None
) -> str:
    """A page of the site; `up` leads from it to the site's folder."""
    links = {"Leaderboards": "index.html", "Sweeps": "index.html#sweeps"}
    links |= {"Methods": "index.html#methods", "About": "about.html"}
    return document(
        heading if heading == title else f"{heading} - {title}",
        tag("a", "Skip to the results", class_="skip", href="#main"),
        tag(
            "header",
            tag("p", "Backdoor attacks against backdoor defenses", class_="kicker"),
            tag("h1", heading),
            tag(
                "nav",
                [tag("a", name, href=up + path) for name, path in links.items()],
                aria_label="Pages",
            ),
        ),
        tag("main", *body, id="main", tabindex=-1),
        style=Html(f"{asset('report.css')}\n{asset('site.css')}"),
        script=script,
    )


# A sweep


def _sweep(sweep: Shown, title: str) -> Iterator[tuple[str, str | bytes]]:
    home = f"sweeps/{sweep.name}"
    order = sweep.view.order({axis: list(labels) for axis, labels in sweep.order.items()})
    built = [tables.viewed(one, sweep.view, order) for one in by_task(sweep.rows, _first(sweep))]
    files = {"report.html": "report", "sweep.yaml": "sweep file", "rows.csv": "rows as CSV"}
    files |= {"rows.parquet": "rows as Parquet"}
    body = [
        tag("p", [tag("a", what, href=file) for file, what in files.items()], class_="links"),
        [tag("div", Html(fragment(one)), class_="scroll", tabindex=0) for one in built],
    ]
    yield f"{home}/index.html", _page(title, sweep.name, body, up="../../")
    yield (
        f"{home}/report.html",
        report.build(
            sweep.rows,
            sweep.name,
            order,
            untaken=sweep.view.untaken,
            max_acc_loss=sweep.view.max_acc_loss,
            text=sweep.text,
            data=sweep.data,
        ),
    )
    yield f"{home}/sweep.yaml", without_homes(sweep.text)
    yield f"{home}/rows.csv", sweep.rows.to_csv(index=False, lineterminator="\n")
    sink = io.BytesIO()
    table = pa.Table.from_pandas(sweep.rows, preserve_index=False).replace_schema_metadata()
    pq.write_table(table, sink)
    yield f"{home}/rows.parquet", sink.getvalue()


def _first(sweep: Shown) -> Sequence[str]:
    return sweep.order.get("dataset", ())


# What there is


def _listed(sweeps: Sequence[Shown], found: Sequence[tuple[str, str]]) -> Html:
    lines = [
        (
            tag("a", sweep.name, href=f"sweeps/{sweep.name}/index.html"),
            f"{len(sweep.rows):,}",
            *(", ".join(map(str, sweep.frame[axis].unique())) for axis in ("dataset", "model")),
            *(str(sweep.frame[axis].nunique()) for axis in ("attack", "defense", "seed")),
            tag("a", "report", href=f"sweeps/{sweep.name}/report.html"),
        )
        for sweep in sweeps
    ]
    heads = ("sweep", "rows", "data sets", "models", "attacks", "defenses", "seeds", "page")
    named = {kind: [name for k, name in found if k == kind] for kind in ("attack", "defense")}
    links = [
        tag(
            "p",
            tag("strong", f"{kind.capitalize()}s: "),
            _between(
                [tag("a", called(kind, name, name), href=method_path(kind, name)) for name in names]
            ),
        )
        for kind, names in named.items()
    ]
    return joined(
        tag("section", tag("h2", "Sweeps"), grid(heads, lines), id="sweeps"),
        tag("section", tag("h2", "Methods"), links, id="methods"),
    )


def _between(items: Sequence[Html]) -> list[Child]:
    return [joined(", " * bool(place), item) for place, item in enumerate(items)]


def _described(method: Method | None) -> list[Child]:
    """What a page says of a method before its numbers."""
    if method is None:
        return [tag("p", "It does not ship with the sweeper; its rows are below.", class_="note")]
    body: list[Child] = [tag("p", tag("strong", method.title)), _facts(method.facts)]
    body.append(prose(method.text))
    if method.options:
        body.append(tag("h2", "Options"))
        body.append(grid(("option", "default", "range", "what it is"), method.options, words=True))
    if method.presets:
        body.append(tag("h2", "Presets"))
        body.append(grid(("preset", "sets"), method.presets.items(), words=True))
    return body


def _facts(facts: Mapping[str, Child]) -> Html:
    pairs = [(tag("dt", name), tag("dd", text)) for name, text in facts.items()]
    return tag("dl", pairs, class_="facts")


# Where from


def _about(sweeps: Sequence[Shown]) -> list[Child]:
    body: list[Child] = [
        tag("p", text)
        for text in (
            "A victim is a model that an attack has poisoned. Each defense is run on it, and both "
            "are measured on test samples that no defense has seen: ACC is the share of clean "
            "samples that are labelled right (mAP of object detection, BLEU of language "
            "generation), ASR the share of triggered samples that get what the attacker wants. "
            "A good defense leaves a high ACC and a low ASR.",
            f"Numbers are means over seeds. {units()}",
            "A setting is one attack, poison rate and target. Defenses are ranked in each setting, "
            "and a rank is the average over all settings in which every ranked defense has a "
            "value. A defense that lost more ACC than its sweep allows is last in that setting. A "
            f"victim does not count where {fair.UNTAKEN}.",
            "Several sweeps share a leaderboard only where equal names mean equal options, data, "
            "training and rules. Otherwise each sweep has a leaderboard of its own.",
            "The same command on the same sweep file gives the same numbers: each row has a key, "
            "the hash of all that its numbers depend on. "
            f"{SUMS} has the checksum of each file of this site.",
        )
    ]
    return [*body, *(_origin(sweep) for sweep in sweeps)]


def _origin(sweep: Shown) -> Html:
    """Where the numbers of a sweep come from."""
    rows = sweep.frame
    started = rows["started_at"].dropna().str[:10]
    code = sorted({pair for text in rows["code"].dropna().unique() for pair in _hashes(text)})
    facts: dict[str, Child] = {
        "rows": ", ".join(
            f"{count:,} {str(status).replace('_', ' ')}"
            for status, count in rows["status"].value_counts().items()
        ),
        "run": f"{started.min()} to {started.max()}" if len(started) else "not recorded",
        "devices": "; ".join(_counts(rows["device"])) or "not recorded",
        "versions": "; ".join(re.sub(r'[{}"]', "", text) for text in _counts(rows["versions"])),
        "data": "; ".join(f"{name}: {digest}" for name, digest in (sweep.data or {}).items())
        or "digests not recorded",
        "code": tag("details", tag("summary", f"{len(code)} hashes"), tag("p", "; ".join(code)))
        if code
        else "hashes not recorded",
    }
    notes = [*filter(None, [fair.sentence(fair.victims(rows))]), *conditions.notes(rows)]
    return tag(
        "section",
        tag("h2", tag("a", sweep.name, href=f"sweeps/{sweep.name}/index.html")),
        _facts(facts),
        [tag("p", note, class_="note") for note in notes],
    )


def _counts(column: pd.Series[Any]) -> list[str]:
    counts = column.value_counts()
    ordered = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return [f"{value} ({count} rows)" for value, count in ordered]


def _hashes(text: str) -> list[str]:
    return [f"{name} {digest}" for name, digest in json.loads(text).items() if digest]
