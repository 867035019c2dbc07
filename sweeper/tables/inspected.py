"""An inspected model as one HTML page that opens from disk and runs no script, and as lines.

The facts are those of `sweeper.analyses.inspect`; its JSON has the same.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sweeper.tables.elements import asset, filled

Facts = Mapping[str, Any]
Pictures = Mapping[int, tuple[bytes, bytes]]
"""Class -> PNGs of its inverted trigger, and of a test image with it."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The page loads nothing and runs nothing."""
TRIGGERS = "neural-cleanse"
CHANNELS = ("clp", "bnp")


def lines(facts: Facts) -> Iterator[str]:
    """What the terminal shows, a line each."""
    acc, verdict = facts["accuracy"], facts["verdict"]
    yield f"{_model(facts)}, {facts['data']['name']}, {len(facts['data']['classes'])} classes"
    yield f"ACC {_acc(acc)} on {acc['n']:,} test images\n"
    yield verdict["headline"]
    yield from (f"  {reason}" for reason in verdict["reasons"])
    yield f"  {verdict['how_often']}"
    yield f"  {verdict['never_clean']}"
    if facts["repairs"]:
        yield "\nWhat a repair would cost:"
    for cost in facts["repairs"]:
        yield f"  {cost['repair']}: {_cost(facts, cost)}"


def page(facts: Facts, pictures: Pictures) -> str:
    """The page; the same facts and pictures give the same."""
    parts = {
        "policy": POLICY,
        "style": f"{asset('report.css')}\n{asset('inspected.css')}",
        "title": html.escape(facts["model"]["label"]),
        "verdict": _verdict(facts),
        "tiles": _tiles(facts),
        "reasons": _items(facts["verdict"]["reasons"]),
        "often": html.escape(facts["verdict"]["how_often"]),
        "never": html.escape(facts["verdict"]["never_clean"]),
        "triggers": _triggers(facts, pictures),
        "channels": "".join(_channels(facts, name) for name in CHANNELS),
        "noise": _noise(facts),
        "repairs": _repairs(facts),
        "about": _about(facts),
    }
    return filled("inspected.html", parts)


# Words


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _acc(acc: Facts) -> str:
    return f"{_percent(acc['acc'])} ({100 * acc['low']:.1f} to {100 * acc['high']:.1f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _model(facts: Facts) -> str:
    model = facts["model"]
    options = ", ".join(f"{name}={value}" for name, value in model["options"].items())
    return f"{model['label']}: {model['name']}{f' with {options}' if options else ''}"


def _class(facts: Facts, label: int) -> str:
    name = facts["data"]["classes"][label]
    return str(label) if name == str(label) else f"{label} {name}"


def _cost(facts: Facts, cost: Facts) -> str:
    """A repair's cost in words."""
    if "why" in cost:
        return str(cost["why"])
    before = facts["accuracy"]["acc"]
    said = f"ACC {_percent(before)} -> {_percent(cost['acc'])}, {cost['seconds']:.0f} s"
    if "success" in cost:
        trigger = f"the trigger found for class {_class(facts, facts['watched'])}"
        said += f"; {trigger} works on {_percent(_watched(facts))} -> {_percent(cost['success'])}"
    return said


def _watched(facts: Facts) -> float | None:
    """How often the trigger that repairs are tried on works before them."""
    classes = facts["evidence"][TRIGGERS]["details"].get("classes", ())
    return next((e["success"] for e in classes if e["class"] == facts["watched"]), None)


# Parts of the page; what comes from a file is escaped


def _items(texts: Iterable[str]) -> str:
    """A list whose items begin with what is in front of their first colon, in bold."""
    said = []
    for text in texts:
        head, colon, rest = text.partition(": ")
        bold = f"<strong>{html.escape(head)}</strong>: " if colon else ""
        said.append(f"<li>{bold}{html.escape(rest if colon else text)}</li>")
    return "\n".join(said)


