"""The `table:` section of a sweep file: what `sweeper table` prints unless a flag says else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sweeper.core import options
from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import AXES, METRICS
from sweeper.plan.source import Source

MAX_ACC_LOSS = 0.1
"""How far ACC may fall unless a sweep says else: nobody would use a model ten points worse."""


class View(BaseModel):
    """A table's layout as data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: list[str] = ["dataset", "model", "attack", "poison_rate"]
    """Axes down the side."""
    cols: list[str] = ["defense"]
    """Axes across the top, outermost first."""
    values: list[str] = ["acc", "asr"]
    """Metrics in each group of columns."""
    labels: dict[str, dict[str, str]] = {}
    """Axis -> label of the sweep -> what the table writes; the order is the table's too."""
    titles: bool = True
    """Whether an attack or a defense without a label reads as in papers: BadNets for `badnets`, FT
    for `fine-tuning`. One that you named with `as:` stays, and so does the file's word in CSV."""
    average: bool = False
    """Whether a last line averages over the attacks."""
    untaken: bool = False
    """Whether a victim that carries no backdoor, or has learned nothing, counts in averages, in
    ranks and for what is bold."""
    max_acc_loss: float = Field(default=MAX_ACC_LOSS, ge=0, le=1)
    """How far ACC may fall below that of the victim for a defense to win in ASR, RA or DER."""
    caption: str = ""
    """The first words of the caption."""
    starred: bool = False
    """Whether LaTeX sets it across both columns of a page, as `table*`."""

    @field_validator("rows", "cols", "values", "labels")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        what, known = ("metric", METRICS) if info.field_name == "values" else ("axis", AXES)
        for name in value:
            if name not in known:
                raise ValueError(unknown(what, name, known))
        return value

    def heads(self, labels: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
        """Return axis -> label -> what figures write for it where that is not a title."""
        plain = {} if self.titles else {axis: {a: a for a in labels[axis]} for axis in labels}
        return {axis: plain.get(axis, {}) | self.labels.get(axis, {}) for axis in AXES}

    def order(self, labels: dict[str, list[str]]) -> dict[str, list[str]]:
        """Return axis -> labels in the order to show: ours, then those of the sweep's `labels`."""
        axes = {**self.labels, **labels}
        return {
            axis: list(dict.fromkeys([*self.labels.get(axis, ()), *labels.get(axis, ())]))
            for axis in axes
        }


def of(file: Source) -> View:
    """Return the layout a sweep file asks for.

    Raises:
        SweepError: Its `table:` section is wrong, one line for each mistake.
    """
    try:
        return View.model_validate(file.values.get("table", {}))
    except ValidationError as error:
        lines = []
        for item in error.errors():
            loc = ("table", *item["loc"])
            text = options.wording(dict(item))
            if item["type"] == "extra_forbidden":
                text = unknown("key", loc[-1], View.model_fields)
                loc = loc[:-1]
            lines.append(f"{file.path}:{file.line(loc)}: {'.'.join(map(str, loc))}: {text}")
        raise SweepError("\n".join(lines)) from None
