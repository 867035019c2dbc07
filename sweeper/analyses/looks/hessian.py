"""How sharp the clean loss is around a model: largest eigenvalue, trace, spectrum (FIP, figure 1).

Of the Hessian of the mean cross-entropy over clean training images, in eval mode. Compare models on
the same images only, and mind the loss beside: a model that fits badly is sharp too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeper.analyses.base import CLEAN, Analysis, Subject
from sweeper.core import seeds
from sweeper.core.options import Count, Several, Whole
from sweeper.engine import curvature
from sweeper.engine.task import ANY

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class HessianSpectrum(Analysis):
    """Eigenvalue, trace and spectral density of the loss Hessian."""

    images: Count = 1000
    """Clean training samples."""
    vectors: Several = 50
    """Random vectors of the trace."""
    steps: Whole = 100
    """Lanczos steps of the density; 0: none."""

    title = "Spectrum of the loss Hessian"
    source = "Karim et al., CCS 2024 (FIP)"
    tasks = frozenset({ANY})

    def compute(self, subject: Subject) -> pd.DataFrame:
        """Rows (metric, x, value): loss, lambda_max, trace, trace_error, and density over x."""
        import pandas as pd

        data, key = subject.work.attacker[: self.images], subject.work.victim.key
        product = curvature.Hessian(subject.model, data, subject.work.device)

        def rng(name: str) -> Any:
            return seeds.generator(key, name)

        top = curvature.largest_eigenvalue(product, product.size, rng("eigenvalue"))
        trace, error = curvature.trace(product, product.size, rng("trace"), vectors=self.vectors)
        single = {"loss": product.loss(), "lambda_max": top, "trace": trace, "trace_error": error}
        rows = [(name, 0.0, value) for name, value in single.items()]
        if self.steps:
            nodes = curvature.lanczos(product, product.size, rng("lanczos"), steps=self.steps)
            grid, height = curvature.density(*nodes)
            rows += [("density", x, y) for x, y in zip(grid.tolist(), height.tolist(), strict=True)]
        return pd.DataFrame(rows, columns=["metric", "x", "value"])

    def draw(self, frame: pd.DataFrame, figure: Any) -> None:
        """The density, logarithmic; the figures in the caption."""
        axes = figure.subplots()
        curve = frame[frame["metric"] == "density"]
        axes.plot(curve["x"], curve["value"].clip(lower=1e-7), color=CLEAN, linewidth=1)
        axes.set_yscale("log")
        axes.set_xscale("symlog")
        axes.spines[["top", "right"]].set_visible(False)
        single = frame[frame["metric"] != "density"].set_index("metric")["value"]
        axes.set_ylabel("density")
        axes.set_xlabel(
            f"eigenvalue; largest {single['lambda_max']:.3g}, trace {single['trace']:.4g} "
            f"± {single['trace_error']:.3g}, clean loss {single['loss']:.3g}"
        )