def _table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose first column is text; cells are escaped."""
    head, *others = heads
    top = f'<th scope="col" class="text">{head}</th>'
    top += "".join(f'<th scope="col">{name}</th>' for name in others)
    body = ""
    for first, *cells in rows:
        body += f'<tr><th scope="row">{html.escape(first)}</th>'
        shown = (html.escape(cell).replace(" %", "&nbsp;%") for cell in cells)
        body += "".join(f"<td>{cell}</td>" for cell in shown) + "</tr>\n"
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{html.escape(caption)}">'
        f'<table class="list"><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _verdict(facts: Facts) -> str:
    kind = "attacked" if facts["verdict"]["attacked"] else "quiet"
    return f'<p class="verdict {kind}">{html.escape(facts["verdict"]["headline"])}</p>'


def _tiles(facts: Facts) -> str:
    evidence = facts["evidence"]
    tiles = {"ACC": _percent(facts["accuracy"]["acc"])}
    tiles["Neural Cleanse, index"] = _number(evidence[TRIGGERS]["number"])
    tiles["norms as ratios, index"] = _number(evidence["ratios"]["number"])
    tiles["SODA, index"] = _number(evidence["soda"]["number"])
    tiles["clean images used"] = f"{facts['data']['clean']:,}"
    return "".join(f"<div><dt>{t}</dt><dd>{html.escape(v)}</dd></div>" for t, v in tiles.items())


def _image(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}">'


def _triggers(facts: Facts, pictures: Pictures) -> str:
    """A card for each class, the smallest trigger first, with its bar."""
    found = facts["evidence"][TRIGGERS]
    classes = [c for c in found["details"].get("classes", ()) if c["norm"] is not None]
    if not classes:
        return f"<p>{html.escape(found['says'])}.</p>"
    most = max(entry["norm"] for entry in classes) or 1.0
    cards = []
    for entry in sorted(classes, key=lambda entry: entry["norm"]):
        label = entry["class"]
        if label not in pictures:
            continue
        name = _class(facts, label)
        alone, on_image = pictures[label]
        marked = " named" if label in facts["verdict"]["attacked"] else ""
        side = "" if entry["small"] else ", above the median"
        cards.append(
            f'<figure class="trigger{marked}">'
            f"{_image(alone, f'inverted trigger of class {name}')}"
            f"{_image(on_image, 'a test image with it')}"
            f"<figcaption><b>class {html.escape(name)}</b>"
            f'<span class="bar"><i style="width:{100 * entry["norm"] / most:.1f}%"></i></span>'
            f"norm {entry['norm']:.1f}, index {entry['index']:.1f}{side}<br>"
            f"works on {_percent(entry['success'])} of the other classes' images"
            "</figcaption></figure>"
        )
    left = len(facts["data"]["classes"]) - len(cards)
    more = f"<p class='note'>{left} more classes are in the JSON.</p>" if left else ""
    return f'<div class="triggers">{"".join(cards)}</div>{more}'


def _channels(facts: Facts, name: str) -> str:
    found = facts["evidence"][name]
    title, details = html.escape(found["title"]), found["details"]
    said = f"<h3>{title}</h3><p>{html.escape(_sentence(found['says']))}</p>"
    layers = [row for row in details.get("layers", ()) if row["beyond"]]
    if not layers:
        return said
    top: dict[str, list[str]] = {}
    for row in details["top"]:
        top.setdefault(row["layer"], []).append(f"{row['channel']} ({row['deviations']:.1f})")
    caption = "Layers with channels beyond the threshold; the farthest channels (deviations)"
    rows = [
        (
            row["layer"],
            f"{row['beyond']} of {row['channels']}",
            ", ".join(top.get(row["layer"], [])),
        )
        for row in layers
    ]
    return said + _table(caption, ("layer", "beyond", "farthest"), rows)


def _noise(facts: Facts) -> str:
    found = facts["evidence"]["noise"]
    rows = [
        (row["shown"], _class(facts, row["class"]), _percent(row["share"]))
        for row in found["details"]["rows"]
    ]
    chance = _percent(found["details"]["by_chance"])
    caption = f"The class most inputs are taken for; by chance its share is at most {chance}"
    return f"<p>{html.escape(_sentence(found['says']))}</p>" + _table(
        caption, ("shown", "class", "share"), rows
    )


def _repairs(facts: Facts) -> str:
    if not facts["repairs"]:
        return "<p>None was asked for: <code>--repairs clp,fine-tuning</code> tries two.</p>"
    heads = ("repair", "ACC", "seconds", "trigger works on", "SODA, index")
    rows = [["as it is", _percent(facts["accuracy"]["acc"]), "-", _percent(_watched(facts))]]
    rows[0] += [_number(facts["evidence"]["soda"]["number"])]
    refused = []
    for cost in facts["repairs"]:
        if "why" in cost:
            refused.append(f"{cost['title']}: {cost['why']}")
            continue
        row = [cost["title"], _percent(cost["acc"]), f"{cost['seconds']:.0f}"]
        rows.append([*row, _percent(cost.get("success")), _number(cost["soda"])])
    said = _table(
        "Each repair starts from the given model, with the same clean images", heads, rows
    )
    return said + (f"<ul>{_items(refused)}</ul>" if refused else "")


def _about(facts: Facts) -> str:
    data, details = facts["data"], facts["evidence"][TRIGGERS]["details"]
    said = {
        "model": _model(facts),
        "ACC": f"{_acc(facts['accuracy'])}, with a 95 % interval, on {data['test']:,} test images",
        "clean images": f"{data['clean']:,}, of {data['origin']}",
        "tried on": f"{data['probes']:,} test images, which no method was shown",
        "data": f"{data['name']}, digest {data['digest']}",
        "computed": f"{facts['seconds']:.0f} s, {facts['device']}, threads: {facts['threads']}",
    }
    if details:
        said["search for triggers"] = (
            f"at most {details['epochs']} epochs of {details['steps']} steps of {details['batch']} "
            "images for each class"
        )
    return "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in said.items())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
