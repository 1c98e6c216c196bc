"""Probe of base-model: a request without an adapter gets none on a CPU."""

from __future__ import annotations

from typing import Any

from probes import ProbeError

HIDDEN, RANK, SLOTS = 8, 2, 2
LAST, NONE = SLOTS - 1, -1


def probe() -> None:
    """Raises ProbeError unless of two rows only the one that names the last slot's adapter is changed."""
    import torch

    for name, out in _products(torch).items():
        if not out[0].abs().sum():
            raise ProbeError(f"{name} should apply the adapter that a row names, but leaves it out.")
        if out[1].abs().sum():
            raise ProbeError(f"{name} should leave a row without an adapter as it is, but changes it.")


def _products(torch: Any) -> dict[str, Any]:
    """What each operation adds to a row of the last slot's adapter, and to one of none."""
    from vllm.lora.ops.torch_ops import bgmv_expand, bgmv_expand_slice, bgmv_shrink

    indices = torch.tensor([LAST, NONE])
    down, up = torch.ones(SLOTS, 1, RANK, HIDDEN), torch.ones(SLOTS, 1, HIDDEN, RANK)
    shrunk, expanded, sliced = torch.zeros(2, RANK), torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN)
    bgmv_shrink(torch.ones(2, HIDDEN), down, shrunk, indices)
    bgmv_expand(torch.ones(2, RANK), up, expanded, indices)
    bgmv_expand_slice(torch.ones(2, RANK), up, sliced, indices, 0, HIDDEN)
    return {"bgmv_shrink": shrunk, "bgmv_expand": expanded, "bgmv_expand_slice": sliced}
