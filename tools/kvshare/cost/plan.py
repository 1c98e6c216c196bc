"""From which length a pull pays, by arithmetic alone: for a model, a GPU and a link that nobody has yet.

KV bytes of a token        k = 2 · layers · kv_heads · head_dim · bytes     (keys and values)
prefill of n tokens        c + (2·P·n + 2·L·d·n²) / (F · MFU)
pull of n tokens           t0 + k·n · (1/T + 1/C)

P parameters, L layers, d = query heads · head_dim, F operations a second, T and C bytes a second of the
transfer and of the copy to the GPU. The prefill formula counts two operations a parameter and token, and half
of the causal attention's 4·L·d·n². Mooncake (FAST'25, eq. 2) has the same form without c, t0 and C, at 100 %
of the peak.

Sources: the models' config.json; NVIDIA's data sheets for dense bfloat16; an MFU of 0.5 is what a tuned
prefill reaches; c, t0 and C as ``model`` has them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvshare.cost.model import FIRST_TOKEN_S, LANES_T0_S, Prefill, break_even, expected_pull
from kvshare.errors import KvshareError, did_you_mean

DEFAULT_MFU = 0.5
DEFAULT_T0_MS = LANES_T0_S * 1000
DTYPE_BYTES = {
    **{"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "auto": 2},
    **{"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1},
}


@dataclass(frozen=True)
class Architecture:
    """What a model's cost follows from.

    Attributes:
        parameters: in all, embeddings included.
        attention_width: query heads times their dimension.
        bytes_per_value: of the KV cache.
    """

    layers: int
    kv_heads: int
    head_dim: int
    attention_width: int
    parameters: float
    bytes_per_value: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers: 2·layers·kv_heads·head_dim·bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_value

    def prefill(self, flops: float, mfu: float) -> Prefill:
        """Return the time of a prefill at a share ``mfu`` of a peak of ``flops`` operations a second."""
        return Prefill(
            FIRST_TOKEN_S,
            2 * self.parameters / (flops * mfu),
            2 * self.layers * self.attention_width / (flops * mfu),
        )


# Name: layers, KV heads, head dimension, query heads · head dimension, parameters; from each config.json.
MODELS: Mapping[str, Architecture] = {
    "Llama-3.1-8B": Architecture(32, 8, 128, 4096, 8.03e9),
    "Llama-3.1-70B": Architecture(80, 8, 128, 8192, 70.6e9),
    "Llama-3.2-1B": Architecture(16, 8, 64, 2048, 1.24e9),
    "Llama-3.2-3B": Architecture(28, 8, 128, 3072, 3.21e9),
    "Qwen2.5-0.5B": Architecture(24, 2, 64, 896, 0.494e9),
    "Qwen2.5-1.5B": Architecture(28, 2, 128, 1536, 1.54e9),
    "Qwen2.5-7B": Architecture(28, 4, 128, 3584, 7.62e9),
    "Qwen3-0.6B": Architecture(28, 8, 128, 2048, 0.596e9),
    "Qwen3-8B": Architecture(36, 8, 128, 4096, 8.19e9),
    "Qwen3-14B": Architecture(40, 8, 128, 5120, 14.8e9),
    "Qwen3-32B": Architecture(64, 8, 128, 8192, 32.8e9),
}

# Dense bfloat16 operations a second.
GPUS: Mapping[str, float] = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
}

# Bytes a second that a transfer can use.
LINKS: Mapping[str, float] = {
    "1GbE": 0.117e9,
    "10GbE": 1.15e9,
    "25GbE": 2.9e9,
    "100GbE": 9e9,
    "100G-RDMA": 12e9,
    "200G-RDMA": 24e9,
    "400G-RDMA": 48e9,
}


@dataclass(frozen=True)
class Machine:
    """A GPU's peak and the share of it that a prefill reaches; the link, and a pull's fixed cost."""

    flops: float
    mfu: float
    bytes_per_s: float
    t0_s: float


def tokens_to_pay(model: Architecture, machine: Machine) -> float | None:
    """Return the length in tokens from which a pull pays, or None if it never does."""
    pull = expected_pull(model.kv_bytes_per_token, machine.bytes_per_s, machine.t0_s)
    return break_even(pull, model.prefill(machine.flops, machine.mfu))


def with_kv(model: Architecture, dtype: str) -> Architecture:
    """Return the model with its KV cache kept in another dtype; auto leaves it as it is."""
    return model if dtype == "auto" else replace(model, bytes_per_value=DTYPE_BYTES.get(dtype, 2))


def kv_bytes_per_token(
    name: str, layers: int | None, kv_heads: int | None, head_dim: int | None, dtype: str
) -> int | None:
    """Return the bytes of KV of one token over all layers; None for a model that nothing is known of."""
    if layers and kv_heads and head_dim:
        return 2 * layers * kv_heads * head_dim * DTYPE_BYTES.get(dtype, 2)
    known = _known(name)
    return with_kv(known, dtype).kv_bytes_per_token if known else None


def find_model(name: str) -> Architecture:
    """Return a known model, by name or hub name, or that of a config.json; KvshareError names the nearest."""
    if Path(name).is_file():
        return read_architecture(Path(name).read_text(), "auto", name)
    if known := _known(name):
        return known
    near = did_you_mean(name.rsplit("/", 1)[-1], MODELS)
    raise KvshareError(f"--model {name} is no known model and no config.json{near}")


def _known(name: str) -> Architecture | None:
    """Return a model by its name here or on the hub, whatever its case."""
    short = name.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    folded = {known.lower(): found for known, found in MODELS.items()}
    return folded.get(short.removesuffix("-instruct").removesuffix("-base"))


def find(option: str, name: str, known: Mapping[str, float], unit: float) -> float:
    """Return the value of a known name, or a number of units; KvshareError names the nearest."""
    folded = {candidate.lower(): value for candidate, value in known.items()}
    if name.lower() in folded:
        return folded[name.lower()]
    try:
        value = float(name) * unit
    except ValueError:
        raise KvshareError(f"{option} {name} is not known{did_you_mean(name, known)}") from None
    if not 0 < value < float("inf"):
        raise KvshareError(f"{option} {name} must be above zero.")
    return value


def read_architecture(text: str, dtype: str, where: str) -> Architecture:
    """Return the architecture that a config.json describes; KvshareError if it is none of a transformer.

    Parameters are counted for a gated MLP, which is what all of the models above have.
    """
    try:
        config: dict[str, Any] = json.loads(text)
        config = config.get("text_config", config)
        heads, hidden, layers = (
            int(config[key]) for key in ("num_attention_heads", "hidden_size", "num_hidden_layers")
        )
        head_dim = int(config.get("head_dim") or hidden // heads)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        inner, vocab = int(config["intermediate_size"]), int(config["vocab_size"])
    except (ValueError, KeyError, AttributeError) as error:
        raise KvshareError(f"{where} is no transformer's config.json: {error}.") from None
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    given = dtype if dtype != "auto" else str(config.get("dtype") or config.get("torch_dtype") or "auto")
    return Architecture(
        layers,
        kv_heads,
        head_dim,
        heads * head_dim,
        layers * (attention + 3 * hidden * inner) + embeddings,
        DTYPE_BYTES.get(given, 2),
    )
