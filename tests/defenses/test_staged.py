"""A search that begins at the first layer that changed has the bits of one that does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.base import Case
from defenses.fine_pruning import FinePruning
from defenses.parts import bynumber, staged
from defenses.parts.accept import Rule
from defenses.parts.neurons import Neurons, layers
from defenses.parts.staged import Staged, chain
from sweeper.core import seeds
from sweeper.engine import metrics
from sweeper.models.base import Net
from tests.support import toys

SEES = frozenset({"model", "clean"})
GIVEN: dict[str, dict[str, Any]] = {
    "tiny": {"width": 4},
    "resnet18": {"width": 8},
}


def norms(model: Net) -> list[nn.Module]:
    return [layer for _, layer in layers(model)]


def case(model: str = "tiny") -> Case:
    """A network as it is drawn: its bits say as much as a trained one's."""
    rng = seeds.generator("staged")
    net = toys.network(rng, model=model, shape=toys.QUARTER, **GIVEN[model])
    return toys.case(SEES, clean=24, shape=toys.QUARTER, model=net.eval())


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Those of every measurement, in batches of ten."""
    seen: list[Tensor] = []

    def predict(model: nn.Module, inputs: Tensor, *_: Any) -> Tensor:
        with torch.inference_mode():
            parts = [model.eval()(part.float().div(255)) for part in inputs.split(10)]
        seen.append(torch.cat(parts))
        return seen[-1].argmax(1)

    monkeypatch.setattr(metrics, "predict", predict)
    monkeypatch.setattr(bynumber, "POINTS", 6)
    monkeypatch.setattr(Rule, "accuracy", lambda self, net: max(self._measured(net), 0.9))
    return seen


@contextlib.contextmanager
def whole(self: Staged, model: nn.Module) -> Iterator[None]:
    """Every network from its beginning."""
    yield


def searched(own: Case, where: str, logits: list[Tensor]) -> list[Tensor]:
    """The logits of a search that prunes early, late or any neurons first."""
    count = Neurons(own.fresh_model()).count
    rising = torch.arange(count) / count
    drawn = torch.rand(count, generator=seeds.generator("order"))
    logits.clear()
    bynumber.most(own, {"early": rising, "late": 1 - rising, "any": drawn}[where], 0.5)
    return [*logits]


@pytest.mark.parametrize("where", ["early", "late", "any"])
@pytest.mark.parametrize("model", GIVEN)
def test_every_network_of_a_search_has_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, logits: list[Tensor], model: str, where: str
) -> None:
    own = case(model)
    found = searched(own, where, logits)
    monkeypatch.setattr(Staged, "resumed", whole)
    wanted = searched(own, where, logits)
    assert len(found) == len(wanted) > 6 and all(map(torch.equal, found, wanted))
    assert not torch.equal(found[0], found[-1]), "pruning changes something"


def test_what_finds_no_room_is_computed_again_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, logits: list[Tensor]
) -> None:
    wanted = searched(case(), "late", logits)
    for limit in (0, 200_000):  # nothing, and the last layers alone
        monkeypatch.setattr(staged, "LIMIT", limit)
        assert all(map(torch.equal, searched(case(), "late", logits), wanted))


def test_nothing_before_the_first_change_is_computed_again() -> None:
    own = case()
    model, keeper, ran = own.fresh_model(), Staged(norms), list[int]()
    parts = chain(model)
    for place, part in enumerate(parts):
        part.register_forward_hook(lambda *_, place=place: ran.append(place))
    places = [i for i, part in enumerate(parts) if isinstance(part, nn.BatchNorm2d)]
    kept = max(i for i, part in enumerate(parts) if {*norms(model)} & {*part.modules()})
    for changed in (0, places[-1], places[0], None, places[1]):
        if changed:
            with torch.no_grad():
                parts[changed].get_parameter("weight").mul_(0.5)
        ran.clear()
        with keeper.resumed(model):
            own.accuracy(model, own.clean)
        assert ran == [*range(kept if changed is None else changed, len(parts))]


class Writing(nn.Module):
    """Overwrites what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(-1).add_(1)


def test_a_layer_that_writes_on_its_input_spoils_nothing() -> None:
    own = case()
    model = own.fresh_model()
    head = nn.Sequential(Writing(), model.classifier)
    model = Net(model.trunk, head, [0.5] * 3, [0.25] * 3).eval()
    keeper, x = Staged(lambda net: [net.classifier]), own.clean.images.float().div(255)
    with torch.no_grad():
        for _ in range(3):
            model.classifier[1].weight.mul_(0.9)
            with keeper.resumed(model):
                found = model(x)
            assert torch.equal(found, model(x))


class Own(Net):
    """A network whose forward pass is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_a_network_with_a_forward_pass_of_its_own_is_computed_by_it() -> None:
    model, x = case().fresh_model(), torch.rand(4, *toys.QUARTER)
    own = Own(model.trunk, model.classifier, [0.5] * 3, [0.25] * 3).eval()
    keeper = Staged(lambda net: [net.classifier])
    with torch.no_grad():
        for _ in range(2):
            with keeper.resumed(own):
                assert torch.equal(own(x), Net.forward(own, x) * 2)


def test_after_an_error_nothing_is_kept_and_the_network_is_itself() -> None:
    own = case()
    model, keeper = own.fresh_model(), Staged(norms)
    with keeper.resumed(model):
        own.accuracy(model, own.clean)
    with pytest.raises(KeyError), keeper.resumed(model):
        raise KeyError
    with keeper.resumed(model):
        model(torch.rand(3, *toys.QUARTER))  # other inputs: anew
    assert "forward" not in vars(model)


def test_fine_pruning_shows_the_network_its_images_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    own, shown = toys.case(SEES, clean=80), list[int]()
    forward = nn.Conv2d.forward

    def counted(self: nn.Conv2d, x: Tensor) -> Tensor:
        if self.in_channels == 3:
            shown.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    outcome = FinePruning(epochs=0, tau=1.0).defend(own)
    assert len(outcome.notes["curve"]) > 20
    assert sum(shown) == 2 * 80, "to rank the units, and for all numbers of them"
