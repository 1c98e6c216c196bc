"""How the servers are asked: one connection, one clock, a sentence for each way in which an answer fails."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from kvshare.servers import sharing, wait
from kvshare.servers.completion import Ask, complete
from kvshare.servers.controller import ControllerClient
from kvshare.servers.http import Http, RequestFailedError
from kvshare.servers.prompts import make_prompts
from kvshare.servers.readings import Counters, EngineTimes, Reading, Sources
from kvshare.servers.server import ServerClient
from kvshare.verify.evidence import Spec
from tests.unit.fake_stack import CHUNK, FakeStack, serve

PROMPTS = make_prompts(2, 2 * CHUNK + 10, 259, seed=3)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


TOKEN = {"usage": {"completion_tokens": 1}}


def received(connection: socket.socket) -> bytes:
    """The whole of a request: what is left unread when a connection closes would reset it."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(1)
    length = re.search(rb"Content-Length: (\d+)", request)
    while length and len(request.split(b"\r\n\r\n")[1]) < int(length[1]):
        request += connection.recv(65536)
    return request


@contextmanager
def raw(*connections: Sequence[bytes | None]) -> Iterator[tuple[Http, list[bytes]]]:
    """A server that gives each connection's requests their answers and closes it; None: it stays silent."""
    heads: list[bytes] = []

    def run() -> None:
        for answers in connections:
            try:
                connection, _ = listening.accept()
            except OSError:  # nobody wants it any more
                return
            with connection:
                for answer in answers:
                    heads.append(received(connection))
                    connection.sendall(answer or b"")
                    if answer is None:
                        connection.recv(1)  # until the client gives up

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=run, daemon=True).start()
        yield Http(f"http://127.0.0.1:{listening.getsockname()[1]}"), heads


def event(data: object) -> bytes:
    text = f"data: {json.dumps(data)}\n\n".encode()
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


@pytest.fixture
def stack() -> FakeStack:
    return FakeStack()


@pytest.fixture
def spec(stack: FakeStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spec]:
    monkeypatch.setattr(wait, "POLL_S", 0.01)
    with serve(stack) as spec:
        yield spec


# --- the connection -----------------------------------------------------------------------------------------


def test_a_connection_that_the_server_has_closed_meanwhile_is_replaced() -> None:
    with raw([OK], [OK]) as (http, heads):
        assert [http.get("/"), http.get("/")] == ["ok", "ok"]
        assert len(heads) == 2


def test_a_request_that_waits_too_long_is_named_and_not_sent_again() -> None:
    with raw([OK, None], [OK]) as (http, heads):
        http.get("/")
        with pytest.raises(RequestFailedError, match=r"/x does not answer: timed out"):
            http.get("/x", timeout=0.05)
        assert len(heads) == 2


def test_a_new_connection_that_is_closed_is_not_tried_for_ever() -> None:
    with raw([b""]) as (http, _), pytest.raises(RequestFailedError, match=r"/x does not answer: Remote end"):
        http.get("/x")


def test_a_path_of_the_base_url_is_kept() -> None:
    with raw([OK]) as (http, heads):
        Http(f"{http.base}/proxy/").get("/health")
        assert heads[0].startswith(b"GET /proxy/health ")


# --- one completion -----------------------------------------------------------------------------------------


def test_log_probabilities_come_where_they_are_asked_for(spec: Spec) -> None:
    http = Http(spec.prefill)
    plain = complete(http, "m", Ask("a", PROMPTS[0], 4))
    assert plain.output == ()
    full = complete(http, "m", Ask("b", PROMPTS[0], 4, logprobs=True))
    assert [len(position.top) for position in full.output] == [5] * 4
    for answer in (plain, full):
        assert (answer.prompt_tokens, answer.output_tokens, len(answer.token_times)) == (522, 4, 4)


def test_the_connection_is_kept_from_one_completion_to_the_next(spec: Spec) -> None:
    http = Http(spec.prefill)
    complete(http, "m", Ask("a", PROMPTS[0], 2))
    before = http._connection.sock
    complete(http, "m", Ask("b", PROMPTS[0], 2))
    assert http._connection.sock is before


