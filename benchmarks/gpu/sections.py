"""The sections of a machine's page: what a part found, told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import bandwidth, identity
from benchmarks.gpu.chain_sections import CHAINS
from benchmarks.gpu.sizes import kv_bytes
from benchmarks.orders import FIGURES
from benchmarks.tables import table
from tests.vllm_bench import AGREEMENT

LEGS = ("cold", "local", "peer")
ARMS = {
    "cold": "cold",
    "local-lmcache": "local LMCache hit",
    "peer": "peer hit",
    "recompute": "recompute",
}
ASKED, WRITTEN = "the request is with the owner", "the owner has written the KV"
CHUNK = 256  # tokens


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

{table(["KV", "round trips", "exact with packed-kv", "exact without it"], rows)}
"""


def _at_once(found: dict[str, Any]) -> str:
    rows = [
        [
            point["tokens"],
            point["nodes"],
            *(f"{point[name]:.1f}" for name in ("recompute_ms", "each_its_own_ms", "all_the_same_ms")),
            f"{point['each_its_own_ms'] / point['recompute_ms']:.2f}",
            f"{point['all_the_same_ms'] / point['recompute_ms']:.2f}",
        ]
        for point in found["points"]
    ]
    header = [
        "tokens",
        "nodes",
        "recompute",
        "each its own",
        "all the same",
        "own/recompute",
        "same/recompute",
    ]
    return f"""## Decode nodes that ask at the same moment

One request a node: for a prompt that nobody holds, for one of its own that prefill holds, for one that
prefill holds and all ask for. Median milliseconds to the first token over nodes and {found["rounds"]} rounds.

{table(header, rows)}
"""


def _corrupted(found: dict[str, Any]) -> str:
    failed = ", ".join(found["failed"])
    return f"""## One rank's KV wiped

What the last rank of decode pulled was wiped on its way to the GPU. Every counter is right; verify failed on
{failed}:

`{found["sentence"]}`
"""


def _bandwidth(places: dict[str, list[dict[str, Any]]]) -> str:
    tables = [f"{place}:\n\n{bandwidth.table(rows)}\n" for place, rows in places.items()]
    return f"""## Bandwidth

`benchmarks/bandwidth.py`: two processes write 512 MiB of 32 MiB objects, the size of 256 tokens' KV, from
CPU memory to CPU memory as LMCache's channel does. Beside it, in turn, `ucx_perftest -t ucp_put_bw`
writes the same 32 MiB again and again, which a cache holds, or as much as NIXL in one message. A lane is a
pair of NIXL agents (patch `lanes`); threads are NIXL's own `num_threads`, of which the peer still has one to
receive. One connection is bound by the threads at its two ends, which copy between user and kernel memory,
and by their taking turns: neither is busy all the time.

{chr(10).join(tables)}"""


def _again(found: dict[str, Any]) -> str:
    return f"""## The same prompt {found["times"]} times

On decode, which emptied vLLM's own prefix cache before every other one:

- {found["pulled"]} pulls
- against prefill's computation of the whole prompt: log-probabilities off by {found["worst_distance"]:.3f} at
  most, limit 0.1, up to and with the first token that differs, which is a near tie then;
  {found["same_tokens"]} with no such token among 8
- the slowest first token after {found["slowest_ms"]:.0f} ms; {found["double_frees"]} double frees in the logs
- prefill wrote {found["written"]} times: what vLLM held itself was not pulled again
"""


def _bench(found: dict[str, Any]) -> str:
    arms = [arm for arm in ARMS if all(arm in point["arms"] for point in found["points"])]
    rows = [
        [
            point["prompt_tokens"],
            *(f"{_p50(point, arm):.1f}" for arm in arms),
            f"{_p50(point, 'peer') / _p50(point, 'cold'):.2f}",
            f"{_p50(point, 'peer') / _p50(point, 'recompute'):.2f}",
            f"{point['transfer']['bytes_per_pull'] / 2**20:.0f}",
            f"{point['transfer']['mean_ms']:.1f}",
            f"{point['transfer']['gb_per_s']:.1f}",
        ]
        for point in found["points"]
    ]
    header = ["tokens", *(ARMS[arm] for arm in arms), "peer/cold", "peer/recompute"]
    header += ["MiB a pull", "transfer, ms", "GB/s"]
    repetitions = found["points"][0]["repetitions"]
    return f"""## `kvshare bench`

{repetitions} repetitions a length, one request in flight, 16 output tokens; median
milliseconds to the first token. Verdict: {found["verdict"]}

{table(header, rows)}
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

{table(header, rows)}

{_orders(found["orders"])}
"""


