"""docs/attacks.md and docs/defenses.md: every method as `sweeper describe` has it, in one page.

`python -m sweeper.cli.pages docs/attacks.md docs/defenses.md` writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from sweeper.cli import describe
from sweeper.core import names

HEAD = """# All {kinds}

Written by `python -m sweeper.cli.pages docs/{kinds}.md` from the {kinds}' own files, as `sweeper
describe NAME` prints them: source, equation, deviations, options with their defaults and ranges,
and what each preset sets. [The tables](methods.md) set all methods side by side.
"""


def text(kind: str) -> str:
    """Return the page of all attacks or of all defenses; each has its name as an anchor.

    Args:
        kind: attack | defense.
    """
    parts = [HEAD.format(kinds=f"{kind}s")]
    parts += [_section(kind, name) for name in names.names(kind)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _section(kind: str, name: str) -> str:
    """A method's page as a part of a page, its mentions of pages as links."""
    page = describe.page(kind, name)
    page = re.sub(r"^## (.+)$", r"**\1**", page, flags=re.MULTILINE)
    page = re.sub(r"\A# (.+)$", rf"## \1 {{#{name}}}", page, flags=re.MULTILINE)
    return re.sub(r"`?docs/((?:methods/)?[\w-]+\.md)`?", r"[\1](\1)", page)


if __name__ == "__main__":
    import sys

    for path in map(Path, sys.argv[1:]):
        path.write_text(text(path.stem.removesuffix("s")), encoding="utf-8")