def test_several_tokens_in_one_event_came_at_one_moment() -> None:
    usage = [{"usage": {"prompt_tokens": 9, "completion_tokens": n}} for n in (1, 3, 3)]
    with raw([STREAM + b"".join(event(u) for u in usage) + END]) as (http, _):
        answer = complete(http, "m", Ask("a", (7,) * 9, 3))
    assert (answer.prompt_tokens, answer.output_tokens, len(answer.token_times)) == (9, 3, 2)


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (event(TOKEN), "completions broke off its answer: it ended before .DONE."),
        (event(TOKEN)[:-9], "completions broke off its answer: "),
        (event(TOKEN) + b"0\r\n\r\n", "completions broke off its answer: it ended before .DONE."),
        (event({"error": {"message": "EngineCore died"}}) + END, "gives up in its answer: EngineCore died"),
        (event({"choices": []}) + END, "ended its answer to a before the first token"),
    ],
)
def test_an_answer_that_is_none_is_named(events: bytes, sentence: str) -> None:
    with raw([STREAM + events]) as (http, _), pytest.raises(RequestFailedError, match=sentence):
        complete(http, "m", Ask("a", (7,), 4))


# --- a server -----------------------------------------------------------------------------------------------


def test_a_server_is_waited_for(spec: Spec, stack: FakeStack) -> None:
    stack.prefill.healthy = False
    threading.Timer(0.1, setattr, (stack.prefill, "healthy", True)).start()
    assert ServerClient(spec.prefill).await_healthy(5.0).model == "m"


