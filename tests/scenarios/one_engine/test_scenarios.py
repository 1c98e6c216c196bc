"""What breaks reuse, and the check that must name it; in this order, each test leaves the next its stack."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvshare.servers import metrics
from kvshare.servers.readings import Held
from kvshare.servers.server import ServerClient
from kvshare.servers.wait import poll
from kvshare.watch.dashboard import PANELS
from tests.conftest import ROOT
from tests.scenarios import watching
from tests.scenarios.conftest import VERIFY_TIMEOUT_S, Rig, letters, other_weights
from tests.scenarios.one_engine import clients
from tests.unit import scrape

HERE = Path(__file__).parent
OF_LMCACHE = ROOT / "docker/patches/lmcache-0.5.6/files/lmcache/v1"
CONNECTOR = OF_LMCACHE / "gpu_connector/cpu_connector.py"
HONEST = "layer[places] = tokens[:, number, skip:]"
CORRUPT = (
    "layer[places] = torch.stack([tokens[0, number, skip:], torch.zeros_like(tokens[1, number, skip:])])"
)
CHECKSUMS = OF_LMCACHE / "checksums.py"
MADE = "chunk.checksum = _threads.submit(_of, chunk)"
THEN_SPOILED = f"{MADE}\n    chunk.checksum.result()\n    chunk.tensor[1].zero_()"
LANES = OF_LMCACHE / "transfer_channel/nixl_lanes.py"
ALL_SENT = "near_indices[lane::lanes], far[lane], far_indices[lane::lanes]"
HALF_SENT = "near_indices[lane::lanes][:1], far[lane], far_indices[lane::lanes][:1]"

KILLED = 128 + signal.SIGKILL
IN_SHORT = ("other_weights", "reuse_off")

pytestmark = pytest.mark.timeout(900)


def test_ctrl_c_during_a_start_leaves_nothing_running(rig: Rig) -> None:
    since = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvshare", "demo"],
        cwd=ROOT, env=rig.environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    narration = ""
    while "Wait until" not in narration:
        line = process.stderr.readline()
        assert line, f"demo ended by itself:\n{narration}"
        narration += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=90)
    assert process.returncode == 130, narration + rest
    assert "Traceback" not in rest
    assert rig.compose("ps", "--all", "--quiet") == "", narration + rest
    ended = exit_codes(since)
    members = ("controller", "prefill", "decode", "gateway")
    assert set(ended) == {f"kvshare-{member}-1" for member in members}
    assert KILLED not in ended.values()


def exit_codes(since: float) -> dict[str, int]:
    """Of each of the stack's containers that has ended since that moment, by its name."""
    ours = ("--filter=event=die", "--filter=label=com.docker.compose.project=kvshare")
    command = ["docker", "events", *ours, f"--since={since:.3f}", f"--until={time.time():.3f}"]
    shown = "--format={{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}"
    ended = subprocess.run([*command, shown], capture_output=True, text=True, check=True, timeout=60)
    return {name: int(code) for name, code in map(str.split, ended.stdout.splitlines())}


def test_a_taken_port_is_named_with_its_process(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 8300)):
        outcome = rig.kvshare("up", "prefill")
    assert outcome.code == 2
    assert "port 8300 (controller pull) is taken by python" in outcome.err
    assert rig.compose("ps", "--all", "--quiet") == ""


def test_a_healthy_stack_is_proven(rig: Rig) -> None:
    rig.use()
    outcome = rig.verify("--prompt-tokens", "1546", prompts=3)
    assert outcome.code == 0, outcome.said
    assert outcome.report["proven"] is True
    assert outcome.failed_ids() == []
    checks = {one["id"]: one for kind in outcome.report["categories"] for one in kind["checks"]}
    assert checks["KV-PEER-07"]["result"] == "success", checks["KV-PEER-07"]


