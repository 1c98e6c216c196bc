"""Probe of prompt-adapter: a prompt's log-probabilities are those of its request's adapter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from probes import ProbeError
from probes.runner import cpu_runner

# Two requests with an adapter each, of which the second reads its prompt.
ADAPTERS, TOKENS = (1, 2), 6
HIDDEN, WORDS = 8, 16


def probe() -> None:
    """Raises ProbeError unless each row of the prompt is computed with the second adapter."""
    import torch

    # Of the adapter in slot s every logit is s + 1.
    logits = _logits_of_prompt()
    expected = torch.full((TOKENS - 1, WORDS), 2.0)
    if not torch.equal(logits, expected):
        found = logits.unique().tolist()
        raise ProbeError(f"The logits of adapter 2's prompt should be [2.0], but are {found}.")


def _logits_of_prompt() -> Any:
    """What the log-probabilities of the second request's prompt are made of."""
    import torch
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    punica = PunicaWrapperCPU(2 * TOKENS, 2, torch.device("cpu"))

    def activate(_: Any, mapping: Any) -> None:
        punica.update_metadata(mapping, list(ADAPTERS), len(ADAPTERS), WORDS)

    def compute_logits(hidden: Any) -> Any:
        logits = torch.zeros(len(hidden), WORDS)
        down = torch.full((2, 1, 1, HIDDEN), 1 / HIDDEN)
        up = torch.tensor(ADAPTERS, dtype=torch.float32).reshape(2, 1, 1, 1).expand(2, 1, WORDS, 1)
        punica.add_lora_logits(logits, hidden, down, up, 1.0)
        return logits

    def gather_logprobs(scores: Any, *_: Any) -> tuple[Any, ...]:
        seen.append(scores)
        return torch.zeros(TOKENS - 1, 1), torch.zeros(TOKENS - 1, 1), torch.zeros(TOKENS - 1)

    seen: list[Any] = []
    runner = cpu_runner(
        2,
        lora_config=object(),
        lora_manager=SimpleNamespace(set_active_adapters=activate),
        model=SimpleNamespace(compute_logits=compute_logits),
        model_config=SimpleNamespace(logprobs_mode="raw_logits"),
        sampler=SimpleNamespace(gather_logprobs=gather_logprobs),
        requests={"1": _request()},
        num_prompt_logprobs={"1": 0},
        query_start_loc=SimpleNamespace(np=torch.tensor([0, TOKENS]).numpy()),
    )
    runner.input_batch.request_lora_mapping = ADAPTERS
    activate(set(), LoRAMapping(tuple(a for a in ADAPTERS for _ in range(TOKENS)), ADAPTERS, is_prefill=True))
    runner._get_prompt_logprobs_dict(torch.ones(2 * TOKENS, HIDDEN), {"0": TOKENS, "1": TOKENS})
    return seen[0]


def _request() -> SimpleNamespace:
    prompt = list(range(TOKENS))
    return SimpleNamespace(
        prompt_token_ids=prompt, num_computed_tokens=0, in_progress_prompt_logprobs_cpu=None
    )
