"""Probe of chosen-start: an engine starts as its environment says, on a CPU too."""

from __future__ import annotations

import os

from probes import ProbeError

NAME, CHOSEN = "VLLM_WORKER_MULTIPROC_METHOD", "fork"


def probe() -> None:
    """Raises ProbeError unless the chosen way to start processes is the one that is taken."""
    os.environ[NAME] = CHOSEN
    from vllm.config import VllmConfig
    from vllm.utils.system_utils import get_mp_context

    VllmConfig()
    if (method := get_mp_context().get_start_method()) != CHOSEN:
        raise ProbeError(f"An engine should start by {CHOSEN} where that is chosen, but starts by {method}.")
