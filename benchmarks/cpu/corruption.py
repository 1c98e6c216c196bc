r"""How far corrupted V moves the demo model's answers: what the tolerance in docs/checks.md stands on.

usage, in the CPU engine's image:
    docker run --rm --network none --volume "$PWD/benchmarks:/src:ro" --entrypoint python \
        kvshare/engine-cpu:0.1.0 /src/cpu/corruption.py

For each seed one prompt of 1,546 random tokens: its first 1,536 are computed, their V is corrupted, the rest
is computed on top, as decode does with pulled KV. Printed: the largest difference, in nats, over the five
most likely first tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from kvshare_engine import demo_model

SEEDS = range(3)
TOKENS, REUSED, CHUNK, TOP = 1546, 1536, 256, 5
MODEL = Path("/tmp/kvshare-demo")


def nothing(_: Any) -> None:
    """An honest run, again."""


def all_zero(layers: Any) -> None:
    for layer in layers:
        layer.values.zero_()


def keys_instead(layers: Any) -> None:
    for layer in layers:
        layer.values.copy_(layer.keys)


def last_chunk_zero(layers: Any) -> None:
    for layer in layers:
        layer.values[:, :, -CHUNK:].zero_()


def one_layer_zero(layers: Any) -> None:
    layers[len(layers) // 2].values.zero_()


CORRUPTIONS: Mapping[str, Callable[[Any], None]] = {
    "none, run again": nothing,
    "V of one layer in ten": one_layer_zero,
    "V of the last chunk": last_chunk_zero,
    "K instead of V": keys_instead,
    "all of V": all_zero,
}


def first_token(model: Any, prompt: torch.Tensor, corrupt: Callable[[Any], None]) -> torch.Tensor:
    """Log-probabilities of the first generated token, shape [vocabulary]."""
    with torch.no_grad():
        cache = model(prompt[:, :REUSED], use_cache=True).past_key_values
        corrupt(cache.layers)
        logits = model(prompt[:, REUSED:], past_key_values=cache).logits
    return torch.log_softmax(logits[0, -1], dim=-1)


def main() -> None:
    torch.set_num_threads(1)
    path = demo_model.ensure(MODEL)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    moved: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    for seed in SEEDS:
        source = random.Random(seed)
        prompt = torch.tensor([[source.randrange(3, 259) for _ in range(TOKENS)]])
        honest = first_token(model, prompt, nothing)
        likely = honest.topk(TOP).indices
        for name, corrupt in CORRUPTIONS.items():
            difference = honest - first_token(model, prompt, corrupt)
            moved[name].append(float(difference[likely].abs().max()))
    print("| corrupted | moved by, least to most |\n|---|---|")
    for name, values in moved.items():
        print(f"| {name} | {min(values):.5f} to {max(values):.5f} |")


if __name__ == "__main__":
    main()
