"""`sweeper view`: whom it answers, what it says of a store, and, in a browser, that it is live.

The slow tests drive Chromium, as those of the report do.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeper.cli import view as command
from sweeper.core.rows import AXES
from sweeper.store import follow
from sweeper.store.artifacts import Store
from sweeper.store.follow import Followed
from sweeper.view import facts as told
from sweeper.view.facts import Facts
from sweeper.view.server import Server
from tests.cli.test_advice import FILE, HINT
from tests.support import invented
from tests.support.commands import SWEEP, call
from tests.support.places import ROOT

HOSTILE = '<img src=x onerror="window.hurt=1">'
NAME = "study"


def key(number: int) -> str:
    return f"{number:020x}"


VICTIM, LOST, CELLS = key(100), key(101), [key(number) for number in range(4)]


def axes(number: int) -> dict[str, Any]:
    values = ("digits", "tiny", HOSTILE, 0.1, 0, 0.05, ("none", "anp")[number % 2], number // 2)
    return dict(zip(AXES, values, strict=True))


def row(number: int, status: str = "ok", **more: Any) -> dict[str, Any]:
    about = {"sweep": NAME, "key": CELLS[number], "status": status, "victim": VICTIM}
    return {**about, "acc": 0.9, "asr": 0.25 * number, "score": "accuracy", **axes(number), **more}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a sweep of two defenses and two seeds; one cell is done, one failed."""
    made = Store(str(tmp_path / "store"))
    order = {"dataset": ["digits"], "model": ["tiny"], "attack": [HOSTILE]}
    order["defense"] = ["none", "anp"]
    cells = {CELLS[number]: axes(number) for number in range(4)}
    above = {VICTIM: "train", LOST: "train"}
    made.save_plan(NAME, {"order": order, "cells": cells, "above": above})
    made.put("train", VICTIM, {}, {"axes": {"attack": HOSTILE}, "log": "epoch 1"})
    failure = {"status": "failed", "error": "no room", "run": "r", "axes": {"attack": "badnets"}}
    made.fail(NAME, LOST, {**failure, "log": "first words\nno room"})
    made.put("defend", CELLS[0], {}, {"row": {}, "log": f"it said {HOSTILE}"})
    made.write_row(row(0))
    made.write_row(row(1, "failed", error="no room", notes="{}"))
    made.fail(NAME, CELLS[1], {**failure, "log": "first words\nno room"})
    return made


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    with Server(Facts(store.root)) as served:
        threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
        yield served
        served.shutdown()


