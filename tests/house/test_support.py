"""Every defense on the architectures and class counts the papers use: it runs, or says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from defenses.base import Case, Needs
from sweeper import models
from sweeper.core import catalog, seeds
from sweeper.models.base import Net
from sweeper.plan import matrix
from tests.support import toys

SHAPE = (3, 32, 32)
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 8},
    "vgg11-bn": {},
    "mobilenet-v2": {},
    "vit-tiny": {},
}


class Same(Case):
    """A case whose new models are of the victim's architecture."""

    made: tuple[str, int]

    def new_model(self, name: str = "model") -> Net:
        model, classes = self.made
        rng = self.rng(name)
        return toys.network(rng, classes=classes, shape=SHAPE, model=model, **MODELS[model])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("classes", [10, 43])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", catalog.names("defense"))
def test_it_runs_or_says_why_not(
    name: str, model: str, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense = toys.short("defense", name, {})
    rng = seeds.generator("support", model, classes)
    victim = toys.network(rng, classes=classes, shape=SHAPE, model=model, **MODELS[model]).eval()
    norms = models.has_batchnorm(model, MODELS[model], classes, SHAPE)
    needs = Needs(classes, SHAPE, model, norms, 2 * classes)
    if why := matrix.misfit(defense, needs, model):
        assert len(why.split()) > 3 and "\n" not in why, "one clear sentence"
        return
    monkeypatch.setattr(Same, "made", (model, classes), raising=False)
    given = {"classes": classes, "shape": SHAPE, "clean": 2 * classes, "model": victim}
    outcome = toys.run(defense, kind=Same, **given)
    if outcome.filter is not None:
        found = outcome.filter(toys.image_set(4, shape=SHAPE).images)
        assert found.shape == (4,) and bool(found.isfinite().all())
    if outcome.model is None:
        assert any(part is not None for part in (outcome.scores, outcome.flagged, outcome.filter))
        return
    before, after = victim.state_dict(), outcome.model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].shape == after[key].shape for key in before)
    with torch.inference_mode():
        logits = outcome.model.cpu()(toys.image_set(4, shape=SHAPE).images.float() / 255)
    assert logits.shape == (4, classes) and bool(logits.isfinite().all())