def test_a_refused_key_is_not_waited_for(
    spec: Spec, stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.api_key = "s3cret"
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    probe = ServerClient(spec.prefill, "other").await_healthy(5.0)
    assert not probe.healthy
    assert "refuses the API key" in str(probe.error)


def test_the_rise_is_that_of_the_requests_since(spec: Spec) -> None:
    server = ServerClient(spec.prefill)
    for request in range(2):
        before = server.read()
        complete(server.http, "m", Ask("a", PROMPTS[0], 2))
        rise = server.await_counted(before, len(PROMPTS[0]))
        assert rise is not None
        assert rise.sources == (Sources(10, 512, 0) if request else Sources(522, 0, 0))
        assert rise.engine.requests == 1


@pytest.mark.parametrize("late", ["local_compute", "answered"])
def test_what_is_not_counted_yet_is_waited_for(spec: Spec, stack: FakeStack, late: str) -> None:
    counts = {"local_compute": 522, "answered": 1}
    server = ServerClient(spec.prefill)
    before = server.read()
    stack.prefill.__dict__.update({name: count for name, count in counts.items() if name != late})
    threading.Timer(0.1, setattr, (stack.prefill, late, counts[late])).start()
    rise = server.await_counted(before, 522)
    assert rise is not None
    assert rise.sources is not None
    assert (rise.sources.total, rise.engine.requests) == (522, 1)


def test_a_server_without_counters_has_no_rise(spec: Spec) -> None:
    assert ServerClient("http://127.0.0.1:9").read() is None
    assert ServerClient(spec.prefill).await_counted(None, 1) is None


def test_the_rise_of_a_reading_is_that_of_each_count_in_it() -> None:
    one = Reading(Sources(1, 2, 3), EngineTimes(1, 2, 3, 4, 5), Counters(9, 9, None, 9, 9, 9), 4, 0.5)
    two = one + one
    assert two.sources == Sources(2, 4, 6)
    assert two - one == one
    assert (replace(one, sources=None) - one).sources is None


@pytest.mark.parametrize("missing", ["transfers", "copies", "hit_tokens"])
def test_a_pull_is_exported_once_all_that_tells_of_it_has_risen(
    spec: Spec, controller: ControllerClient, stack: FakeStack, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(sharing, "poll", lambda look, done, _: done(look()))
    clients = {"prefill": ServerClient(spec.prefill), "decode": ServerClient(spec.decode)}
    start = {node: client.read() for node, client in clients.items()}
    for server in (stack.prefill, stack.decode):
        stack.answer(server, PROMPTS[0])

    def exported() -> bool:
        return bool(sharing.await_export(controller, clients, start, pulls=1, tokens=512))

    assert exported()
    setattr(stack.prefill if missing == "transfers" else stack.decode, missing, 0)
    assert not exported()


# --- the controller -----------------------------------------------------------------------------------------


@pytest.fixture
def controller(spec: Spec) -> ControllerClient:
    return ControllerClient(spec.controller, spec.prefill_instance, CHUNK)


@pytest.mark.parametrize(
    ("token", "sentence"), [("wrong", "refuses the cluster's key: "), (None, "asks for the cluster's key: ")]
)
def test_a_controller_that_refuses_a_key_says_so(
    spec: Spec, stack: FakeStack, token: str | None, sentence: str
) -> None:
    stack.token = "t0ken"
    probe = ControllerClient(spec.controller, spec.prefill_instance, CHUNK, token=token).probe()
    assert sentence + "this checkout, or CLUSTER_KEY_FILE in .env" in (probe.error or "")
    assert ControllerClient(spec.controller, "", CHUNK, token="t0ken").probe().answers


def test_several_prompts_are_admitted_when_the_last_chunk_is(
    controller: ControllerClient, stack: FakeStack
) -> None:
    before = controller.mark()
    stack.answer(stack.prefill, PROMPTS[0])
    assert controller.await_admission(PROMPTS, before, 0.05).how == ""
    stack.answer(stack.prefill, PROMPTS[1])
    seen = controller.await_admission(PROMPTS, before, 0.05, number=7)
    assert (seen.prompt, seen.expected_keys, seen.new_keys, seen.how) == (7, 4, 4, "key count")


def test_in_a_full_cache_prompts_are_admitted_once_their_messages_have_ended(
    controller: ControllerClient, stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvshare.servers.controller.QUIET_S", 0.1)
    stack.cache_full = True
    before = controller.mark()
    assert controller.await_admission(PROMPTS, before, 0.3).how == "", "nothing was said yet"
    stack.answer(stack.prefill, PROMPTS[0])
    assert controller.await_admission(PROMPTS, before, 0.05).how == "", "more may come"
    assert controller.await_admission(PROMPTS, before, 1.0).how == "messages"


def test_a_prompt_is_admitted_when_every_rank_of_the_owner_has_its_keys(
    controller: ControllerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.ranks = 2
    counts = {0: 0, 1: 0}
    probe = controller.probe()
    (mine,) = (w for w in probe.workers if w.instance == controller.owner)
    monkeypatch.setattr(
        controller,
        "probe",
        lambda: replace(probe, workers=tuple(replace(mine, rank=r, key_count=n) for r, n in counts.items())),
    )
    before = controller.mark()
    counts[0] = 4  # of one prompt there are two
    seen = controller.await_admission(PROMPTS[:1], before, 0)
    assert (seen.expected_keys, seen.how, seen.by_rank) == (4, "", (4, 0))
    counts[1] = 2
    assert controller.await_admission(PROMPTS[:1], before, 0).how == "key count"


def test_all_ranks_of_a_server_are_waited_for(
    controller: ControllerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "POLL_S", 0.001)
    first, second = controller.probe(), controller.probe()
    (mine,) = (w for w in first.workers if w.instance == controller.owner)
    second = replace(second, workers=(mine, replace(mine, rank=1)))
    answers = iter([first, first, second])
    monkeypatch.setattr(controller, "probe", lambda: next(answers))
    controller.ranks = 2
    assert controller.await_workers({controller.owner}, 5) == second


def test_the_export_of_every_rank_is_waited_for(
    spec: Spec, controller: ControllerClient, stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "poll", lambda look, done, _: done(look()))
    clients = {"prefill": ServerClient(spec.prefill), "decode": ServerClient(spec.decode)}
    start = {node: client.read() for node, client in clients.items()}
    stack.prefill.transfers, stack.decode.copies, stack.decode.hit_tokens = 7, 8, 4 * CHUNK
    controller.ranks = 2

    def exported() -> bool:
        return bool(sharing.await_export(controller, clients, start, pulls=4, tokens=4 * CHUNK))

    assert not exported(), "one rank has not told its last transfer yet"
    stack.prefill.transfers = 8
    assert exported()


def test_a_controller_that_is_down_knows_no_keys(controller: ControllerClient, stack: FakeStack) -> None:
    stack.controller_up = False
    assert controller.keys() == (0,)
    assert controller.pull_sample() is None
    assert "503" in str(controller.await_workers({controller.owner}, 0).error)


@pytest.mark.parametrize("body", [b"[]", b"no json", b'{"workers": [{"instance_id": "a"}]}'])
def test_a_controller_that_lists_no_workers_is_named(body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with raw([answer]) as (http, _):
        probe = ControllerClient(http.base, "a", CHUNK).probe()
    assert not probe.answers
    assert "/controller/workers lists no workers" in str(probe.error)


# --- waiting ------------------------------------------------------------------------------------------------


def test_polling_ends_as_soon_as_it_is_done_or_with_what_it_saw_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "POLL_S", 0.001)
    counted: Callable[[], int] = iter(range(10**6)).__next__
    assert wait.poll(counted, lambda seen: seen == 3, 5) == 3
    assert wait.poll(counted, lambda _: False, 0) == 4