def ask(
    server: Server, path: str, method: str = "GET", cookie: bool = True, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the content of an answer; the path goes as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if cookie:
        given.setdefault("Cookie", f"{server.cookie}={server.token}")
    connection.request(method, path, headers=given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def data(server: Server, *names: str) -> Any:
    status, _, content = ask(server, "/".join(["/data", *names]))
    assert status == 200, content
    return json.loads(content)


# Whom it answers


REFUSED = {
    "no token": {"cookie": False},
    "a wrong token": {"cookie": False, "path": "/?token=guessed"},
    "an empty token": {"cookie": False, "path": "/?token="},
    "a wrong cookie": {"Cookie": "sweeper-1=guessed"},
    "a cookie that is none": {"Cookie": "a;;=\x01;"},
    "a name bound anew": {"Host": "evil.example:80"},
    "a name like loopback's": {"Host": "127.0.0.1.evil.example"},
    "another page's script": {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"},
    "a request to write": {"method": "POST"},
    "one to delete": {"method": "DELETE"},
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("path", ["/", f"/data/{NAME}"])
def test_nobody_else_is_answered(server: Server, what: str, path: str) -> None:
    status, headers, content = ask(server, **{"path": path, **REFUSED[what]})
    assert status in (403, 421, 501), content
    assert HOSTILE.encode() not in content and server.token.encode() not in content
    assert not {"Set-Cookie", "Access-Control-Allow-Origin"} & set(headers)


def test_the_printed_link_brings_a_cookie_that_is_enough(server: Server) -> None:
    link = server.link(NAME)
    assert link.startswith(f"http://127.0.0.1:{server.server_port}/sweep/{NAME}?token=")
    path = link.partition(str(server.server_port))[2]
    status, headers, content = ask(server, path, cookie=False)
    assert status == 200 and server.token.encode() not in content
    kept, *how = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} == set(how)
    assert len(server.token) >= 32
    status, headers, _ = ask(server, "/data", cookie=False, Cookie=f"other=1; {kept}")
    assert status == 200 and "Set-Cookie" not in headers
    through = {"Host": "localhost:9000"}  # as SSH brings it to another machine
    assert ask(server, "/data", **through)[0] == 200


def test_it_listens_on_loopback_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    [
        "/sweep/..",
        "/data/../../etc/passwd",
        "/data/..%2f..%2fetc",
        "/data/%2e%2e",
        f"/data/{NAME}/..%2fplan.json",
        f"/data/{NAME}/plan.json",
        f"/data/{NAME}/{key(999)}",
        f"/data/{NAME}/{CELLS[0]}/more",
        "/data/absent",
        "/report/absent",
        "/rows/absent",
        "/server.py",
        "/page/view.html",
        f"/sweep/{NAME}/",
        "/data/%ff",
        "/data/%00",
        f"/data/{'x' * 5000}",
    ],
)
def test_what_is_not_there_is_not_found(server: Server, path: str) -> None:
    status, headers, content = ask(server, path)
    assert status == 404 and b"/" not in content
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["/", "/view.js", "/view.css", "/data", f"/rows/{NAME}"])
def test_every_answer_says_what_may_be_done_with_it(server: Server, path: str) -> None:
    _, headers, _ = ask(server, path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"


def test_no_text_of_a_store_can_become_markup() -> None:
    page = (ROOT / "sweeper/view/page/view.js").read_text(encoding="utf-8")
    banned = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|srcdoc"
    assert not re.search(banned, page)


# What it says


def test_all_sweeps_are_listed_with_their_progress(server: Server, store: Store) -> None:
    store.save_plan("another", {"cells": {}})
    found = data(server)
    assert [said["sweep"] for said in found["sweeps"]] == ["another", NAME]
    last = found["sweeps"][1]
    assert (last["total"], last["done"], last["failed"], last["left"]) == (6, 2, 2, 2)
    assert last["driver"] is None and last["last_activity"]


def test_a_store_that_is_empty_has_no_sweep(tmp_path: Path) -> None:
    assert Facts(str(tmp_path / "new")).sweeps()[1]["sweeps"] == []


def test_the_matrix_has_every_cell_and_its_state(server: Server, store: Store) -> None:
    claim = {"run": "r", "who": "them", "pid": 1, "place": "there", "since": "now"}
    store.save_claim(NAME, {**claim, "beat": 0, "at_work": {CELLS[1]: "defend", CELLS[2]: "x"}})
    found = data(server, NAME)
    columns = found["columns"]
    assert dict(zip(columns["key"], columns["state"], strict=True)) == {
        CELLS[0]: "ok",
        CELLS[1]: "running",
        CELLS[2]: "running",
        CELLS[3]: "waiting",
    }
    assert columns["acc"] == [0.9, None, None, None] or columns["acc"][0] == 0.9
    assert columns["attack"] == [HOSTILE] * 4 and columns["seed"] == [0, 0, 1, 1]
    assert found["titles"]["defense"] == {"none": "No defense", "anp": "ANP"}
    assert found["driver"]["state"] == "alive" and "them" in found["driver"]["who"]
    (failure,) = found["failures"]
    assert failure["key"] == LOST and failure["axes"] == {"attack": "badnets"}


def test_a_driver_that_is_silent_is_said_to_be(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "SILENT", 0.0)
    facts = Facts(store.root)
    claim = {"run": "r", "who": "them", "pid": 1, "place": "there", "since": "now"}
    store.save_claim(NAME, {**claim, "beat": 0})
    first = facts.sweep(NAME)
    assert first[1]["driver"]["state"] == "alive"
    silent = facts.sweep(NAME)
    assert silent[1]["driver"]["state"] == "silent" and silent[0] != first[0]
    store.save_claim(NAME, {**claim, "beat": 1})
    assert facts.sweep(NAME)[1]["driver"]["state"] == "alive"


def test_what_has_not_changed_is_neither_sent_nor_made_again(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MOMENT", 0.0)
    _, headers, _ = ask(server, f"/data/{NAME}")
    tag = {"If_None_Match": headers["ETag"]}
    with monkeypatch.context() as patch:
        for name in ("rows", "plan", "statuses", "failures"):
            patch.setattr(Followed, name, lambda *_: pytest.fail("nothing is to be read"))
        status, _, content = ask(server, f"/data/{NAME}", **tag)
        assert (status, content) == (304, b"")
    for change in (
        lambda: store.write_row(row(2)),
        lambda: store.put("train", LOST, {}, {}),
        lambda: store.compact(NAME),
    ):
        change()
        status, headers, _ = ask(server, f"/data/{NAME}", **tag)
        assert status == 200
        tag = {"If_None_Match": headers["ETag"]}
    assert data(server, NAME)["columns"]["state"] == ["ok", "failed", "ok", "waiting"]


def test_only_new_rows_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    ordinary = Followed._open

    def counted(self: Followed, columns: Any, file: Any) -> Any:
        read.append(file.path)
        return ordinary(self, columns, file)

    monkeypatch.setattr(Followed, "_open", counted)
    ledger = Followed(store.root)
    assert set(ledger.rows(NAME, ["acc"])) == set(CELLS[:2]) and len(read) == 2
    store.write_row(row(2))
    assert set(ledger.rows(NAME, ["acc"])) == set(CELLS[:3]) and len(read) == 3
    store.write_row(row(1))
    found = ledger.rows(NAME, ["acc"])
    assert found[CELLS[1]] == {"key": CELLS[1], "status": "ok", "acc": 0.9} and len(read) == 4
    store.compact(NAME)
    assert ledger.rows(NAME, ["acc"]) == found and len(read) == 5
    assert found == ledger.columns(NAME, ["acc"])


RECORDS = {
    "a row": (CELLS[0], "ok", f"it said {HOSTILE}"),
    "a failed row": (CELLS[1], "failed", "first words\nno room"),
    "a cell to come": (CELLS[3], "waiting", ""),
    "a victim": (VICTIM, "ok", "epoch 1"),
    "a failed victim": (LOST, "failed", "first words\nno room"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_cell_has_its_record_and_its_log(server: Server, what: str) -> None:
    wanted, state, log = RECORDS[what]
    found = data(server, NAME, wanted)
    assert (found["key"], found["state"], found["log"]) == (wanted, state, log)
    if what == "a row":
        assert found["facts"]["acc"] == 0.9 and [one["seed"] for one in found["seeds"]] == [0, 1]
    if "failed" in what:
        assert found["facts"]["error"] == "no room"


def test_rows_are_sent_as_a_table_no_spreadsheet_runs(server: Server, store: Store) -> None:
    store.write_row(row(2, "failed", error="=1+1"))
    _, headers, content = ask(server, f"/rows/{NAME}")
    assert headers["Content-Disposition"] == f'attachment; filename="{NAME}.csv"'
    assert len(content.splitlines()) == 4 and b",'=1+1," in content


def test_the_report_is_made_once_for_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(told.report, "_library", lambda: made.append("") or "")
    place = invented.store(tmp_path / "store", invented.sweep())
    facts = Facts(str(place))
    assert facts.report("invented") == facts.report("invented") and len(made) == 1
    with Server(facts) as served:
        threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
        status, headers, content = ask(served, "/report/invented")
        served.shutdown()
    assert status == 200 and b"<h1>invented</h1>" in content and len(made) == 1
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_a_report_of_nothing_is_a_sentence(server: Server, store: Store) -> None:
    store.save_plan("another", {"cells": {}})
    status, _, content = ask(server, "/report/another")
    assert status == 404 and b"no rows yet" in content


def test_a_store_that_is_away_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(server.facts.ledger, "_fs", Away())
    status, _, content = ask(server, "/data")
    assert status == 503 and b"Input/output error" in content


# The command


def test_the_command_prints_its_link_and_ends_with_ctrl_c(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    said = call(capsys, "view", "--store", tmp_path / "store")
    assert said.code == 0 and re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}\n", said.out)
    assert "token" in said.err and said.err.endswith("ended\n")
    with Server(Facts(str(tmp_path))) as other:
        port = other.server_port
        line = call(capsys, "view", "--store", tmp_path, "--port", port).sentence
    assert line.startswith(f"--port {port}: cannot be opened") and "name another" in line


def test_a_sweep_that_is_not_there_is_said_with_what_runs_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_text(SWEEP)
    said = call(capsys, "view", FILE, "--store", "a store")
    assert said.code == 2 and "no results of sweep 'tiny'" in said.err
    (hint,) = HINT.findall(said.err)
    assert hint == f"sweeper run '{FILE}' --store 'a store'"


def test_no_browser_is_opened_where_there_is_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(command.sys, "platform", "linux")
    assert not command._has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert command._has_screen()


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("SWEEPER_CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("no chromium here; set SWEEPER_CHROMIUM")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_a_page_fills_while_rows_appear(browser: Any, server: Server, store: Store) -> None:
    told: list[str] = []
    view = browser.new_context().new_page()
    view.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
    view.on("pageerror", lambda error: told.append(str(error)))
    view.goto(server.link())
    assert "token" not in view.url
    view.click(f"text={NAME}")
    view.wait_for_selector(".matrix")
    assert HOSTILE in view.inner_text(".matrix") and view.inner_text("dd >> nth=0") == "2 of 6"
    view.focus(f"[data-key='{CELLS[1]}']")
    for number in (1, 2, 3):
        store.write_row(row(number))
    view.wait_for_selector("dd:text('5 of 6')")
    assert view.evaluate("document.activeElement.dataset.key") == CELLS[1], "the focus stays"
    assert "50.0" in view.inner_text(".matrix")
    view.click(f"[data-key='{CELLS[0]}']")
    view.wait_for_selector("pre.log")
    assert view.inner_text("pre.log") == f"it said {HOSTILE}"
    assert view.evaluate("window.hurt") is None and not told


@pytest.mark.slow
@pytest.mark.parametrize("targets", [[3], [0, 3]])
def test_an_attack_without_a_target_stands_beside_every_target(
    browser: Any, server: Server, store: Store, targets: list[int]
) -> None:
    """`none` and all-to-all have target 0, whatever targets the sweep has."""
    aimed = [("badnets", target) for target in targets]
    attacks = [("none", 0), ("a2a", 0), *aimed]
    cells = {
        key(number): {**axes(0), "attack": attack, "target": target}
        for number, (attack, target) in enumerate(attacks, start=200)
    }
    order = {"attack": ["none", "a2a", "badnets"], "defense": ["none"]}
    store.save_plan("two", {"order": order, "cells": cells, "above": {}})
    view = browser.new_context().new_page()
    view.goto(server.link("two"))
    heads = "all => all.map(one => one.innerText)"
    for target in targets:
        view.wait_for_selector(".matrix")
        if len(targets) > 1:
            view.select_option("[name=target]", label=str(target))
        else:
            assert view.query_selector("[name=target]") is None, "there is nothing to choose"
        shown = view.eval_on_selector_all(".matrix tbody th", heads)
        assert shown == ["No attack", "a2a", "BadNets"], target


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_anyone_out(
    browser: Any, server: Server, store: Store, scheme: str, width: int
) -> None:
    axe = os.environ.get("SWEEPER_AXE", "")
    if not Path(axe).is_file():
        pytest.skip("set SWEEPER_AXE to axe.min.js of the npm package axe-core")
    size = {"width": width, "height": 900}
    view = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True).new_page()
    for path in ("", f"sweep/{NAME}", f"sweep/{NAME}/{CELLS[1]}", f"sweep/{NAME}/{LOST}"):
        view.goto(server.link().replace("/?", f"/{path}?"))
        view.wait_for_selector("main > *")
        assert view.evaluate("document.documentElement.scrollWidth") <= width, "nothing overflows"
        view.add_script_tag(path=axe)
        found = view.evaluate("axe.run().then(found => found.violations)")
        faults = [
            (fault["id"], fault["nodes"][0]["html"][:200])
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]
        assert faults == [], path
