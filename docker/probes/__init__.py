"""Behavioural probes: each exercises what a patch is for and raises ProbeError if it is not so."""

import sys
import time
from collections.abc import Callable
from types import ModuleType


class ProbeError(Exception):
    """What was expected and what was found, in one sentence."""


def happens(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether it is so within that time; a busy machine takes long for what is meant to be at once."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def leave_out_slow_imports() -> None:
    """Spare LMCache vLLM and transformers: they take seconds to import, and no probe uses them."""
    sys.modules["vllm"] = None  # type: ignore[assignment]
    transformers = ModuleType("transformers")
    transformers.AutoTokenizer = transformers.AutoConfig = None  # type: ignore[attr-defined]
    sys.modules["transformers"] = transformers
