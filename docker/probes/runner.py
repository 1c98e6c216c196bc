"""vLLM's model runner of a CPU for probes, without a model: only what a probe sets is there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def cpu_runner(count: int, **attributes: Any) -> Any:
    """A runner in the middle of a step of so many requests, named "0", "1" and so on."""
    import numpy as np
    import torch
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    ids = [str(number) for number in range(count)]
    batch = SimpleNamespace(
        num_reqs=count,
        req_ids=ids,
        req_id_to_index={name: number for number, name in enumerate(ids)},
        generators={},
        sampling_metadata=None,
        update_async_output_token_ids=lambda: None,
    )
    known = {
        "device": torch.device("cpu"),
        "input_batch": batch,
        "use_async_scheduling": False,
        "discard_request_mask": SimpleNamespace(np=np.zeros(count, dtype=bool)),
        "num_prompt_logprobs": {},
    }
    runner = CPUModelRunner.__new__(CPUModelRunner)
    runner.__dict__.update(known | attributes)
    return runner