@pytest.mark.usefixtures("rig")
def test_the_readmes_first_chat_request_is_answered() -> None:
    (command,) = re.findall(r"^curl [^`]*", (ROOT / "README.md").read_text(), re.MULTILINE)
    answer = subprocess.run(
        f"{command.strip()} --silent --write-out '\n%{{http_code}}'",
        shell=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    body, _, status = answer.stdout.rpartition("\n")
    assert status == "200", body
    assert json.loads(body)["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.usefixtures("rig")
def test_clients_that_hang_up_or_hardly_read_leave_nothing_behind() -> None:
    prefill, decode = (ServerClient(f"http://127.0.0.1:{port}") for port in (8010, 8011))
    before, asking = generated_tokens(decode), clients.asking
    with (
        asking(letters("streaming", 522)) as streaming,
        asking(letters("not reading", 522), window=clients.WINDOW) as unread,
        asking(letters("waiting", 522), stream=False),
    ):
        for client in (streaming, unread):
            clients.read_until(client, b"data: ")
        await_running({"prefill": 0, "decode": 3})
    await_running({"prefill": 0, "decode": 0})
    with asking(letters("slow", 522), clients.SHORT, window=clients.WINDOW) as slow:
        clients.read_until(slow, b"data: ")
        clients.ask(letters("beside it", 522))
        answer = clients.read_until(slow, b"data: [DONE]")
    assert b'"completion_tokens":%d' % clients.SHORT in answer, answer[-1000:]
    await_running({"prefill": 0, "decode": 0})
    for server in (prefill, decode):
        assert poll(server.held, lambda held: held == Held(), clients.DEADLINE_S) == Held()
    made = generated_tokens(decode) - before
    assert clients.SHORT < made < clients.LONG, "an answer that nobody waits for is not made to its end"


def await_running(expected: dict[str, int]) -> None:
    """Wait until the gateway has so many requests at each server."""
    assert poll(clients.running, lambda seen: seen == expected, clients.DEADLINE_S) == expected


def generated_tokens(server: ServerClient) -> float:
    return metrics.total(metrics.parse(server.http.get("/metrics")), "vllm:generation_tokens_total") or 0.0


def test_of_a_healthy_stack_every_panel_shows_something_and_nothing_is_alarming(
    rig: Rig, update_golden: bool
) -> None:
    canary = rig.kvshare("canary")
    assert (canary.code, canary.out.startswith("decode: proven: 512 tokens from the peer")) == (0, True), (
        canary
    )
    watching.start(rig)
    watching.await_canary("proven")
    asked = {query for panel in PANELS for query in panel.queries.values() if "ALERTS" not in query}
    silent = poll(
        lambda: {query for query in asked if not watching.query(query)},
        lambda without: not without,
        watching.DEADLINE_S,
    )
    assert silent == set()
    assert watching.firing() == set()
    if update_golden:
        members = {"prefill": 8010, "decode": 8011, "controller": 9000, "gateway": 8000, "canary": 9091}
        for member, port in members.items():
            scrape.keep(member, watching.scraped(f"http://127.0.0.1:{port}"))
    watching.stop_canary(rig)


def test_a_gateway_that_skips_prefill_is_named(rig: Rig) -> None:
    rig.use(HERE / "gateway_skips_prefill/overlay.yaml")
    outcome = rig.verify()
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "GATE-02"


def test_a_server_computes_in_its_engines_process(rig: Rig) -> None:
    """As one with a GPU does: vLLM calls its processes VLLM::EngineCore, and a worker's VLLM::Worker."""
    for service in ("prefill", "decode"):
        processes = rig.compose("top", service)
        assert processes.count("VLLM::EngineCore") == 1, processes
        assert "VLLM::Worker" not in processes


def test_the_doctor_takes_a_running_stacks_ports_for_its_own(rig: Rig) -> None:
    outcome = rig.kvshare("doctor", "--output", "json", timeout=VERIFY_TIMEOUT_S)
    assert outcome.code == 0, outcome.said
    checks = {one["id"]: one for category in outcome.report["categories"] for one in category["checks"]}
    assert checks["DOC-HOST-06"]["detail"] == "4 of 4 members run already"
    assert checks["DOC-NET-04"]["result"] == "success", checks["DOC-NET-04"]
    assert checks["DOC-NET-06"]["detail"] == "2 of 2 answer it", checks["DOC-NET-06"]
    assert outcome.report["prefill_speed"]["how"] == "measured on the running server"


def test_a_prompt_shorter_than_a_chunk_is_refused(rig: Rig) -> None:
    outcome = rig.kvshare("verify", "--prompt-tokens", "200")
    assert outcome.code == 2
    assert "chunk" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_stopped_controller_is_named(rig: Rig) -> None:
    rig.compose("stop", "controller")
    outcome = rig.verify("--wait", "5")
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "CTRL-01"
    watching.await_firing(("KvshareDown", "controller"))


def test_reuse_is_proven_with_workers_of_their_own(rig: Rig, long: bool) -> None:
    """As servers of several GPUs have them."""
    if not long:
        pytest.skip("one more restart of both servers: make test-long")
    rig.use(VLLM_ARGS="--distributed-executor-backend mp")
    assert "VLLM::Worker" in rig.compose("top", "decode")
    outcome = rig.verify()
    assert outcome.code == 0, outcome.said


@pytest.mark.parametrize(
    ("scenario", "cause"),
    [
        ("other_weights", "CONF-12"),
        ("hash_seed", "CONF-01"),
        ("async_loading_off", "CONF-05"),
        ("model_path", "CONF-02"),
        ("reuse_off", "CONF-06"),
    ],
)
def test_a_setting_that_ends_reuse_is_named(rig: Rig, scenario: str, cause: str, long: bool) -> None:
    if scenario not in IN_SHORT and not long:
        pytest.skip("one more restart of decode: make test-long")
    if scenario == "other_weights":
        other_weights(ROOT / ".kvshare/scenarios/model.safetensors")
    rig.use(HERE / scenario / "overlay.yaml")
    outcome = rig.verify()
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == cause
    assert "KV-PEER-01" in outcome.failed_ids(), "the setting is wrong, and yet KV was reused"
    if scenario == "other_weights":
        doctor = rig.kvshare("doctor", "--only", "DOC-CONF-12", timeout=VERIFY_TIMEOUT_S)
        assert doctor.code == 1, doctor.said
        assert "prefill has config" in doctor.out


def test_a_benchmark_without_reuse_is_exit_code_1(rig: Rig, tmp_path: Path) -> None:
    rig.use(HERE / "reuse_off/overlay.yaml")  # as the last setting left it
    outcome = rig.kvshare(
        "bench", "--out", str(tmp_path), "--arms", "peer", "--prompt-tokens", "266", "--repetitions", "1"
    )
    assert outcome.code == 1, outcome.said
    assert "no byte moved in the peer arm" in outcome.err
    assert json.loads((tmp_path / "bench.json").read_text())["moved_tokens"] == 0
    watching.start(rig)
    watching.await_canary("computed")
    watching.await_firing(("KvshareWorkerLost", "decode"))
    watching.stop_canary(rig)


def test_corrupted_values_are_caught_though_every_counter_is_green(rig: Rig) -> None:
    broken(CONNECTOR, HONEST, CORRUPT)
    rig.use(HERE / "corrupted_values/overlay.yaml")
    outcome = rig.verify()
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "KV-RIGHT-01"
    assert not [name for name in outcome.failed_ids() if name.startswith("KV-PEER")]
    watching.start(rig)
    watching.await_firing(("KvshareAnswersWrong", "decode"))
    rig.compose("rm", "--stop", "--force", "canary", "prometheus")


def test_spoiled_chunks_are_computed_where_checksums_are_compared(rig: Rig) -> None:
    broken(CHECKSUMS, MADE, THEN_SPOILED)
    rig.use(HERE / "spoiled_chunks/overlay.yaml", KV_CHECKSUM="on")
    outcome = rig.verify()
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "KV-PEER-01"
    assert "KV-RIGHT-01" not in outcome.failed_ids()
    watching.start(rig)
    watching.await_firing(("KvshareChecksumsDiffer", "decode"))
    rig.compose("rm", "--stop", "--force", "canary", "prometheus")


def broken(file: Path, honest: str, line: str) -> None:
    """Make what an overlay puts into a server: a file of the image with its honest line replaced."""
    text = file.read_text()
    assert text.count(honest) == 1
    made = ROOT / ".kvshare/scenarios" / file.name
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(text.replace(honest, line))


def test_bytes_that_were_never_sent_are_missed_though_lmcache_and_vllm_count_them(
    rig: Rig, long: bool
) -> None:
    if not long:
        pytest.skip("one more restart of prefill: make test-long")
    broken(LANES, ALL_SENT, HALF_SENT)
    rig.use(HERE / "half_sent/overlay.yaml", LANES="1")
    outcome = rig.verify()
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "KV-PEER-07"
    assert not {"KV-PEER-01", "KV-PEER-02", "KV-PEER-03"} & set(outcome.failed_ids())


def test_a_server_that_cannot_start_shows_its_last_words(rig: Rig) -> None:
    rig._overlays = (HERE / "no_model/overlay.yaml",)
    started = time.monotonic()
    outcome = rig.kvshare("up", "decode")
    assert outcome.code == 2
    assert "expected a model at /models/absent and found no config.json there" in outcome.err
    assert time.monotonic() - started < 60


def test_after_all_faults_the_stack_is_proven_again(rig: Rig) -> None:
    rig.use()
    outcome = rig.verify()
    assert outcome.code == 0, outcome.said
