"""Behavioural probes: each exercises what a patch is for and raises ProbeError if it is not so."""

import sys
from types import ModuleType


class ProbeError(Exception):
    """What was expected and what was found, in one sentence."""


def leave_out_slow_imports() -> None:
    """Spare LMCache vLLM and transformers: they take seconds to import, and no probe uses them."""
    sys.modules["vllm"] = None  # type: ignore[assignment]
    transformers = ModuleType("transformers")
    transformers.AutoTokenizer = transformers.AutoConfig = None  # type: ignore[attr-defined]
    sys.modules["transformers"] = transformers
