"""Probe of strange-objects: an engine starts whatever was imported before it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from probes import ProbeError


class _Strange:
    """Answers every name with a function, as llvmlite's library does."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return print


def probe() -> None:
    """Raises ProbeError unless a CPU's kernels find their place beside a strange object."""
    from vllm.triton_utils import dispatcher

    module = ModuleType("strange")
    module.thing = _Strange()  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        dispatcher._rebind_kernels([])
    except (AttributeError, TypeError) as error:
        raise ProbeError(f"A strange object in a module should be passed by: {error}") from None
