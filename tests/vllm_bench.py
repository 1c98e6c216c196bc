"""`vllm bench serve`, as the tests that compare `kvshare bench` with it run it."""

from __future__ import annotations

AGREEMENT = 0.03  # of the medians of both benchmarks
RESULT = "vllm-bench.json"


def command(
    model: str, url: str, *, tokens: int, output: int, requests: int, seed: int, folder: str
) -> list[str]:
    """Random prompts one after the other on the server at ``url``; its figures go to RESULT in ``folder``."""
    return [
        "vllm", "bench", "serve", "--backend", "openai", "--model", model,
        "--base-url", url, "--endpoint", "/v1/completions",
        "--dataset-name", "random", "--random-input-len", str(tokens), "--random-output-len", str(output),
        "--random-range-ratio", "0", "--num-prompts", str(requests), "--max-concurrency", "1", "--ignore-eos",
        "--seed", str(seed), "--temperature", "0", "--disable-tqdm", "--save-result",
        "--result-dir", folder, "--result-filename", RESULT,
    ]  # fmt: skip
