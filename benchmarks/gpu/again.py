"""One prompt over and over on the node that pulls it: right answers, no wait, no memory released twice."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu.measure import CHUNK, VOCAB, Measurement
from kvshare.servers.completion import Ask, Completion, complete
from kvshare.servers.prompts import Prompt, make_prompts, reusable
from kvshare.servers.readings import Reading, Sources
from kvshare.servers.sharing import EXPORT_DEADLINE_S
from kvshare.servers.wait import poll
from kvshare.stack.members import Stack
from kvshare.verify import tolerance

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
    mark = at.controller.mark()
    honest = _ask(at, "prefill", prompt, "honest").output
    at.await_admission(prompt, mark)
    before, transfers = _pulled(at), _transfers(at)
    answers = []
    clear = {"instance_id": stack.decode.instance, "location": "LocalCPUBackend"}
    for number in range(times):
        at.controller.http.post("/clear", clear)
        if number % 2 == 0:
            at.servers["decode"].http.post("/reset_prefix_cache", {})
        answers.append(_ask(at, "decode", prompt, str(number)))
    pulled = (_pulled(at) - before) // reusable(TOKENS, CHUNK)
    due = pulled * stack.prefill.ranks
    written = poll(lambda: _transfers(at) - transfers, lambda count: count >= due, EXPORT_DEADLINE_S)
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
    return found, good and written == due and pulled == times // 2


def _ask(at: Measurement, node: str, prompt: Prompt, name: str) -> Completion:
    ask = Ask(f"again-{name}", prompt, OUTPUT, logprobs=True)
    return complete(at.servers[node].http, at.model, ask)


def _read(at: Measurement, node: str) -> Reading:
    found = at.servers[node].read()
    if found is None:
        raise RuntimeError(f"{node} does not tell its counters")
    return found


def _pulled(at: Measurement) -> int:
    """Tokens that decode has got from its peer, by its own count."""
    return (_read(at, "decode").sources or Sources()).external_kv_transfer


def _transfers(at: Measurement) -> int:
    """How often prefill wrote to a peer, by its own count."""
    return round(_read(at, "prefill").counters.transfers)
