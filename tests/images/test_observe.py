"""Prometheus's image, and the rules by its own promtool: one thing broken at a time, and the alarm for it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvshare.verify.canary import State
from kvshare.watch.dashboard import PANELS
from kvshare.watch.prometheus import TOKEN, configuration
from kvshare.watch.rules import PULLED_BYTES, TOKENS, rules
from kvshare.watch.watched import Watched
from tests.conftest import BUILD_TIMEOUT_S
from tests.unit.test_watch import environment

WATCHED = Watched.of(environment())
EVERY = WATCHED.every_minutes
HOURS = 9 * 60  # minutes that each series is told for
Series = Mapping[str, str]

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S)


def constant(value: float) -> str:
    return f"{float(value)}+0x{HOURS}"


def rising(a_minute: float) -> str:
    return f"0+{a_minute}x{HOURS}"


def alternating(*values: float) -> str:
    return " ".join(str(float(value)) for _ in range(HOURS // len(values)) for value in values)


def canary(state: str) -> Series:
    return {f'kvshare_canary_state{{node="decode",state="{s}"}}': constant(s == state) for s in State}


# A stack that serves and of which nothing is alarming; a sample a minute.
WELL: Series = {
    **{
        f'up{{node="{node}",instance="{node}:1"}}': constant(1)
        for node in ("controller", "prefill", "decode")
    },
    **canary("proven"),
    'kvshare_canary_ended_seconds{node="decode"}': rising(60),
    'kvshare_canary_ttft_seconds{node="decode",kv="pulled"}': constant(0.1),
    'kvshare_canary_ttft_seconds{node="decode",kv="computed"}': constant(0.9),
    **{f'kvshare_worker_known{{node="{node}",rank="0"}}': constant(1) for node in ("prefill", "decode")},
    **{f'kvshare_version{{node="{node}",version="0.32.0"}}': constant(1) for node in ("prefill", "decode")},
    'lmcache:rejected_messages_total{node="controller",socket="pull"}': constant(3),
    'lmcache:cache_controller_full_sync_workers_syncing{node="controller"}': constant(0),
    'lmcache:cache_controller_pull_socket_has_pending{node="controller"}': constant(1),
    'lmcache:cache_controller_pull_socket_message_count{node="controller"}': rising(10),
    'vllm:request_queue_time_seconds_bucket{node="decode",le="2.5"}': rising(60),
    'vllm:request_queue_time_seconds_bucket{node="decode",le="5.0"}': rising(60),
    'vllm:request_queue_time_seconds_count{node="decode"}': rising(60),
    'vllm:num_requests_waiting{node="decode"}': constant(0),
    'vllm:num_requests_running{node="decode"}': constant(1),
    'lmcache:pinned_memory_objs_count{node="decode",pid="7"}': constant(6),
    'process_resident_memory_bytes{node="controller"}': constant(1e9),
}
# By alarm: what differs, the node that it names, and the minutes after which it fires and not before.
SYNCING = "lmcache:cache_controller_full_sync_workers_syncing"
REJECTED = "lmcache:rejected_messages_total"
LATE = {'vllm:request_queue_time_seconds_bucket{node="decode",le="2.5"}': rising(50)}
WAITING = 'vllm:num_requests_waiting{node="decode"}'
READ = "lmcache:cache_controller_pull_socket_message_count"
BROKEN: dict[str, tuple[Series, str, float]] = {
    "KvshareAnswersWrong": (canary("wrong"), "decode", 0),
    "KvshareHitsWithoutBytes": (canary("unsent"), "decode", 0),
    "KvshareNotReused": (canary("computed"), "decode", 1.5 * EVERY),
    "KvshareCanaryBlind": (canary("blind"), "decode", 1.5 * EVERY),
    "KvshareCanaryUnanswered": (canary("unanswered"), "decode", 1.5 * EVERY),
    "KvshareCanarySilent": (
        {'kvshare_canary_ended_seconds{node="decode"}': constant(0)}, "decode", 3 * EVERY,
    ),
    "KvsharePullSlower": (
        {'kvshare_canary_ttft_seconds{node="decode",kv="pulled"}': constant(1.1)}, "decode", 6 * EVERY,
    ),
    "KvshareDown": ({'up{node="prefill",instance="prefill:1"}': constant(0)}, "prefill", 0.5),
    "KvshareWorkerLost": ({'kvshare_worker_known{node="decode",rank="0"}': constant(0)}, "decode", 0.5),
    "KvshareWorkerNotSynced": ({f'{SYNCING}{{node="controller"}}': constant(1)}, "controller", 2),
    "KvshareControllerDeaf": ({f'{READ}{{node="controller"}}': constant(7)}, "controller", 2),
    "KvshareMessagesRejected": (
        {f'{REJECTED}{{node="controller",socket="pull"}}': "3+0x51 4+0x8 5+0x480"}, "controller", 52,
    ),
    "KvshareChecksumsDiffer": (
        {'lmcache:checksum_mismatches_total{node="decode",peer="prefill:1"}': "_x19 1+1x480"}, "decode", 19,
    ),
    "KvshareLookupsTimeOut": (LATE | {WAITING: alternating(0, 1)}, "decode", 5),
    "KvshareVersionsApart": ({'kvshare_version{node="decode",version="0.33.0"}': constant(1)}, "", 5),
    "KvshareMemoryPinned": ({'vllm:num_requests_running{node="decode"}': constant(0)}, "decode", 5),
    "KvshareMemoryGrows": (
        {'process_resident_memory_bytes{node="controller"}': f"1000000000+1000000x{HOURS}"},
        "controller",
        6 * 60 + 10,
    ),
}  # fmt: skip


def promtool(images: Mapping[str, str], folder: Path, *arguments: str, **files: Any) -> None:
    """Run the image's promtool where these files lie, as JSON, which it takes for YAML."""
    folder.chmod(0o755)
    for name, content in {"rules": rules(WATCHED), **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    command = ("docker", "run", "--rm", "--network=none", f"--volume={folder}:/rules:ro", "--workdir=/rules")
    run = (*command, "--entrypoint=promtool", images["prometheus"], *arguments)
    result = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]


