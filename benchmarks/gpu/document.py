"""docs/gpu.md from what a run left in results.json; every figure in it was measured."""

from __future__ import annotations

from typing import Any

from benchmarks.orders import FIGURES

SHOWN = (
    "KV-PEER-01",
    "KV-PEER-02",
    "KV-PEER-03",
    "KV-PEER-04",
    "KV-CTL-01",
    "KV-RIGHT-01",
    "KV-RIGHT-02",
    "KV-RIGHT-03",
)
SIGNS = {"success": "√", "warning": "‼", "error": "×", "skipped": "–"}
LEGS = ("cold", "local", "peer")
ASKED, WRITTEN = "the request is with the owner", "the owner has written the KV"
CHUNK, KV_BYTES = (
    256,
    2 * 32 * 8 * 128 * 2,
)  # tokens; bytes a token: K and V of each layer and head, 16 bits each


def render(results: dict[str, Any]) -> str:
    """Return the document; a part that was not run is left out."""
    last, with_ = results["machine"], results.get("with", {})
    parts = [_head(last)]
    if "kernel" in results:
        parts.append(_kernel(results["kernel"]) + _earlier(results["kernel"], last))
    if "with" in results and "without" in results:
        parts.append(_chain(results["without"], with_, last))
    if "bandwidth" in results:
        parts.append(_bandwidth(results["bandwidth"]["places"]) + _earlier(results["bandwidth"], last))
    for name, told in MEASURES.items():
        if "error" not in with_.get(name, {"error"}):
            parts.append(told(with_[name]) + _earlier(with_, last))
    if "fp8" in results:
        parts.append(_fp8(results["fp8"], with_) + _earlier(results["fp8"], last))
    if with_.get("ttft"):
        parts.append(_ttft(with_) + _earlier(with_, last))
        parts.append(_stages(with_["ttft"]))
    for title, arm in results.get("also", {}).items():
        parts.append(_also(title, arm) + _earlier(arm, last))
    return "\n".join(parts)


def _earlier(part: dict[str, Any], last: dict[str, Any]) -> str:
    """Say when and where a part was run, if not with the last one."""
    on = part["on"]
    return "" if on == last else f"\nRun on {on['date']}: {_machine(on)}.\n"


def _machine(on: dict[str, Any]) -> str:
    gpus = {1: "one"}.get(on.get("gpus", 1), str(on.get("gpus")))
    return f"{gpus} {on['gpu']}, driver {on['driver']}, {on['cores']} CPU cores"


