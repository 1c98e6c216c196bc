"""Probe of mp-no-pickle: chunks come back as they were sent, and what else a message brings is not run."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from probes import ProbeError
from probes.noise import MakesAFolder


def probe() -> None:
    """Raises ProbeError unless neither side runs what it is sent, and each reads what the other wrote."""
    import torch

    types = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8)
    chunks = [torch.arange(8).to(dtype) for dtype in types]
    sides = {"A cache server": _stored, "An engine": _loaded}
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        for side, read in sides.items():
            with suppress(Exception):
                read(pickle.dumps([MakesAFolder(made)]), chunks)
            if made.exists():
                raise ProbeError(f"{side} should run nothing that it is sent, and made a folder.")
    for side, read in sides.items():
        if not all(map(_equal, read(_sent(chunks), chunks), chunks)):
            raise ProbeError(f"{side} should read chunks as they were sent.")


def _sent(chunks: list[Any]) -> bytes:
    """The bytes by which an engine has chunks stored."""
    sent: list[bytes] = []

    def commit(_key: Any, _instance: int, data: bytes) -> Any:
        sent.append(data)
        return SimpleNamespace(result=lambda **_: True)

    _engine(commit_store=commit).commit_store(None, 0, chunks)
    return sent[0]


def _stored(data: bytes, chunks: list[Any]) -> list[Any]:
    """What a cache server writes into memory for chunks like these when it is sent those bytes."""
    import torch
    from lmcache.v1.multiprocess.modules.server_transfer import PickleTransferStrategy

    reserved = {number: SimpleNamespace(tensor=torch.zeros_like(one)) for number, one in enumerate(chunks)}
    manager = SimpleNamespace(
        reserve_write=lambda *_: reserved,
        prepare_write_completion=lambda written: written,
        finish_write_by_owner=lambda _: None,
    )
    context = SimpleNamespace(layout_desc=None)
    PickleTransferStrategy(manager).commit_store(None, 0, data, context, lambda _: list(reserved))
    return [one.tensor for one in reserved.values()]


def _loaded(data: bytes, _: list[Any]) -> list[Any]:
    """What an engine reads that is answered with those bytes."""
    asked = SimpleNamespace(result=lambda **_: SimpleNamespace(success=True, data=data))
    return list(_engine(prepare_retrieve=lambda *_: asked).prepare_retrieve(None, 0))


def _engine(**requests: Callable[..., Any]) -> Any:
    from lmcache.v1.multiprocess.transfer_context.pickle import EngineDrivenContextPickle

    return EngineDrivenContextPickle(None, SimpleNamespace(**requests), mq_timeout=1.0)


def _equal(one: Any, other: Any) -> bool:
    return bool(one.dtype == other.dtype and one.tolist() == other.tolist())
