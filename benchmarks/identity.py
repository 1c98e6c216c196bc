"""What identity in the key costs: TTFT of prompts that nobody holds, with a tenant's salt and without one.

python -m benchmarks.gpu PART --measure identity
python -m benchmarks.identity http://127.0.0.1:8011     the same on a server that runs

The salt of one arm is part of LMCache's keys; that of the other, `vllm-only:…`, concerns vLLM's cache alone,
so that LMCache's keys are those of no salt. The two alternate within one run on one server, and so does which
of them goes first.
"""

import json
import random
import sys
from statistics import median
from typing import Any

from kvshare.servers.completion import VLLM_ONLY, Ask, complete
from kvshare.servers.prompts import draw_prompt
from kvshare.servers.server import ServerClient

LENGTHS = (522, 4106)
VOCAB = 259  # token ids that every model here has
PAIRS, WARM_UP = 40, 4
GOAL = 1.01
WITH, WITHOUT = "with", "without"
SALTS = {WITH: "of-tenant:", WITHOUT: VLLM_ONLY}  # of one length


def run(server: ServerClient) -> tuple[dict[str, Any], bool]:
    """Return what was measured, and whether it is as it must be."""
    found = measure(server)
    return found, all(one["ratio"] <= GOAL for firsts in found["lengths"].values() for one in firsts.values())


def measure(server: ServerClient, pairs: int = PAIRS) -> dict[str, Any]:
    """Return of each length each arm's median TTFT in ms and their ratio, by the arm that went first."""
    probe = server.await_healthy(0)
    seed = random.SystemRandom().randrange(2**31)
    draw = random.Random(seed)
    found: dict[str, Any] = {"seed": seed, "pairs": pairs, "lengths": {}}
    for length in LENGTHS:
        if probe.max_model_len is not None and length >= probe.max_model_len:
            continue
        ttft: dict[str, dict[str, list[float]]] = {first: {WITH: [], WITHOUT: []} for first in SALTS}
        for number in range(WARM_UP + 2 * pairs):
            first, second = (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH)
            for arm in (first, second):
                ask = Ask(
                    f"identity-{seed}-{length}-{number}-{arm}",
                    draw_prompt(draw, length, VOCAB),
                    max_tokens=1,
                    salt=f"{SALTS[arm]}{number}",
                )
                took = complete(server.http, probe.model or "", ask).ttft_ms
                if number >= WARM_UP:
                    ttft[first][arm].append(took)
        found["lengths"][str(length)] = {first: _summary(arms) for first, arms in ttft.items()}
    return found


def _summary(arms: dict[str, list[float]]) -> dict[str, float]:
    ms = {arm: median(values) for arm, values in arms.items()}
    return {**ms, "ratio": ms[WITH] / ms[WITHOUT]}


def section(found: dict[str, Any]) -> list[str]:
    """Return a document's lines on the cost of identity."""
    rows = [
        f"| {int(length):,} | {first} | {one[WITH]:.1f} | {one[WITHOUT]:.1f} | {one['ratio']:.3f} |"
        for length, firsts in found["lengths"].items()
        for first, one in firsts.items()
    ]
    return [
        "",
        "## Identity in the key",
        "",
        "TTFT in ms of prompts that nobody holds, one request at a time, with a `cache_salt` that is part of",
        "LMCache's keys and with one that is not, alternating on one server; medians of",
        f"{found['pairs']} pairs an order (goal: ratio ≤ {GOAL}).",
        "",
        "| tokens | first | with | without | ratio |",
        "|---|---|---|---|---|",
        *rows,
    ]


if __name__ == "__main__":
    print(json.dumps(measure(ServerClient(sys.argv[1])), indent=2))
