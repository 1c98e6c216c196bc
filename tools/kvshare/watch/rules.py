"""What Prometheus records of a stack, and what is alarming; each alert says what to type next.

Where a prompt token's KV came from, by name: *computed*, *own prefix cache* (vLLM's, on the GPU), *own
LMCache* (the server's own CPU memory) and *peer* (another server's). vLLM counts the last two as one,
`external_kv_transfer`; the peer's share is what owners send.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from kvshare.servers.metrics import PROMPT_TOKENS, PULLED
from kvshare.watch.watched import Node, Watched

WINDOW = "5m"
TOKENS, SENT_TOKENS, PULLED_BYTES = (
    f"kvshare:{name}:rate{WINDOW}" for name in ("prompt_tokens", "sent_tokens", "pulled_bytes")
)
# Upper bounds of vLLM's histogram of queue times, in seconds, as it writes them; a wait for KV is in them.
QUEUE_BOUNDS = ("0.3", "0.5", "0.8", "1.0", "1.5", "2.0", "2.5", "5.0", "10.0", "15.0", "20.0", "30.0")
TIMED_OUT_SHARE = 0.05
CRITICAL, WARNING = "critical", "warning"


@dataclass(frozen=True)
class Record:
    """A series that Prometheus computes, and what it is labelled with."""

    name: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def rule(self) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        labels = {"labels": dict(self.labels)} if self.labels else {}
        return {"record": self.name, "expr": self.expr, **labels}


@dataclass(frozen=True)
class Alert:
    """Something alarming: ``says`` what is so, once it was for so many minutes, and ``do`` what to type."""

    name: str
    expr: str
    minutes: float
    severity: str
    says: str
    do: str

    @property
    def rule(self) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": f"{self.minutes * 60:.0f}s",
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.says, "description": self.do},
        }


def rules(watched: Watched) -> dict[str, Any]:
    """Return the file of rules as plain data."""
    groups: dict[str, Sequence[Record | Alert]] = {
        "kvshare": records(watched),
        "kvshare-alerts": alerts(watched),
    }
    return {"groups": [{"name": name, "rules": [r.rule for r in some]} for name, some in groups.items()]}


def records(watched: Watched) -> tuple[Record, ...]:
    """Return what is recorded, in the order in which one builds on another."""

    def of_source(source: str) -> str:
        return f'sum(rate({PROMPT_TOKENS}{{source="{source}"}}[{WINDOW}]))'

    def rate(counter: str) -> str:
        return f"sum by (node) (rate(lmcache:p2p_{counter}[{WINDOW}]))"

    ranks = len(watched.prefill.peer_init_urls)  # each sends its share of the same tokens
    speed = f"{rate('transfer_speed_sum')} / ({rate('transfer_speed_count')} > 0)"
    external, sent = of_source("external_kv_transfer"), f"(sum({SENT_TOKENS}) or vector(0))"
    by_source = {
        "computed": of_source("local_compute"),
        "own prefix cache": of_source("local_cache_hit"),
        "own LMCache": f"clamp_min({external} - {sent}, 0)",
        "peer": f"{external} - clamp_min({external} - {sent}, 0)",
    }
    return (
        Record(SENT_TOKENS, f"({speed}) * {rate('time_to_transfer_sum')} / {ranks}"),
        *(Record(PULLED_BYTES, _pulled_from(owner), {"owner": owner.name}) for owner in watched.servers),
        *(Record(TOKENS, expr, {"source": source}) for source, expr in by_source.items()),
    )


def alerts(watched: Watched) -> tuple[Alert, ...]:
    """Return what is alarming; what follows from canaries in multiples of the time between two."""
    every = watched.every_minutes

    def ended(state: str) -> str:
        return f'kvshare_canary_state{{state="{state}"}} == 1'

    def ttft(kv: str) -> str:
        return f'avg_over_time(kvshare_canary_ttft_seconds{{kv="{kv}"}}[{6 * every}m])'

    return (
        Alert(
            "KvshareAnswersWrong", ended("wrong"), 0, CRITICAL,
            "{{ $labels.node }} answers otherwise from a peer's KV than prefill does from its own",
            "take the pair out of service, then: make verify; docs/checks.md, KV-RIGHT-01",
        ),
        Alert(
            "KvshareHitsWithoutBytes", ended("unsent"), 0, CRITICAL,
            "{{ $labels.node }} counts tokens from its peer, and prefill counts no transfer",
            "make verify; docs/checks.md, KV-PEER-03",
        ),
        Alert(
            "KvshareNotReused", ended("computed"), 1.5 * every, WARNING,
            "{{ $labels.node }} computes what prefill holds, in two canaries in a row",
            "make verify says why; make logs ARGS='--node canary'",
        ),
        Alert(
            "KvshareCanaryBlind", ended("blind"), 1.5 * every, WARNING,
            "the canary of {{ $labels.node }} could not tell wrong KV from right, twice in a row",
            "make verify says by how much; docs/checks.md, KV-RIGHT-01",
        ),
        Alert(
            "KvshareCanaryUnanswered", ended("unanswered"), 1.5 * every, WARNING,
            "the canary of {{ $labels.node }} was not answered, twice in a row",
            "make status; make logs ARGS='--node canary'",
        ),
        Alert(
            "KvshareCanarySilent", f"time() - kvshare_canary_ended_seconds > {3 * every * 60}", 0, WARNING,
            "no canary of {{ $labels.node }} has ended for three of its turns",
            "make logs ARGS='--node canary'",
        ),
        Alert(
            "KvsharePullSlower", f"{ttft('pulled')} > ignoring (kv) {ttft('computed')}", 6 * every, WARNING,
            "{{ $labels.node }} pulls a canary's KV more slowly than it computes it, six times on average",
            "make bench ARGS=--calibrate finds the length from which a pull pays, and make up applies it",
        ),
        Alert(
            "KvshareDown", "up == 0", 0.5, CRITICAL,
            "{{ $labels.node }} does not answer at {{ $labels.instance }}",
            "make status; make logs ARGS='--node {{ $labels.node }}'",
        ),
        Alert(
            "KvshareWorkerLost", "kvshare_worker_known == 0", 0.5, CRITICAL,
            "the controller lists no rank {{ $labels.rank }} of {{ $labels.node }} under its own address",
            "make verify; docs/checks.md, CTRL-04",
        ),
        Alert(
            "KvshareWorkerNotSynced", "lmcache:cache_controller_full_sync_workers_syncing > 0", 2, WARNING,
            "{{ $value }} LMCache workers have not told the controller all that they hold",
            "make status; make logs ARGS='--node controller'",
        ),
        Alert(
            "KvshareControllerDeaf",
            "lmcache:cache_controller_pull_socket_has_pending > 0"
            " unless increase(lmcache:cache_controller_pull_socket_message_count[2m]) > 0",
            2, CRITICAL,
            "the controller has stopped to read what workers tell it",
            "make verify; docs/checks.md, CTRL-02",
        ),
        Alert(
            "KvshareMessagesRejected", _rejected(3 * (len(watched.servers) + 1)), 0, WARNING,
            "{{ $labels.node }} was sent messages on {{ $labels.socket }} that it could not read",
            "make ports tells who may reach it; make verify whether versions are apart",
        ),
        Alert(
            "KvshareChecksumsDiffer", _has_risen("lmcache:checksum_mismatches_total"), 0, CRITICAL,
            "{{ $labels.node }} got KV from {{ $labels.peer }} that is not what that stored, and computed it",
            "make logs ARGS='--node {{ $labels.node }}'; that machine's memory or its drivers spoil KV",
        ),
        Alert(
            "KvshareLookupsTimeOut", _timed_out(watched.lookup_timeout_ms / 1000), 5, WARNING,
            "{{ $value | humanizePercentage }} of the requests to {{ $labels.node }} wait as long as "
            f"LOOKUP_TIMEOUT_MS={watched.lookup_timeout_ms} lets them wait for KV",
            "make doctor ARGS=--write derives it from the link; docs/checks.md, KV-PEER-06",
        ),
        Alert(
            "KvshareVersionsApart", "count(count by (version) (kvshare_version)) > 1", 5, WARNING,
            "the servers run {{ $value }} versions of vLLM",
            "make ship or make pull, then make up",
        ),
        Alert(
            "KvshareMemoryPinned",
            "min_over_time(lmcache:pinned_memory_objs_count[10m]) > 0 and on (node)"
            " max by (node) (max_over_time(vllm:num_requests_running[10m])) == 0",
            5, WARNING,
            "{{ $labels.node }} keeps {{ $value }} chunks pinned although nothing runs there",
            "make bundle, and file an issue; make up after make down frees them",
        ),
        Alert(
            "KvshareMemoryGrows", _grows("process_resident_memory_bytes"), 10, WARNING,
            "{{ $labels.node }} has grown in each of the last six hours, to {{ $value | humanize1024 }}B",
            "make bundle, and file an issue",
        ),
    )  # fmt: skip


def _pulled_from(owner: Node) -> str:
    """Return the bytes a second that each node pulls from one, over all of its ranks."""
    ranks = "|".join(owner.peer_init_urls)
    return f'sum by (node) (rate({PULLED}{{peer=~"{ranks}"}}[{WINDOW}]))'


def _rejected(knocks: int) -> str:
    """Return the sockets that were sent what they cannot read, or called without the key more than so often.

    `make doctor` knocks at each port once from every machine.
    """

    def rise(socket: str) -> str:
        return f'increase(lmcache:rejected_messages_total{{socket{socket}"port .*"}}[10m])'

    return f"{rise('!~')} > 0 or {rise('=~')} > {knocks}"


def _has_risen(counter: str) -> str:
    """Return where a counter has risen in ten minutes, or is there for the first time and not 0."""
    return f"increase({counter}[10m]) > 0 or ({counter} > 0 unless {counter} offset 10m)"


def _timed_out(limit_s: float) -> str:
    """Return the share of requests that queued from shortly before the limit on: a plateau, not a tail.

    Above the next bound twice beyond it is a queue that is long for other reasons, and so is one that is
    never empty; who waits for KV is in it as well, so it need not be empty always.
    """
    below = max((b for b in QUEUE_BOUNDS if float(b) <= limit_s), key=float, default=QUEUE_BOUNDS[0])
    above = min((b for b in QUEUE_BOUNDS if float(b) > limit_s), key=float, default=QUEUE_BOUNDS[-1])

    def rate(name: str) -> str:
        return f"sum by (node) (rate(vllm:request_queue_time_seconds_{name}[{WINDOW}]))"

    def until(bound: str) -> str:
        return rate(f'bucket{{le="{bound}"}}')

    share = f"({until(above)} - {until(below)}) / ({rate('count')} > 0)"
    least = f"sum by (node) (min_over_time(vllm:num_requests_waiting[{WINDOW}]))"
    return f"{share} > {TIMED_OUT_SHARE} and on (node) {least} == 0"


def _grows(gauge: str) -> str:
    """Return the gauge where its least value of each of six hours is above that of the hour before."""
    least = [f"min_over_time({gauge}[1h]{f' offset {hour}h' if hour else ''})" for hour in range(7)]
    steps = (f"({now} > 1.01 * {then})" for now, then in pairwise(least))
    return " and ".join(steps)