def _head(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"""# On a GPU

Made by `python -m benchmarks.gpu --docs` from `benchmarks/gpu/results.json`, which `make test-gpu` wrote.
Run last on {machine["date"]}: {_machine(machine)};
Python {machine["python"]}, {versions}. What is of an earlier run says so.

No container engine ran there: controller, prefill and decode were plain processes (`make native`) with the
entrypoint, compose.yaml and configs/lmcache.yaml of the containers, both servers on the one GPU, the KV over
loopback. The model has Llama-3.1-8B's dimensions and seeded random weights in bfloat16
(`benchmarks/gpu/model.py`).
"""


def _kernel(kernel: dict[str, Any]) -> str:
    tried, exact, without = kernel["tried"], kernel["exact_with"], kernel["exact_without"]
    rows = [[dtype, tried[dtype], exact.get(dtype, 0), without.get(dtype, 0)] for dtype in tried]
    size = f"{kernel['layers']} layers of {kernel['heads']} heads of {kernel['head_size']}"
    return f"""## The transfer kernel, bit for bit

LMCache's own CUDA kernel and connector, {size}: random bytes leave
the paged cache for pinned memory and come back at other slots; every byte of every layer is compared.

- layouts: {"; ".join(kernel["layouts"])}
- tokens: {_listed(kernel["tokens"])}, in chunks of 256: whole chunks, parts of one, and both
- leading tokens that must not be written: {_listed(kernel["skips"])}
- through the connector's GPU buffer, and without it

{_table(["KV", "round trips", "exact with packed-kv", "exact without it"], rows)}
"""


def _chain(without: dict[str, Any], with_: dict[str, Any], last: dict[str, Any]) -> str:
    rows = [
        [check, _told(without["checks"][check]), _told(with_["checks"][check])]
        for check in SHOWN
        if check in without["checks"] and check in with_["checks"]
    ]
    return f"""## The whole chain

`kvshare verify`'s legs and checks, {with_["prompts"]} prompts of {with_["prompt_tokens"]} tokens.
Without packed-kv every hit is counted and the answers are wrong.

- servers without the patch: {_servers(without)}{_when(without, last)}
- servers with it: {_servers(with_)}{_when(with_, last)}

{_table(["check", "without packed-kv", "with it"], rows)}

- without: `{without["sentence"]}`
- with: `{with_["sentence"]}`
"""


def _when(part: dict[str, Any], last: dict[str, Any]) -> str:
    return "" if part["on"] == last else f"; {part['on']['date']}, {part['on']['gpu']}"


def _bandwidth(places: dict[str, list[dict[str, Any]]]) -> str:
    header = ["setting", "NIXL, GB/s", "ucx_perftest", "in one message", "ratio to it"]
    header += ["busiest thread: owner", "peer", "CPU s a GB"]
    tables = [
        f"{place}:\n\n" + _table(header, [_speeds(row) for row in rows]) for place, rows in places.items()
    ]
    return f"""## Bandwidth

`benchmarks/bandwidth.py`: two processes write 512 MiB of 32 MiB objects, the size of 256 tokens' KV, from
CPU memory to CPU memory as LMCache's channel does. Beside it, in turn, `ucx_perftest -t ucp_put_bw`
writes the same 32 MiB again and again, which a cache holds, or as much as NIXL in one message. A lane is a
pair of NIXL agents (patch `lanes`); threads are NIXL's own `num_threads`, of which the peer still has one to
receive. One connection is bound by the threads at its two ends, which copy between user and kernel memory,
and by their taking turns: neither is busy all the time.

{chr(10).join(table + chr(10) for table in tables)}"""


def _speeds(row: dict[str, Any]) -> list[str]:
    return [
        row["setting"].replace("_", "\\_"),
        f"{row['gb_per_s']:.2f}",
        f"{row['ucx_gb_per_s']:.2f}",
        f"{row['ucx_whole_gb_per_s']:.2f}",
        f"{row['gb_per_s'] / row['ucx_whole_gb_per_s']:.2f}",
        f"{row['owner_busiest']:.0%}",
        f"{row['peer_busiest']:.0%}",
        f"{row['cpu_s_per_gb']:.2f}",
    ]


def _again(found: dict[str, Any]) -> str:
    return f"""## The same prompt {found["times"]} times

On decode, which emptied vLLM's own prefix cache before every other one:

- {found["pulled"]} pulls
- against prefill's computation of the whole prompt: log-probabilities off by {found["worst_distance"]:.3f} at
  most, limit 0.1, up to and with the first token that differs, which is a near tie then;
  {found["same_tokens"]} with no such token among 8
- the slowest first token after {found["slowest_ms"]:.0f} ms; {found["double_frees"]} double frees in the logs
- {_written(found)}
"""


def _written(found: dict[str, Any]) -> str:
    if "written" not in found:
        return "how often prefill wrote was not counted"
    return f"prefill wrote {found['written']} times: what vLLM held itself was not pulled again"


def _bench(found: dict[str, Any]) -> str:
    rows = [
        [
            point["prompt_tokens"],
            *(f"{_p50(point, arm):.1f}" for arm in ("cold", "local-lmcache", "peer")),
            f"{_p50(point, 'peer') / _p50(point, 'cold'):.2f}",
            f"{point['transfer']['mean_ms']:.1f}",
            f"{point['transfer']['gb_per_s']:.1f}",
        ]
        for point in found["points"]
        if {"cold", "local-lmcache", "peer"} <= set(point["arms"])
    ]
    header = ["tokens", "cold", "local LMCache hit", "peer hit", "peer/cold", "transfer, ms", "GB/s"]
    return f"""## `kvshare bench`

{found["points"][0]["repetitions"]} repetitions a length, one request in flight, 16 output tokens; median
milliseconds to the first token. Verdict: {found["verdict"]}

{_table(header, rows)}
"""


def _p50(point: dict[str, Any], arm: str) -> float:
    return float(point["arms"][arm]["ttft_ms"])


def _clients(found: dict[str, Any]) -> str:
    (point,) = found["points"]
    rows = [
        [
            arm,
            f"{figures['ttft_ms']:.0f}",
            f"{figures['ttft_p99_ms']:.0f}",
            f"{figures['tpot_ms']:.1f}",
            f"{figures['request_throughput']:.1f}",
            f"{figures['output_throughput']:.0f}",
        ]
        for arm, figures in point["arms"].items()
    ]
    header = ["arm", "TTFT, ms", "TTFT p99, ms", "TPOT, ms", "requests/s", "output tokens/s"]
    return f"""## {point["concurrency"]} clients, {point["shared_percent"]:.0f} % of each prompt shared

`kvshare bench`, {point["prompt_tokens"]} prompt and {point["output_tokens"]} output tokens,
{point["requests"]} requests of an arm in each of {point["repetitions"]} repetitions, the arms turned round
every other time. Arm `peer`: decode pulls the shared half and computes the rest;
`recompute`: decode computes as many such prompts with nothing to pull.

{_table(header, rows)}

{_orders(found["orders"])}
"""


def _orders(orders: dict[str, Any]) -> str:
    """Peer over recompute, by which of them went first."""
    rows = [
        [f"`{first}`", *(f"{arms['peer'][name] / arms['recompute'][name]:.2f}" for name in FIGURES)]
        for first, arms in orders.items()
    ]
    header = ["first", *(words.removesuffix(", ms") for words in FIGURES.values())]
    return "Peer over recompute:\n\n" + _table(header, rows)


def _agreement(found: dict[str, Any]) -> str:
    rows = [
        [name, f"{ours:.2f}", f"{theirs:.2f}", f"{found['ratios'][name]:.3f}"]
        for name, (ours, theirs) in found["pairs"].items()
    ]
    return f"""## Beside `vllm bench serve`

On prefill, turn by turn, {found["requests"]} requests each, one in flight,
{found["tokens"]} prompt and {found["output"]} output tokens.

{_table(["figure", "kvshare bench", "vllm bench serve", "ratio"], rows)}
"""


def _never_slower(found: dict[str, Any]) -> str:
    return f"""## Never slower: `P2P_MIN_TOKENS`

First what `kvshare bench --calibrate` measures and derives, then decode restarted with it. Median
milliseconds to the first token on decode; the ratio with the middle 95 % of 2,000 bootstrap samples.

{_threshold(found)}
"""


def _slow_link(found: dict[str, Any]) -> str:
    return f"""## Never slower on a slower link

The same with one connection between the servers (`LANES={found["lanes"]}`), whose calibration says otherwise.

{_threshold(found)}
"""


def _threshold(found: dict[str, Any]) -> str:
    rows = [
        [
            after["tokens"],
            f"{before['ratio']:.2f}",
            f"{after['peer_ms']:.1f}",
            f"{after['recompute_ms']:.1f}",
            f"{after['ratio']:.3f} ({after['interval'][0]:.2f}–{after['interval'][1]:.2f})",
            "made" if after["pulled"] else "declined",
            after["repetitions"],
        ]
        for before, after in zip(found["before"], found["after"], strict=True)
    ]
    header = [
        "tokens",
        "peer/recompute without threshold",
        "with it: peer",
        "recompute",
        "ratio",
        "the pull",
        "repetitions",
    ]
    return f"`{found['line']}`\n\n{_table(header, rows)}"


def _fp8(found: dict[str, Any], with_: dict[str, Any]) -> str:
    told = [f"- {check}: {_told(found['checks'][check])}" for check in SHOWN if check in found["checks"]]
    parts = [
        "## `KV_CACHE_DTYPE=fp8`\n",
        f"`{found['sentence']}`\n",
        *([f"{found['remark']}\n"] if "remark" in found else ()),
        *told,
    ]
    bench = found.get("bench", {})
    if "points" in bench and "points" in with_.get("bench", {}):
        whole = {point["prompt_tokens"]: point for point in with_["bench"]["points"]}
        rows = [
            [
                point["prompt_tokens"],
                f"{point['transfer']['bytes_per_pull'] / 2**20:.0f}",
                f"{whole[point['prompt_tokens']]['transfer']['bytes_per_pull'] / 2**20:.0f}",
                f"{point['transfer']['mean_ms']:.1f}",
                f"{_p50(point, 'peer'):.1f}",
                f"{_p50(point, 'peer') / _p50(point, 'cold'):.2f}",
            ]
            for point in bench["points"]
            if point["prompt_tokens"] in whole and {"cold", "peer"} <= set(point["arms"])
        ]
        header = ["tokens", "MiB a pull", "MiB in bfloat16", "transfer, ms", "peer hit, ms", "peer/cold"]
        parts += ["", _table(header, rows)]
    return "\n".join(parts) + "\n"


def _servers(arm: dict[str, Any]) -> str:
    return f"`{arm['vllm_args']}`, {arm['max_local_cpu_size']} GiB of LMCache memory each"


def _told(check: list[str]) -> str:
    result, detail = check
    return f"{SIGNS[result]} {detail}".replace("|", "\\|").strip()


def _ttft(arm: dict[str, Any]) -> str:
    return f"""## Time to first token

{arm["ttft"][0]["repetitions"]} fresh prompts a length, in one run, one request at a time:
computed by prefill (cold), from prefill's own LMCache after vLLM's prefix cache was emptied (local), pulled
by decode (peer, UCX over loopback TCP). Milliseconds: the median, and the range in brackets.

{_times(arm["ttft"])}
"""


def _times(measured: list[dict[str, Any]]) -> str:
    rows = [
        [
            row["tokens"],
            *(_timed(row, leg) for leg in LEGS),
            f"{row['local_over_cold']:.2f}",
            f"{row['peer_over_cold']:.2f}",
        ]
        for row in measured
    ]
    return _table(["tokens", "cold", "local LMCache hit", "peer hit", "local/cold", "peer/cold"], rows)


def _timed(row: dict[str, Any], leg: str) -> str:
    least, most = row["range"][leg]
    return f"{row[leg]:.1f} ({least:.1f}–{most:.1f})"


def _stages(measured: list[dict[str, Any]]) -> str:
    return f"""## Where a pull's time goes

When each milestone was passed, in milliseconds after the client sent the request: medians over the pulls
above, from the servers' own log lines (to 1 ms, one clock). The last line: the bytes of the whole chunks over
the time from the second milestone to the third.

{_milestones(measured)}
"""


def _milestones(measured: list[dict[str, Any]]) -> str:
    names = [name for name in measured[0]["stages"] if all(name in row["stages"] for row in measured)]
    rows = [[name, *(f"{row['stages'][name]:.1f}" for row in measured)] for name in names]
    if {ASKED, WRITTEN} <= set(names):
        rows.append(["the owner writes, GB/s", *(f"{_speed(row):.1f}" for row in measured)])
    return _table(["tokens", *(row["tokens"] for row in measured)], rows)


def _speed(row: dict[str, Any]) -> float:
    moved = row["tokens"] // CHUNK * CHUNK * KV_BYTES
    return float(moved / (row["stages"][WRITTEN] - row["stages"][ASKED]) / 1e6)


def _also(title: str, arm: dict[str, Any]) -> str:
    return f"""## Also: {title}

Another run, on a machine of the same kind: `{arm["sentence"]}`

{_times(arm["ttft"])}

{_milestones(arm["ttft"])}
"""


def _table(header: list[Any], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


MEASURES = {
    "again": _again,
    "bench": _bench,
    "clients": _clients,
    "agreement": _agreement,
    "never-slower": _never_slower,
    "slow-link": _slow_link,
}
