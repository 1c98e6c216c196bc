"""`vllm bench serve`, as the tests that compare `kvshare bench` with it run it."""

from __future__ import annotations

AGREEMENT = 0.03  # by which the figures of both benchmarks may differ
LENGTHS = 0.01  # by which its prompts, made as text, may differ from the tokens asked for
RESULT = "vllm-bench.json"
SUFFIX = 10  # tokens


def command(
    model: str, url: str, *, tokens: int, output: int, requests: int, seed: int, folder: str
) -> list[str]:
    """Fresh prompts one after the other on the server at ``url``; its figures go to RESULT in ``folder``.

    Each prompt is a "repeated prefix" that is used once: those of the dataset `random` begin at a random id
    and count up, so with a small vocabulary some are equal, and answered from the cache.
    """
    return [
        "vllm", "bench", "serve", "--backend", "openai", "--model", model,
        "--base-url", url, "--endpoint", "/v1/completions",
        "--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes", str(requests),
        "--prefix-repetition-prefix-len", str(tokens - SUFFIX),
        "--prefix-repetition-suffix-len", str(SUFFIX), "--prefix-repetition-output-len", str(output),
        "--num-prompts", str(requests), "--max-concurrency", "1", "--ignore-eos",
        "--seed", str(seed), "--temperature", "0", "--disable-tqdm", "--save-result",
        "--result-dir", folder, "--result-filename", RESULT,
    ]  # fmt: skip
