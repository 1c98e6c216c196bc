"""Logs of several engines as one: in order, coloured for people, complete as far as they can be."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.operate import logs
from kvshare.operate.logs import Line, Selection
from kvshare.site.containers import Containers
from kvshare.stack.members import Member
from tests.conftest import ROOT
from tests.unit.build import STACK
from tests.unit.fake_docker import FakeDocker
from tests.unit.test_cli import invoke

T = "2026-11-24T08:00:0{}.000000000Z"


@pytest.fixture(autouse=True)
def stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvshare.site.compose.read_stack", lambda _: STACK)


def site(*members: Member) -> Containers:
    return Containers(STACK, Settings(ROOT, {}), members or None)


@pytest.fixture
def running(fake_docker: FakeDocker) -> FakeDocker:
    fake_docker.add_container("default", "controller", f"{T.format(2)} registered\n")
    fake_docker.add_container(
        "default",
        "prefill",
        f"{T.format(1)} zzz first\n{T.format(1)} aaa second\n{T.format(4)} \x1b[32mgreen\x1b[0m\n",
    )
    fake_docker.add_container("gpu-b", "decode", f"{T.format(3)} pulled\n{T.format(5)} \n")
    return fake_docker


def test_lines_are_merged_by_time_and_one_nodes_lines_keep_their_order(running: FakeDocker) -> None:
    del running
    result = invoke("logs")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{T.format(1)} prefill    zzz first",
        f"{T.format(1)} prefill    aaa second",
        f"{T.format(2)} controller registered",
        f"{T.format(3)} decode     pulled",
        f"{T.format(4)} prefill    green",
        f"{T.format(5)} decode     ",
    ]


def test_an_engine_that_does_not_answer_hides_no_other(running: FakeDocker) -> None:
    running.engine("gpu-b", "down")
    result = invoke("logs")
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 4
    assert result.stderr.startswith("kvshare: context gpu-b: no Docker engine answers")


def test_one_node_needs_only_its_own_engine(running: FakeDocker) -> None:
    running.engine("gpu-b", "down")
    result = invoke("logs", "--node", "controller", "--tail", "7", "--since", "10m")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{T.format(2)} controller registered\n"
    (asked,) = [call for call in running.calls("default") if "/logs " in call]
    assert asked.startswith("GET /containers/controller-id/logs ")
    assert {"timestamps=1", "tail=7"} < set(asked.split()[2].split("&"))
    since = float(asked.partition("since=")[2].split("&")[0])
    assert since == pytest.approx(time.time() - 600, abs=60)
    assert running.calls("gpu-b") == [], "an engine that is not needed is not asked"


def test_what_has_no_container_has_no_lines(fake_docker: FakeDocker) -> None:
    fake_docker.add_container("gpu-b", "decode", f"{T.format(3)} pulled\n")
    result = invoke("logs")
    assert (result.exit_code, result.stdout) == (0, f"{T.format(3)} decode     pulled\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--node", "decod"], "--node decod is no node, did you mean decode?"),
        (["--since", "yesterday"], "--since yesterday is no time: give how long ago"),
        (["--tail", "0"], "0 is not in the range"),
    ],
)
@pytest.mark.usefixtures("fake_docker")
def test_bad_input(arguments: list[str], sentence: str) -> None:
    result = invoke("logs", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.mark.parametrize("since", ["90s", "10m", "1h30m", "2026-11-24", "2026-11-24T10:00:00Z", "1795500000"])
def test_times(since: str) -> None:
    assert logs.members_of(STACK, Selection(since=since))


# Following


def test_following_goes_on_with_new_lines_in_order_and_tells_what_ends(running: FakeDocker) -> None:
    told: list[str] = []
    lines = logs.follow(site(), Selection(), told.append)
    assert [next(lines).text for _ in range(6)] == [
        *("zzz first", "aaa second", "registered", "pulled", "green", ""),
    ]
    for service, second in (("prefill", 8), ("controller", 7)):
        with (running.engine("default") / "logs" / f"{service}-id").open("a") as log:
            log.write(f"{T.format(second)} new\n")
    assert [next(lines).node for _ in range(2)] == ["controller", "prefill"]
    for context in ("default", "gpu-b"):
        (running.engine(context) / "ended").touch()
    assert list(lines) == []
    assert sorted(told) == [
        f"the log of {name} has ended: its container or its engine went away."
        for name in ("controller", "decode", "prefill")
    ]


def test_a_follower_that_is_left_kills_its_processes(running: FakeDocker) -> None:
    lines = logs.follow(site(STACK.decode), Selection(), print)
    assert next(lines).text == "pulled"
    before = threading.active_count()
    lines.close()
    deadline = time.monotonic() + 5
    while threading.active_count() >= before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() < before, "the thread of a killed process ends"
    assert running


def test_following_an_engine_that_does_not_answer(running: FakeDocker) -> None:
    for context in ("default", "gpu-b"):
        running.engine(context, "down")
    result = invoke("logs", "--follow")
    assert result.exit_code == 3
    assert result.stderr.count("no Docker engine answers") == 2


def test_ctrl_c_ends_following_without_a_word(running: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.Printer, "print", interrupted)
    result = invoke("logs", "--follow")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")
    assert running


# Printing


def printed(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.StringIO()
    printer = logs.Printer(STACK, stream)
    if terminal:
        monkeypatch.setenv("TERM", "xterm")
        printer._console = Console(file=stream, force_terminal=True, highlight=False, soft_wrap=True)
    for line in (Line(T.format(1), "prefill", "[bold] x" + "y" * 200), Line(T.format(1), "decode", "x")):
        printer.print(line)
    return stream.getvalue()


def test_each_node_has_a_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = printed(True, monkeypatch)
    assert "\x1b[32mprefill" in found
    assert "\x1b[35mdecode" in found
    assert "[bold] x" + "y" * 200 in found, "no markup, no wrapping"


def test_no_colour_under_no_color_or_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in printed(False, monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in printed(True, monkeypatch)


def test_unknown_node_is_refused_by_the_reader_too() -> None:
    with pytest.raises(KvshareError, match="did you mean prefill"):
        logs.members_of(STACK, Selection(node="prefil"))