def _orders(orders: dict[str, Any]) -> str:
    """Peer over recompute, by which of them went first."""
    rows = [
        [f"`{first}`", *(f"{arms['peer'][name] / arms['recompute'][name]:.2f}" for name in FIGURES)]
        for first, arms in orders.items()
    ]
    header = ["first", *(words.removesuffix(", ms") for words in FIGURES.values())]
    return "Peer over recompute:\n\n" + table(header, rows)


def _agreement(found: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{ours:.2f}",
            f"{theirs:.2f}",
            f"{found['ratios'][name]:.3f}",
            "yes" if abs(found["ratios"][name] - 1) <= AGREEMENT else "**no**",
        ]
        for name, (ours, theirs) in found["pairs"].items()
    ]
    header = [
        "figure",
        "kvshare bench",
        "vllm bench serve",
        "ratio, median of the turns",
        f"within {AGREEMENT:.0%}",
    ]
    return f"""## Beside `vllm bench serve`

On prefill, turn by turn, {found["requests"]} requests each, one in flight,
{found["tokens"]} prompt and {found["output"]} output tokens.

{table(header, rows)}
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
    return f"`{found['line']}`\n\n{table(header, rows)}"


def _ttft(measured: list[dict[str, Any]]) -> str:
    return f"""## Time to first token, and where a pull's time goes

{measured[0]["repetitions"]} fresh prompts a length, in one run, one request at a time:
computed by prefill (cold), from prefill's own LMCache after vLLM's prefix cache was emptied (local), pulled
by decode (peer, UCX over loopback TCP). Milliseconds: the median, and the range in brackets.

{_times(measured)}

When each milestone of these pulls was passed, in milliseconds after the client sent the request: medians,
from the servers' own log lines (to 1 ms, one clock). The last line: the bytes of the whole chunks over the
time from the second milestone to the third.

{_milestones(measured)}
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
    return table(["tokens", "cold", "local LMCache hit", "peer hit", "local/cold", "peer/cold"], rows)


def _timed(row: dict[str, Any], leg: str) -> str:
    least, most = row["range"][leg]
    return f"{row[leg]:.1f} ({least:.1f}–{most:.1f})"


def _milestones(measured: list[dict[str, Any]]) -> str:
    names = [name for name in measured[0]["stages"] if all(name in row["stages"] for row in measured)]
    rows = [[name, *(f"{row['stages'][name]:.1f}" for row in measured)] for name in names]
    if {ASKED, WRITTEN} <= set(names):
        rows.append(["the owner writes, GB/s", *(f"{_speed(row):.1f}" for row in measured)])
    return table(["tokens", *(row["tokens"] for row in measured)], rows)


def _speed(row: dict[str, Any]) -> float:
    moved = row["tokens"] // CHUNK * CHUNK * kv_bytes("8b")
    return float(moved / (row["stages"][WRITTEN] - row["stages"][ASKED]) / 1e6)


def _identity(found: dict[str, Any]) -> str:
    return "\n".join(identity.section(found)).strip() + "\n"


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


MEASURES: dict[str, Callable[[Any], str]] = {
    "again": _again,
    "bench": _bench,
    "clients": _clients,
    "agreement": _agreement,
    "never-slower": _never_slower,
    "slow-link": _slow_link,
    "ttft": _ttft,
    "identity": _identity,
    "at-once": _at_once,
    "corrupted": _corrupted,
}


def _entitled(told: Callable[[Any], str], words: str) -> Callable[[Any], str]:
    """The same section, its heading ending in these words."""
    return lambda found: told(found).replace("\n", f"{words}\n", 1)


SECTIONS: dict[str, Callable[[Any], str]] = {
    "kernel": _kernel,
    "bandwidth": _bandwidth,
}
for part, (chain, words) in CHAINS.items():
    SECTIONS[part] = chain
    SECTIONS |= {f"{part}/{name}": _entitled(told, words) for name, told in MEASURES.items()}
