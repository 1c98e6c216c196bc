"""One prompt over and over on the node that pulls it: right answers, no wait, no memory released twice."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu.measure import CHUNK, VOCAB, Measurement
from kvshare.servers import metrics
from kvshare.servers.openai import complete
from kvshare.servers.prompts import make_prompts, reusable
from kvshare.stack.members import Stack
from kvshare.verify import tolerance
from kvshare.verify.legs import COUNTERS_DEADLINE_S, poll

OUTPUT = 8
TOKENS = 1546
DOUBLE = re.compile(r"double free", re.IGNORECASE)


def run(stack: Stack, logs: dict[str, Path], times: int) -> tuple[dict[str, Any], bool]:
    """Let prefill compute it, then ask decode: every other time vLLM's own cache is emptied, so it pulls.

    Decode's LMCache is emptied every time, so the other times only vLLM holds the prompt, and none is pulled.
    The reference is split otherwise than a pull, and may part from it at a near tie.
    """
    at = Measurement(stack, logs)
    (prompt,) = make_prompts(1, TOKENS, VOCAB, random.SystemRandom().randrange(2**31))
    honest = complete(at.http["prefill"], at.model, prompt, "again-honest", OUTPUT).output
    at._await_admission(prompt)
    before, transfers = at._sources("decode"), _transfers(at)
    answers = []
    clear = {"instance_id": stack.decode.instance, "location": "LocalCPUBackend"}
    for number in range(times):
        at.controller.post("/clear", clear)
        if number % 2 == 0:
            at.http["decode"].post("/reset_prefix_cache", {})
        answers.append(complete(at.http["decode"], at.model, prompt, f"again-{number}", OUTPUT))
    moved = (at._sources("decode") - before).external_kv_transfer
    pulled = moved // reusable(TOKENS, CHUNK)
    written = poll(lambda: _transfers(at) - transfers, lambda count: count >= pulled, COUNTERS_DEADLINE_S)
    distances = [tolerance.distance(honest, answer.output) for answer in answers]
    limit = tolerance.floor_of("bfloat16")
    tokens = Counter(tuple(p.token for p in a.output) == tuple(p.token for p in honest) for a in answers)
    found = {
        "times": times,
        "pulled": pulled,
        "written": written,
        "same_tokens": tokens[True],
        "worst_distance": max(distances),
        "slowest_ms": max(answer.ttft_ms for answer in answers),
        "double_frees": sum(len(DOUBLE.findall(log.read_text(errors="replace"))) for log in logs.values()),
    }
    good = max(distances) <= limit and found["double_frees"] == 0 and found["slowest_ms"] < 3000
    return found, good and written == pulled == times // 2


def _transfers(at: Measurement) -> int:
    """How often prefill wrote to a peer, by its own count."""
    return round(metrics.counters(metrics.parse(at.http["prefill"].get("/metrics").text)).transfers)
