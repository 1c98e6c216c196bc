"""What runs where, whoever does not answer."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from kvshare import cli
from kvshare.config.settings import Settings
from kvshare.contract import FINGERPRINT
from kvshare.operate import status
from kvshare.site.containers import Containers
from kvshare.watch import page
from tests.conftest import ROOT
from tests.unit.build import STACK
from tests.unit.fake_docker import FakeDocker
from tests.unit.test_cli import invoke

WORKERS = json.dumps(
    {
        "workers": [
            {"instance_id": "lmcache_instance_1", "worker_id": 0, "key_count": 12},
            {"instance_id": "lmcache_instance_1", "worker_id": 1, "key_count": 12},
            {"instance_id": "lmcache_instance_2", "key_count": 0},
        ]
    }
)
WORKERS_URL = "/controller/workers"  # as the controller is asked


@pytest.fixture
def running(fake_docker: FakeDocker) -> FakeDocker:
    fake_docker.add_container("default", "controller")
    fake_docker.add_container("default", "prefill")
    fake_docker.add_container("gpu-b", "decode")
    fake_docker.answers("default", **{WORKERS_URL: WORKERS})
    return fake_docker


def site() -> Containers:
    return Containers(STACK, Settings(ROOT, {}))


@pytest.fixture(autouse=True)
def stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvshare.site.compose.read_stack", lambda _: STACK)


def test_each_node_with_its_image_and_what_the_controller_knows(running: FakeDocker) -> None:
    del running
    controller, prefill, decode = status.status(site())
    assert {row.health for row in (controller, prefill, decode)} == {"healthy"}
    assert prefill.image_id == "sha256:" + "ab" * 32
    assert (controller.registered, controller.keys) == (None, None)
    assert (prefill.registered, prefill.keys) == (True, 24), "of all its ranks together"
    assert (decode.registered, decode.keys) == (True, 0)


def test_a_healthy_server_that_the_controller_does_not_know_is_not_well(running: FakeDocker) -> None:
    running.answers("default", **{WORKERS_URL: '{"workers": []}'})
    result = invoke("status")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].split()[-1] == "no"


def test_one_with_another_cluster_key_is_named_as_that(running: FakeDocker) -> None:
    def fingerprint(key: str) -> dict[str, str]:
        return {FINGERPRINT: json.dumps({"role": "decode", "cluster_key": key})}

    running.answers("default", **{WORKERS_URL: '{"workers": []}'}, **fingerprint("0badcafe"))
    running.answers("gpu-b", **fingerprint(""))
    result = invoke("status")
    assert result.exit_code == 1
    *_, prefill, decode = result.stdout.splitlines()
    assert decode.rstrip().endswith("no: another cluster key")
    assert prefill.split()[-1] == "no"


def test_a_rank_that_the_controller_does_not_know_is_named(
    running: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    del running
    two = replace(STACK, decodes=(replace(STACK.decode, worker_ports=(8501, 8511)),))
    monkeypatch.setattr("kvshare.site.compose.read_stack", lambda _: two)
    result = invoke("status")
    assert result.exit_code == 1
    assert "rank 1 is not" in result.stdout.splitlines()[-1]


def test_a_controller_that_does_not_answer_leaves_a_gap(running: FakeDocker) -> None:
    running.answers("default")
    rows = status.status(site())
    assert [row.health for row in rows] == ["healthy"] * 3
    assert {row.registered for row in rows} == {None}
    running.answers("default", **{WORKERS_URL: "<html>"})
    assert {row.registered for row in status.status(site())} == {None}


def test_an_engine_that_does_not_answer_hides_no_other(running: FakeDocker) -> None:
    running.engine("gpu-b", "down")
    result = invoke("status")
    assert result.exit_code == 3
    assert "prefill     192.168.110.13  default  running  healthy" in result.stdout
    assert "decode      192.168.110.97  gpu-b    unknown" in result.stdout
    assert result.stderr.startswith("kvshare: context gpu-b: no Docker engine answers at ssh://gpu-b")
    assert result.stderr.count("\n") == 1


def test_what_is_not_there_is_absent(running: FakeDocker) -> None:
    (running.engine("gpu-b") / "containers.json").unlink()
    result = invoke("status", "--output", "json")
    assert result.exit_code == 1
    assert [row["state"] for row in json.loads(result.stdout)] == ["running", "running", "absent"]


def test_json_holds_everything(running: FakeDocker) -> None:
    del running
    result = invoke("status", "--output", "json")
    assert result.exit_code == 0
    row = json.loads(result.stdout)[1]
    assert row["uptime_s"] > 0
    assert {key: row[key] for key in ("node", "context", "host", "image", "registered", "keys")} == {
        "node": "prefill",
        "context": "default",
        "host": "192.168.110.13",
        "image": "kvshare/engine-cpu:0.1.0",
        "registered": True,
        "keys": 24,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (11525, "3 h 12 min"), (90061, "1 d 1 h")],
)
def test_durations(seconds: int, text: str) -> None:
    assert status.duration(seconds) == text


def test_uptime_is_of_what_runs() -> None:
    now = datetime(2026, 11, 24, 8, 1, tzinfo=UTC)
    assert status._uptime_s({"Status": "running", "StartedAt": "2026-11-24T08:00:00.123456789Z"}, now) == 59
    assert status._uptime_s({"Status": "exited", "StartedAt": "2026-11-24T08:00:00Z"}, now) is None


def test_nothing_is_cut_off_in_a_pipe(running: FakeDocker) -> None:
    del running
    stream = io.StringIO()
    status.print_table(status.status(site()), stream)
    assert "…" not in stream.getvalue()
    assert Console(file=stream).width < status.PIPE_WIDTH
    assert cli.main.commands["status"].help


def test_the_page_says_whether_all_is_well_and_what_each_server_does(
    running: FakeDocker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "BETWEEN_LOOKS_S", 0.01)
    target = tmp_path / "status.html"
    assert invoke("status", "--html", str(target)).exit_code == 0
    text = target.read_text()
    assert ">All is well.<" in text
    assert text.count("<td>healthy</td>") == 3
    assert "the controller does not answer" in text, "its metrics are not there"
    running.answers("default", **{WORKERS_URL: '{"workers": []}'})
    assert invoke("status", "--html", str(target)).exit_code == 1
    assert ">Not all is well.<" in target.read_text()
