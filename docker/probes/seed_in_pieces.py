"""Probe of seed-in-pieces: a request with a seed draws alike, in pieces or at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from probes import ProbeError
from probes.runner import cpu_runner

SEED, WORDS = 1, 1000


def probe() -> None:
    """Raises ProbeError unless a prompt computed in pieces leaves a seed's draws as they are."""
    at_once, in_pieces = _drawn(pieces=1), _drawn(pieces=3)
    if at_once != in_pieces:
        raise ProbeError(
            f"A seed should draw token {at_once} after a prompt in pieces too, but draws {in_pieces}."
        )


def _drawn(pieces: int) -> int:
    """The token that a request with a seed draws at the end of its prompt."""
    import torch

    runner = cpu_runner(1)
    generator = torch.Generator().manual_seed(SEED)
    runner.input_batch.generators[0] = generator
    runner.sampler = lambda **_: _draw(generator)
    runner.requests = {"0": SimpleNamespace(output_token_ids=[])}
    # What bookkeeping does with a token that is kept is of no interest here.
    for piece in range(pieces):
        runner.discard_request_mask.np[0] = piece < pieces - 1
        output = runner._sample(None, None)
        if runner.discard_request_mask.np[0]:
            step = SimpleNamespace(num_scheduled_tokens={"0": 1})
            runner._bookkeeping_sync(step, output, None, torch.zeros(1), 1)
    return int(output.sampled_token_ids)


def _draw(generator: Any) -> SimpleNamespace:
    """As vLLM's sampler does: a random number for each token of the vocabulary."""
    import torch

    draws = torch.empty(1, WORDS).exponential_(generator=generator)
    return SimpleNamespace(sampled_token_ids=draws.argmax(dim=-1, keepdim=True), logprobs_tensors=None)
