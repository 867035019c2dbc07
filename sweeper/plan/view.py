"""The `table:` section of a sweep file: what `sweeper table` prints unless a flag says else."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sweeper.core import options
from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import AXES, METRICS
from sweeper.plan.source import Source


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
    average: bool = False
    """Whether a last line averages over the attacks."""
    caption: str = ""
    """The first words of the caption."""

    @field_validator("rows", "cols", "values", "labels")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        what, known = ("metric", METRICS) if info.field_name == "values" else ("axis", AXES)
        for name in value:
            if name not in known:
                raise ValueError(unknown(what, name, known))
        return value

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
