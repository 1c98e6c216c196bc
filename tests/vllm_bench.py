"""`vllm bench serve`, as the tests that compare `kvshare bench` with it run it."""

from __future__ import annotations

import json
import random

AGREEMENT = 0.03  # by which the figures of both benchmarks may differ
TRACE, RESULT = "trace.jsonl", "vllm-bench.json"


def trace(tokens: int, output: int, requests: int, seed: int) -> str:
    """What TRACE must hold: requests of fresh random prompts.

    Of vLLM's datasets only a trace is sent as token ids, as `kvshare bench` sends them: the server does not
    have to turn text into tokens, which takes milliseconds of the time to first token.
    """
    draw = random.Random(seed)
    entry = {"timestamp": 0, "input_length": tokens, "output_length": output}
    # A prompt's tokens follow from its one hash.
    return "".join(json.dumps({**entry, "hash_ids": [draw.randrange(2**31)]}) + "\n" for _ in range(requests))


def command(model: str, url: str, tokens: int, folder: str) -> list[str]:
    """The requests of TRACE one after the other on the server at ``url``; both files are in ``folder``."""
    return [
        "vllm", "bench", "serve", "--backend", "openai", "--model", model,
        "--base-url", url, "--endpoint", "/v1/completions",
        "--dataset-name", "timed_trace", "--dataset-path", f"{folder}/{TRACE}", "--no-self-timed",
        "--timed-trace-chunk-hash-size", str(tokens), "--max-concurrency", "1",
        "--temperature", "0", "--disable-tqdm", "--save-result",
        "--result-dir", folder, "--result-filename", RESULT,
    ]  # fmt: skip
