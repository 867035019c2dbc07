"""How far cells are, from workers to the driver: what arrives, what is left, what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from sweeper.core.types import Cell
from sweeper.run import bundle, cells, relay
from sweeper.run.material import Context
from sweeper.run.progress import Progress, Relayed
from sweeper.run.relay import Listener, Teller
from sweeper.run.walk import Walk

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, at its import


class Head:
    """Ray's head as a relay uses it."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.asked = 0
        self.away = False

    def _hear(self) -> None:
        self.asked += 1
        if self.away:
            raise RuntimeError("no head")

    def internal_kv_put(self, key: bytes, value: bytes, *_: Any, timeout: float) -> None:
        self._hear()
        self.kept[key] = value

    def internal_kv_multi_get(self, keys: list[bytes], *_: Any, timeout: float) -> dict[Any, Any]:
        self._hear()
        return {key: self.kept[key] for key in keys if key in self.kept}

    def internal_kv_del(self, key: bytes, prefix: bool, *_: Any, timeout: float) -> None:
        self._hear()
        for kept in [k for k in self.kept if k == key or (prefix and k.startswith(key))]:
            del self.kept[kept]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    found = Head()
    monkeypatch.setattr(relay, "head", lambda: found)
    monkeypatch.setattr(relay, "SECONDS", 0.01)
    return found


def soon(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def short(count: int) -> list[Cell]:
    return [Cell("defend", f"d{i}", {}, (), {}) for i in range(count)]


def test_each_cell_of_a_bundle_is_named_with_its_own_epoch(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, seen = short(3), list[tuple[str, str]]()
    with Listener("run", live=True).listening() as listener:
        progress = listener.started("trial", taken)
        assert isinstance(progress, Relayed) and progress.cell is taken[0]
        assert progress.since is None, "its process has not begun"
        listener.began("trial")
        since = progress.since

        def run(cell: Cell, above: Any, context: Any, log: Progress, **_: Any) -> dict[str, Any]:
            if cell.key != "d1":  # d1 says nothing: it does not inherit what d0 said
                log(epoch=2, epochs=int(cell.key[1:]) + 5, loss=0.1)
            soon(lambda: progress.cell.key == cell.key and bool(progress.text) == bool(log.text))
            seen.append((progress.cell.key, progress.text))
            return {"status": "ok"}

        monkeypatch.setattr(cells, "run", run)
        walk = Walk({cell.key: cell for cell in taken}, ())
        context = Context(store="nowhere", sweep="x")
        with Teller(listener.place("trial")).telling() as teller:
            found = bundle.run(bundle.pack(taken, walk), context, teller.starting)
        soon(lambda: not head.kept)
        listener.ended("trial")
    assert [key for key, *_ in found] == ["d0", "d1", "d2"]
    assert seen == [("d0", "epoch 2/5"), ("d1", ""), ("d2", "epoch 2/7")]
    assert since and progress.since and progress.since > since, "a cell's seconds are its own"


def test_nothing_is_told_where_nobody_looks_on(head: Head) -> None:
    with Listener("run", live=False).listening() as listener:
        assert listener.started("trial", short(1)) is None
        with Teller(listener.place("trial")).telling() as teller:
            teller.starting(short(1)[0])(step=1)
            time.sleep(0.1)
        listener.ended("trial")
    assert not head.asked


def test_a_head_that_is_away_costs_nothing_but_what_is_shown(head: Head) -> None:
    head.away = True
    with Listener("run", live=True).listening() as listener:
        progress = listener.started("trial", short(1))
        assert progress
        with Teller(listener.place("trial")).telling() as teller:
            log = teller.starting(short(1)[0])
            log(step=1)
            soon(lambda: head.asked > 5)
            assert not progress.text
            head.away = False
            soon(lambda: progress.text == "step 1")
            head.away = True
        soon(lambda: head.kept)
        listener.ended("trial")
    assert vars(log) == {"text": "step 1", "epochs": []}, "what a defense can reach leads nowhere"


def test_what_lost_workers_told_is_not_left(head: Head) -> None:
    head.kept = {b"run/lost": b'["d0", "step 1", 0, []]', b"runs/other": b""}
    with Listener("run", live=True).listening() as listener:
        progress = listener.started("lost", short(1))
        assert progress
        soon(lambda: progress.text == "step 1")
    assert set(head.kept) == {b"runs/other"}


def test_a_cell_says_the_same_thing_once(head: Head) -> None:
    with Teller("run/trial").telling() as teller:
        log = teller.starting(short(1)[0])
        log(epoch=1, epochs=2)
        soon(lambda: b"epoch 1/2" in head.kept.get(b"run/trial", b""))
        asked = head.asked
        log(loss=0.5)
        time.sleep(0.1)
        assert head.asked == asked
    soon(lambda: not head.kept)


def test_every_epoch_arrives_however_many_pass_between_two_tellings(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "TOLD", 3)
    with Listener("run", live=True).listening() as listener:
        progress = listener.started("trial", short(1))
        assert progress
        with Teller(listener.place("trial")).telling() as teller:
            log = teller.starting(short(1)[0])
            for epoch in (1, 2):
                log(epoch=epoch, epochs=9, loss=1 / epoch, note="of no number", bad=float("nan"))
            soon(lambda: len(progress.epochs) == 2)
            assert progress.epochs == [{"epoch": 1, "loss": 1}, {"epoch": 2, "loss": 0.5}]
            for epoch in range(3, 10):
                log(epoch=epoch, epochs=9)
            soon(lambda: progress.text == "epoch 9/9")
            assert len(progress.epochs) == 2, "those that were missed are not made up"
            assert [told["epoch"] for told in teller.epochs("d0")] == [*range(1, 10)]
        listener.ended("trial")


def test_an_interrupted_trial_and_walk_leave_nothing(head: Head) -> None:
    with pytest.raises(KeyboardInterrupt), Listener("run", live=True).listening() as listener:
        listener.started("trial", short(1))
        with Teller(listener.place("trial")).telling() as teller:
            teller.starting(short(1)[0])(step=1)
            soon(lambda: head.kept)
            raise KeyboardInterrupt
    soon(lambda: not head.kept)
    assert not listener._thread.is_alive()
