"""The Grafana dashboard, docs/grafana.json, as code: what each panel asks, and what it calls the answer."""

import json
from dataclasses import dataclass
from typing import Any

from kvshare.watch.rules import PULLED_BYTES, TOKENS, WINDOW

COLUMNS, WIDTH, HEIGHT = 2, 12, 8


@dataclass(frozen=True)
class Panel:
    """One graph: queries by the legend of their series; ``unit`` as Grafana names it."""

    title: str
    about: str
    queries: dict[str, str]
    unit: str = "short"
    stacked: bool = False


def _quantile(share: float, histogram: str) -> str:
    return f"histogram_quantile({share}, sum by (node, le) (rate({histogram}_bucket[{WINDOW}])))"


def _mean(histogram: str) -> str:
    def rate(part: str) -> str:
        return f"sum by (node) (rate({histogram}_{part}[{WINDOW}]))"

    return f"{rate('sum')} / {rate('count')}"


PANELS = (
    Panel(
        "Where prompt tokens' KV came from",
        "own prefix cache: vLLM's on the GPU; own LMCache: the server's CPU memory; peer: another server's. "
        "vLLM counts the last two as one; the peer's share is what owners say that they sent.",
        {"{{source}}": TOKENS},
        "tokens/s", True,
    ),
    Panel(
        "Share by source",
        "The same, of all prompt tokens.",
        {"{{source}}": f"{TOKENS} / ignoring (source) group_left () sum without (source) ({TOKENS})"},
        "percentunit", True,
    ),
    Panel(
        "KV pulled",
        "By pair: each server counts the bytes that every peer has written into it.",
        {"{{owner}} to {{node}}": PULLED_BYTES},
        "Bps",
    ),
    Panel(
        "Transfers",
        "Mean seconds of one transfer as its owner counts them, and how many there are a second.",
        {
            "seconds, from {{node}}": _mean("lmcache:p2p_time_to_transfer"),
            "a second, from {{node}}": f"sum by (node) (rate(lmcache:p2p_time_to_transfer_count[{WINDOW}]))",
        },
    ),
    Panel(
        "Time to first token",
        "Of the requests that each server answered.",
        {f"{p:.0%} {{{{node}}}}": _quantile(p, "vllm:time_to_first_token_seconds") for p in (0.5, 0.95)},
        "s",
    ),
    Panel(
        "Queue",
        "A wait for a peer's KV is part of it: a plateau at LOOKUP_TIMEOUT_MS is pulls that come too late.",
        {"95% {{node}}": _quantile(0.95, "vllm:request_queue_time_seconds")},
        "s",
    ),
    Panel(
        "Requests",
        "Now.",
        {
            "running {{node}}": "sum by (node) (vllm:num_requests_running)",
            "waiting {{node}}": "sum by (node) (vllm:num_requests_waiting)",
        },
    ),
    Panel(
        "Gateway's answers",
        "By the server that gave them, and the status code.",
        {"{{node}} {{code}}": f"sum by (node, code) (rate(kvshare_gateway_answers_total[{WINDOW}]))"},
        "reqps",
    ),
    Panel(
        "Canary",
        "How the last one ended: proven, unanswered, computed (nothing pulled), unsent, wrong.",
        {"{{node}} {{state}}": "kvshare_canary_state == 1"},
    ),
    Panel(
        "Canary's time to first token",
        "Pulled above computed: reuse costs more than it saves at the canary's length.",
        {"{{kv}} {{node}}": "kvshare_canary_ttft_seconds"},
        "s",
    ),
    Panel(
        "What the controller knows",
        "Chunks at each worker; a worker that is missing or under another's address has 0 known.",
        {
            "chunks {{node}} {{rank}}": "kvshare_worker_keys",
            "known {{node}} {{rank}}": "kvshare_worker_known",
            "workers syncing": "lmcache:cache_controller_full_sync_workers_syncing",
        },
    ),
    Panel(
        "Memory of KV",
        "LMCache's in bytes; what is pinned may not be evicted.",
        {
            "LMCache {{node}}": "sum by (node) (lmcache:local_cache_usage)",
            "chunks pinned {{node}}": "sum by (node) (lmcache:pinned_memory_objs_count)",
        },
        "bytes",
    ),
    Panel(
        "vLLM's own KV memory",
        "Share in use, on the GPU.",
        {"{{node}}": "vllm:kv_cache_usage_perc"},
        "percentunit",
    ),
    Panel("Alarms", "What fires now.", {"{{alertname}} {{node}}": 'ALERTS{alertstate="firing"}'}),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return what Grafana imports; it asks which Prometheus to use."""
    source = {"type": "prometheus", "uid": "${source}"}
    picker = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "title": "kvshare",
        "uid": "kvshare",
        "editable": True,
        "refresh": "10s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [picker]},
        "panels": [_panel(number, panel, source) for number, panel in enumerate(PANELS)],
    }


def page() -> str:
    """Return docs/grafana.json."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def _panel(number: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 40} if panel.stacked else {}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": source, "expr": expr, "legendFormat": legend}
            for n, (legend, expr) in enumerate(panel.queries.items())
        ],
    }
