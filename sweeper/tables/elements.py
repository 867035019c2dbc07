"""HTML as values: text is escaped wherever it stands, so no name of a store becomes markup."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TypeAlias

Child: TypeAlias = "str | None | Iterable[Child]"
"""What stands in an element: text, elements, several, or nothing."""
_VOID = ("meta",)


class Html(str):
    """Markup; any other text is none."""


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """Return an element.

    Args:
        name: Its name.
        *children: What stands in it.
        **attributes: By name, with a hyphen for `_`, which may end the name of a word of Python;
            None and False are left out, True has no value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            called = key.strip("_").replace("_", "-")
            words.append(called if value is True else f'{called}="{html.escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in _VOID else f"{start}{joined(*children)}</{name}>")


def joined(*children: Child) -> Html:
    """Return markup of what stands side by side."""
    texts = []
    for child in children:
        if isinstance(child, str):
            texts.append(child if isinstance(child, Html) else html.escape(child))
        elif child is not None:
            texts.append(joined(*child))
    return Html("".join(texts))


def grid(heads: Iterable[Child], lines: Iterable[Iterable[Child]], *, words: bool = False) -> Html:
    """Return a table that scrolls where it is too wide.

    Args:
        heads: What stands above its columns.
        lines: Its lines; the first of each is the line's head, and a `<td>` stands as it is.
        words: Whether they hold words, not numbers.
    """
    body = []
    for line in lines:
        first, *others = line
        cells = [
            cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell)
            for cell in others
        ]
        body.append(tag("tr", tag("th", first, scope="row"), cells))
    top = tag("tr", [tag("th", head, scope="col") for head in heads])
    kind = "list words" if words else "list"
    table = tag("table", tag("thead", top), tag("tbody", body), class_=kind)
    return tag("div", table, class_="scroll", tabindex=0)


def prose(text: str) -> Html:
    """Return the paragraphs, lists and `code` of a docstring."""
    found = []
    for paragraph in filter(None, map(str.strip, re.split(r"\n\s*\n", text))):
        first, *items = re.split(r"(?:^|\n)- ", paragraph)
        found.append(tag("p", _coded(first)) if first.strip() else None)
        found.append(tag("ul", [tag("li", _coded(item)) for item in items]) if items else None)
    return joined(found)


def _coded(text: str) -> Html:
    parts = re.split(r"`([^`]+)`", text)
    return joined(tag("code", part) if place % 2 else part for place, part in enumerate(parts))


def asset(name: str) -> Html:
    """Return a file of `page/`, which is ours and needs no escape."""
    text = (resources.files("sweeper.tables") / "page" / name).read_text(encoding="utf-8")
    return Html(text.strip())


def filled(name: str, parts: Mapping[str, str]) -> str:
    """Return a file of `page/` with a part in place of each `{{name}}`, which stands as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole[1]], asset(name))


def digest(text: str) -> str:
    """Return what allows a script or style of this text in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def document(title: str, *body: Child, style: Html, script: Html | None = None) -> str:
    """Return a whole page that loads nothing, and runs and wears only what it was written with.

    Args:
        title: What the browser calls it.
        *body: What stands in it.
        style: Its style sheet.
        script: Its script; None: none may run.
    """
    scripts = f"script-src {digest(script)}; " if script else ""
    policy = (
        f"default-src 'none'; {scripts}style-src {digest(style)}; base-uri 'none'; "
        "form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    run = tag("script", script) if script else None
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body, run), lang='en')}\n"