def case(series: Series, *queries: Mapping[str, Any]) -> dict[str, Any]:
    told = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": told, "promql_expr_test": queries}


def firing(minute: float, *alarms: str) -> dict[str, Any]:
    """Exactly these alarms fire at a minute."""
    return {
        "expr": 'count by (alertname, node) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minute * 60:.0f}s",
        "exp_samples": [{"labels": alarm, "value": 1} for alarm in alarms],
    }


def of_cases(*cases: dict[str, Any]) -> dict[str, Any]:
    return {"rule_files": ["rules.json"], "evaluation_interval": "30s", "tests": cases}


def test_promtool_takes_the_configuration_and_every_rule(images: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / TOKEN).touch()
    configured = configuration(WATCHED, keyed=True)
    promtool(images, tmp_path, "check", "config", "prometheus.json", prometheus=configured)


def test_every_query_of_the_dashboard_is_one(images: dict[str, str], tmp_path: Path) -> None:
    queries = (query for panel in PANELS for query in panel.queries.values())
    records = [{"record": f"panel{number}", "expr": query} for number, query in enumerate(queries)]
    panels = {"groups": [{"name": "panels", "rules": records}]}
    promtool(images, tmp_path, "check", "rules", "panels.json", panels=panels)


def test_every_alarm_has_its_fault() -> None:
    named = {
        rule["alert"] for group in rules(WATCHED)["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert named == BROKEN.keys()


def test_each_fault_raises_its_alarm_in_its_time_and_no_other(images: dict[str, str], tmp_path: Path) -> None:
    cases = [case(WELL, firing(5), firing(60), firing(8 * 60))]
    for alarm, (broken, node, minutes) in BROKEN.items():
        named = f'{{alertname="{alarm}"' + (f', node="{node}"}}' if node else "}")
        before = [firing(minutes - 0.4)] if minutes else []
        cases.append(case({**WELL, **broken}, *before, firing(minutes + 15, named)))
    promtool(images, tmp_path, "test", "rules", "tests.json", tests=of_cases(*cases))


def test_a_queue_that_is_never_empty_is_not_called_lookups_that_time_out(
    images: dict[str, str], tmp_path: Path
) -> None:
    busy = case({**WELL, **LATE, WAITING: alternating(1, 2)}, firing(30))
    promtool(images, tmp_path, "test", "rules", "tests.json", tests=of_cases(busy))


def test_a_doctor_that_knocks_is_not_called_a_stranger(images: dict[str, str], tmp_path: Path) -> None:
    def knocks(count: int) -> Series:
        return {f'{REJECTED}{{node="controller",socket="port 8300"}}': f"0+0x20 {count}+0x100"}

    alarm = '{alertname="KvshareMessagesRejected", node="controller"}'
    few, many = (case({**WELL, **knocks(3)}, firing(25)), case({**WELL, **knocks(30)}, firing(25, alarm)))
    promtool(images, tmp_path, "test", "rules", "tests.json", tests=of_cases(few, many))


def asked(expr: str, samples: Mapping[str, float]) -> dict[str, Any]:
    expected = [{"labels": labels, "value": value} for labels, value in samples.items()]
    return {"expr": f"round({expr}, 0.001)", "eval_time": "20m", "exp_samples": expected}


def test_what_a_server_takes_from_its_own_memory_is_not_called_the_peers(
    images: dict[str, str], tmp_path: Path
) -> None:
    """Decode has 10 tokens a second from LMCache, and prefill sends 6: the other 4 are decode's own."""
    tokens = 'vllm:prompt_tokens_by_source_total{node="decode",source="'
    series = {
        f'{tokens}local_compute"}}': rising(60 * 20),
        f'{tokens}local_cache_hit"}}': rising(60 * 30),
        f'{tokens}external_kv_transfer"}}': rising(60 * 10),
        'lmcache:p2p_transfer_speed_sum{node="prefill"}': rising(60 * 1000),
        'lmcache:p2p_transfer_speed_count{node="prefill"}': rising(60 * 0.1),
        'lmcache:p2p_time_to_transfer_sum{node="prefill"}': rising(60 * 0.0006),
    }
    due = {"computed": 20, "own prefix cache": 30, "own LMCache": 4, "peer": 6}
    by_source = asked(TOKENS, {f'{{source="{source}"}}': value for source, value in due.items()})
    promtool(images, tmp_path, "test", "rules", "tests.json", tests=of_cases(case(series, by_source)))


def test_what_is_pulled_is_told_by_pair(images: dict[str, str], tmp_path: Path) -> None:
    pulled = "lmcache:pulled_bytes_total"
    series = {
        f'{pulled}{{node="decode",peer="127.0.0.1:8200"}}': rising(60 * 6),
        f'{pulled}{{node="prefill",peer="127.0.0.1:8202"}}': rising(60 * 2),
        f'{pulled}{{node="prefill",peer="127.0.0.1:8203"}}': rising(60 * 9),
    }
    pairs = {'{node="decode",owner="prefill"}': 6, '{node="prefill",owner="decode"}': 2}
    by_pair = case(series, asked(PULLED_BYTES, {labels: float(value) for labels, value in pairs.items()}))
    promtool(images, tmp_path, "test", "rules", "tests.json", tests=of_cases(by_pair))
