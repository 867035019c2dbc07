"""Rows of a sweep that was never run, their table, and checks of what is written of it."""

import functools
import html.parser
import re

from sweeper.core import rows
from sweeper.tables import layout, results, tables
from tests.support.places import ROOT

GOLDEN = ROOT / "tests" / "tables" / "golden"
SUFFIX = {"markdown": "md", "csv": "csv", "latex": "tex", "html": "html"}

# attack, poison rate, defense, then for each of three seeds "acc asr" in percent or a status;
# "-" is a cell that has not run.
RECORD = """
badnets 0.01 none         | 94.1 97.0 | 93.8 96.1 | 94.0 98.2
badnets 0.01 anp          | 92.0  4.1 | 91.6  3.0 | 92.3  5.2
badnets 0.01 fip          | 93.1  1.0 | 92.8  0.2 | 93.5  2.1
badnets 0.01 spectre      | 93.9  3.9 | 93.7  2.7 | 94.0  6.0
badnets 0.01 anp-oracle   | 93.9  0.1 | 93.5  0.0 | 94.0  0.3
badnets 0.05 none         | 93.7 99.9 | 93.9 100  | 93.5 99.8
badnets 0.05 anp          | 91.9  6.0 | failed    | 91.5  7.5
badnets 0.05 fip          | 93.0  0.9 | 92.9  1.8 | 92.7  0.7
badnets 0.05 spectre      | timeout   | timeout   | timeout
badnets 0.05 anp-oracle   | 93.1  0.2 | 93.4  0.1 | 93.2  0.4
clean_label 0.01 none     | 94.0 41.0 | 94.2 47.5 | failed
clean_label 0.01 anp      | 90.8 12.0 | 91.3 30.2 | blocked
clean_label 0.01 fip      | diverged  | diverged  | diverged
clean_label 0.01 spectre  | not_applicable | not_applicable | not_applicable
clean_label 0.01 anp-oracle | 93.0 5.0 | - | -
clean_label 0.05 none     | failed    | failed    | failed
clean_label 0.05 anp      | blocked   | blocked   | blocked
clean_label 0.05 fip      | blocked   | blocked   | blocked
clean_label 0.05 spectre  | not_applicable | not_applicable | not_applicable
clean_label 0.05 anp-oracle | -       | -         | -
"""

SEES = {"none": "", "spectre": "model,train", "anp": "model,clean"}
ORDER = {"defense": ["none", "anp", "fip", "spectre"]}


def row(attack, rate, defense, seed, **given):
    budget = 0.0 if defense in ("none", "spectre") else 0.05
    base = {
        "sweep": "recorded",
        "status": "ok",
        "dataset": "digits",
        "model": "tiny",
        "attack": attack,
        "poison_rate": rate,
        "target": 0,
        "clean_budget": budget,
        "defense": defense,
        "defense_name": defense.removesuffix("-oracle"),
        "seed": seed,
        "sees": SEES.get(defense, "model,clean"),
        "oracle": defense.endswith("oracle"),
        "n_test": 1797,
        "n_triggered": 1617,
        "torch": "2.10.0",
        "victim_torch": "2.10.0",
        "seconds": 12.34,
        "started_at": "2026-01-02T03:04:05+00:00",
    }
    key = "/".join(str({**base, **given}[axis]) for axis in rows.AXES)
    return {"key": key, **base, **given}


def recorded():
    out = []
    for text in RECORD.strip().splitlines():
        name, *seeds = text.split("|")
        attack, rate, defense = name.split()
        for seed, cell in enumerate(seeds):
            words = cell.split()
            if words == ["-"]:
                continue
            values = {"status": words[0]}
            if len(words) == 2:
                values = {"acc": float(words[0]) / 100, "asr": float(words[1]) / 100}
                values["auroc"] = 0.9 + seed / 100 if defense == "spectre" else None
            out.append(row(attack, float(rate), defense, seed, **values))
    return out


def frame(given):
    return results.frame([rows.table(given)])


@functools.cache
def whole():
    """The table of all recorded rows."""
    return table(frame(recorded()))


def table(data=None):
    if data is None:
        return whole()
    return tables.build(data, values=("acc", "asr", "auroc"), order=ORDER)


def entry(built, labels, group, metric):
    line = next(line for line in built.lines if line.labels == labels)
    return line.entries[built.columns.index(layout.Column(group, metric))]


def check_latex(text):
    """Environments and braces balance, and every line has as many columns as declared."""
    plain = re.sub(r"\\[{}&%#$_]", "", re.sub(r"(?m)^%.*$", "", text))
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", plain):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for part in plain.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(\w+)\}", part).group(1))
        lines = [line for line in part.splitlines() if line.endswith(r" \\")]
        for line in lines:
            spans = [int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert line.count("&") + 1 + sum(spans) == columns
        rules = re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", part)
        assert all(int(a) <= int(b) <= columns for a, b in rules)
        for line in lines[-4:]:
            assert all(cell.strip() for cell in line.removesuffix(r"\\").split("&"))
    assert text.isascii()


class Page(html.parser.HTMLParser):
    """Checks that tags close in order, and gathers the cells of the table."""

    def __init__(self):
        super().__init__()
        self.open, self.lines, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.lines and self.lines[-1] and self.open[-1:] != ["tr"] and "table" in self.open:
            self.lines[-1][-1][2] += data


def check_html(text):
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    for tag in ("table", "caption", "thead", "tbody", "title", "figcaption"):
        assert page.tags.count(tag) == 1
    hanging = sum("rowspan" in attrs for _, attrs, _ in page.lines[0])
    widths = [sum(int(attrs.get("colspan", 1)) for _, attrs, _ in line) for line in page.lines]
    for i, line in enumerate(page.lines):
        below = i > 0 and line[0][1].get("scope") != "row"
        widths[i] += hanging if below else 0
    assert len(set(widths)) == 1
    cells = [cell for line in page.lines for cell in line]
    assert all(text.strip() for _, _, text in cells)
    assert all(attrs.get("scope") for tag, attrs, _ in cells if tag == "th")
    assert "http" not in text, "the page stands alone"
