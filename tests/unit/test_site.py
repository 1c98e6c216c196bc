"""What is made of the engines' answers: states, fingerprints, logs; and what is said where they give none."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvshare.config.settings import Settings
from kvshare.errors import COULD_NOT_CHECK, USAGE, CouldNotCheckError, KvshareError
from kvshare.site import engine as engines
from kvshare.site.containers import Containers
from kvshare.site.engine import engine
from kvshare.verify import reading
from kvshare.verify.evidence import Hit
from tests.conftest import ROOT
from tests.unit.build import STACK
from tests.unit.fake_docker import FakeDocker

SETTINGS = Settings(ROOT, {})
FINGERPRINT = {
    "role": "decode",
    "instance": "lmcache_instance_2",
    "python_hash_seed": "123",
    "model": "/models/x",
    "vocab_size": 259,
    "dtype": "float32",
    "max_model_len": 1600,
    "kv_transfer_config": None,
    "lmcache": {"chunk_size": 256},
    "ucx": {},
    "versions": {"vllm": "0.32.0"},
    "patches": [
        {"id": "packed-kv", "file": "a.py"},
        {"id": "packed-kv", "file": "b.py"},
        {"id": "message-defaults"},
    ],
}


@pytest.fixture
def running(fake_docker: FakeDocker) -> FakeDocker:
    fake_docker.add_container("default", "controller")
    fake_docker.add_container("default", "prefill")
    fake_docker.add_container("gpu-b", "decode")
    for context in ("default", "gpu-b"):
        fake_docker.answers(context, **{"/tmp/kvshare/fingerprint.json": json.dumps(FINGERPRINT)})
    return fake_docker


def site() -> Containers:
    return Containers(STACK, SETTINGS)


def put_log(running: FakeDocker, context: str, service: str, text: str) -> None:
    (running.engine(context) / "logs" / f"{service}-id").write_text(text)


def asked(running: FakeDocker, context: str, what: str) -> list[str]:
    return [call for call in running.calls(context) if what in call]


@pytest.mark.usefixtures("running")
def test_every_container_is_asked_on_its_own_context() -> None:
    found = reading.containers(site())
    assert [c.service for c in found] == ["controller", "prefill", "decode"]
    assert {c.state for c in found} == {"running"}
    assert [probe.error for probe in reading.engines(site())] == [None, None]


def test_fingerprint_is_read_by_cat_and_what_is_new_in_it_left_out(running: FakeDocker) -> None:
    found = reading.containers(site())[2].fingerprint
    assert found is not None
    assert found.lmcache == {"chunk_size": 256}
    assert found.patch_ids == ("message-defaults", "packed-kv")
    call, _ = asked(running, "gpu-b", "/containers/decode-id/exec")
    assert '"Cmd": ["cat", "/tmp/kvshare/fingerprint.json"]' in call


def tell(running: FakeDocker, identity: str | None) -> None:
    files = {"fingerprint": json.dumps(FINGERPRINT)} | ({} if identity is None else {"identity": identity})
    running.answers("gpu-b", **{f"/tmp/kvshare/{name}.json": text for name, text in files.items()})


def test_what_lmcache_wrote_of_the_model_stands_with_the_fingerprint(running: FakeDocker) -> None:
    tell(running, '{"weights": "ab", "identity": "cd"}')
    found = reading.containers(site())[2].fingerprint
    assert found is not None
    assert found.identity == {"weights": "ab", "identity": "cd"}


@pytest.mark.parametrize("text", [None, "cut sho", '["weights"]'])
def test_without_it_the_fingerprint_stands_alone(running: FakeDocker, text: str | None) -> None:
    tell(running, text)
    found = reading.containers(site())[2].fingerprint
    assert found is not None
    assert found.identity == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "fingerprint.json is not in kvshare-decode-1"),
        ("not json", "makes no sense"),
        ('{"instance": "x"}', "missing required field `role`"),
        (
            '{"role": "decode", "max_model_len": "long"}',
            "`int | null`, got `str` - at `$.max_model_len`",
        ),
    ],
)
def test_fingerprint_that_cannot_be_read_says_why(running: FakeDocker, text: str | None, reason: str) -> None:
    running.answers("gpu-b", **({} if text is None else {"/tmp/kvshare/fingerprint.json": text}))
    found = reading.containers(site())[2]
    assert found.fingerprint is None
    assert found.error is not None
    assert reason in found.error


def test_stopped_container_is_not_executed_in(running: FakeDocker) -> None:
    running.add_container("gpu-b", "decode", state={"Status": "exited"})
    found = reading.containers(site())[2]
    assert (found.state, found.fingerprint, asked(running, "gpu-b", "/exec")) == ("exited", None, [])


def test_missing_container(running: FakeDocker) -> None:
    (running.engine("gpu-b") / "containers.json").unlink()
    assert reading.containers(site())[2].state == "missing"
    assert reading.logs(site()).decode_hits is None


@pytest.mark.parametrize("fault", ["down", "silent", "gone"])
def test_engine_that_does_not_answer_is_evidence(
    fault: str, running: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "ANSWER_TIMEOUT_S", 0.5)
    folder = running.engine("gpu-b", *([] if fault == "gone" else [fault]))
    if fault == "gone":
        (folder / "socket").write_text("/nowhere/socket")
    here = site()
    probes = reading.engines(here)
    assert probes[0].error is None
    assert probes[1].error is not None
    assert probes[1].error.startswith("no Docker engine answers at ssh://gpu-b (")
    assert [c.state for c in reading.containers(here)] == ["running", "running", "missing"]
    assert reading.logs(here).decode_hits is None
    assert reading.logs(here).controller_errors == ()


def test_engine_that_fails_half_way_is_evidence(running: FakeDocker) -> None:
    here = site()
    running.engine("gpu-b", "broken")
    assert reading.logs(here).decode_hits is None
    assert reading.containers(here)[2].error == "the engine went away"


def test_hits_are_read_from_decodes_log(running: FakeDocker) -> None:
    put_log(
        running,
        "gpu-b",
        "decode",
        "(EngineCore pid=9) [2026-11-24 06:00:01,123] LMCache INFO: Reqid: cmpl-kvshare-7-1-peer-0-ab12cd34, "
        "Total tokens 1546, Inference Engine computed tokens: 0, LMCache hit tokens: 1536, need to load: 9 "
        "(vllm_v1_adapter.py:1475:lmcache)\n"
        "Reqid: cmpl-x, Total tokens 9, Inference Engine computed tokens: 0, LMCache hit tokens: None.\n"
        "\x1b[32;20mReqid: cmpl-y, Total tokens 1546, Inference Engine computed tokens: 0, \x1b[0m"
        "LMCache hit tokens: 0, need to load: 0\n",
    )
    hits = reading.logs(site()).decode_hits
    assert hits == (Hit("cmpl-kvshare-7-1-peer-0-ab12cd34", 1536), Hit("cmpl-y", 0))


def test_lookups_are_read_from_the_owners_log(running: FakeDocker) -> None:
    put_log(
        running,
        "default",
        "prefill",
        "INFO: Received P2P batched lookup and get msg, lookup_id: cmpl-a-0-12 (p2p.py:1)\n",
    )
    assert reading.logs(site()).owner_lookups == ("cmpl-a-0-12",)


def test_lookups_that_timed_out_are_read_from_both_servers(running: FakeDocker) -> None:
    line = "WARNING: Request {} is still waiting for async lookup after 3 seconds, returning 0\n"
    put_log(running, "gpu-b", "decode", line.format("cmpl-kvshare-7-1-peer-0-ab"))
    put_log(running, "default", "prefill", line.format("cmpl-kvshare-7-3-reference-0-cd"))
    assert reading.logs(site()).lookup_timeouts == (
        "cmpl-kvshare-7-3-reference-0-cd",
        "cmpl-kvshare-7-1-peer-0-ab",
    )


def test_server_logs_are_read_since_the_engines_own_clock(running: FakeDocker) -> None:
    reading.logs(site())
    (decode,) = asked(running, "gpu-b", "/decode-id/logs")
    (controller,) = asked(running, "default", "/controller-id/logs")
    assert "since=1795500000" in decode
    assert "since" not in controller


@pytest.mark.parametrize(
    ("line", "is_error"),
    [
        ("ERROR: Error handling request message: Object missing required field `peer_init_url`", True),
        ("msgspec.ValidationError: Object missing required field `peer_init_url` - at `$`", True),
        ("INFO: Registered instance-worker ('lmcache_instance_1', 0) with URL 127.0.0.1:8500", False),
        ("INFO: peer init url of ('lmcache_instance_1', 0) is None, only register when p2p is used.", False),
        ("INFO: Got peer_init_url 127.0.0.1:8200", False),
        ("ERROR: something else", False),
    ],
)
def test_only_errors_about_peer_init_url_count(line: str, is_error: bool, running: FakeDocker) -> None:
    put_log(running, "default", "controller", line + "\n")
    assert bool(reading.logs(site()).controller_errors) is is_error


def test_waits_while_something_is_starting_and_not_longer(
    running: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def put(health: str) -> None:
        running.add_container("gpu-b", "decode", state={"Health": {"Status": health}})

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            put("healthy")

    here = site()
    clock = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    monkeypatch.setattr(reading, "time", clock)
    reading.await_started(here, 60)
    assert slept == []
    put("starting")
    reading.await_started(here, 60)
    assert len(slept) == 2
    put("starting")
    reading.await_started(here, 0)
    assert len(slept) == 2


# --- the way to an engine -----------------------------------------------------------------------------------


def test_an_engine_tells_its_host_and_version(running: FakeDocker) -> None:
    (running.engine("gpu-b") / "info.json").write_text('{"Name": "box-97", "ServerVersion": "26.1.5+dfsg1"}')
    about = engine("gpu-b").supported()
    assert (about.host, about.version) == ("box-97", "26.1.5+dfsg1")


def test_an_engine_too_old_is_refused(running: FakeDocker) -> None:
    (running.engine("gpu-b") / "info.json").write_text('{"Name": "box-97", "ServerVersion": "20.10.24"}')
    with pytest.raises(KvshareError) as refused:
        engine("gpu-b").supported()
    assert refused.value.exit_code == USAGE
    assert "expected Docker Engine 25.0 or newer on box-97 and found 20.10.24" in refused.value.message


@pytest.mark.parametrize(
    ("option", "said", "instead"),
    [
        ("name=userns", "box-97 runs containers as other users (userns-remap)", "take userns-remap out of"),
        ("name=rootless", "box-97 is rootless, with a network of its own", "unix:///var/run/docker.sock"),
    ],
)
def test_an_engine_whose_containers_are_not_on_the_machines_network_is_refused(
    option: str, said: str, instead: str, running: FakeDocker
) -> None:
    info = {"Name": "box-97", "SecurityOptions": ["name=seccomp,profile=builtin", option, "name=cgroupns"]}
    (running.engine("gpu-b") / "info.json").write_text(json.dumps(info))
    refused = refusal()
    assert refused.exit_code == USAGE
    assert said in refused.message
    assert instead in refused.message


def refusal(context: str = "gpu-b") -> KvshareError:
    with pytest.raises(KvshareError) as refused:
        engine(context).supported()
    return refused.value


SSH = "ssh://root@192.168.110.97:2222"


def complaining(running: FakeDocker, sentence: str) -> None:
    (running.engine("gpu-b") / "address").write_text(SSH)
    (running.engine("gpu-b") / "down").write_text(sentence)


def test_an_unknown_host_key_is_refused_with_the_command_that_adds_it(running: FakeDocker) -> None:
    complaining(running, "command [ssh …] has exited with exit status 255: Host key verification failed.")
    refused = refusal()
    assert refused.exit_code == USAGE
    assert "ssh-keyscan -p 2222 192.168.110.97 >> ~/.ssh/known_hosts" in refused.message


def test_an_engine_that_does_not_answer_names_its_context(running: FakeDocker) -> None:
    complaining(running, "ssh: connect to host 192.168.110.97\nport 2222: Connection refused")
    refused = refusal()
    assert refused.exit_code == COULD_NOT_CHECK
    assert refused.message == (
        f"context gpu-b: no Docker engine answers at {SSH} (ssh: connect to host 192.168.110.97 port 2222: "
        "Connection refused): type docker --context gpu-b version."
    )


def test_an_engine_that_keeps_silent_is_named_with_what_to_type_next(
    running: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    (running.engine("gpu-b", "silent") / "address").write_text(SSH)
    monkeypatch.setattr(engines, "ANSWER_TIMEOUT_S", 1.0)
    refused = refusal()
    assert refused.exit_code == COULD_NOT_CHECK
    assert f"context gpu-b: no Docker engine answers at {SSH} (nothing within 1 s): type" in refused.message


def test_this_machines_engine_is_asked_through_its_socket(running: FakeDocker) -> None:
    local = running.engine("gpu-b")
    (local / "address").write_text(f"unix://{(local / 'socket').read_text()}")
    (local / "down").touch()  # the docker command would not lead there
    assert engine("gpu-b").about().host == "gpu-b"
    (local / "address").write_text("unix:///nowhere/docker.sock")
    engine.cache_clear()
    assert "at unix:///nowhere/docker.sock (No such file or directory): type" in refusal().message


@pytest.mark.usefixtures("running")
def test_unknown_context_is_never_taken_for_the_local_engine() -> None:
    refused = refusal("gpu-x")
    assert refused.exit_code == USAGE
    assert "Docker has no context gpu-x: type docker context ls" in refused.message
    stack = replace(STACK, decodes=(replace(STACK.decode, context="gpu-x"),))
    here = Containers(stack, SETTINGS)
    assert [c.state for c in reading.containers(here)] == ["running", "running", "missing"]
    assert "Docker has no context gpu-x" in (reading.engines(here)[1].error or "")


def test_what_comes_together_with_the_headers_is_not_lost(running: FakeDocker) -> None:
    running.engine("gpu-b", "at-once")
    assert [container.error for container in reading.containers(site())] == [None] * 3


def test_without_docker_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CouldNotCheckError, match="docker is not installed here: type make setup"):
        engine("default")
