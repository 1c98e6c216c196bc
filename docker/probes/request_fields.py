"""Probe of request-fields: no field of a request that is meant for LMCache can end an engine."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from probes import ProbeError
from probes.adapter import request, scheduler_side

HOSTILE: tuple[dict[str, Any], ...] = (
    {"disagg_spec": {}},
    {"disagg_spec": None},
    {"ret_first_tok": 1},
    {"lmcache.tag.x": ["a"]},
    {"lmcache.tag.x": {"a": 1}},
    {"lmcache.skip_save": [True]},
    {"lmcache.": None},
)


def probe() -> None:
    """Raises ProbeError if a request with an odd field ends anything, or a boolean is not understood."""
    for fields in HOSTILE:
        for step in (_is_scheduled, _is_looked_up, _ends):
            _require_survival(fields, step)
    _require_understood(True)


def _require_survival(fields: dict[str, Any], step: Callable[[Any, Any], None]) -> None:
    parameters = SimpleNamespace(extra_args={"kv_transfer_params": fields})
    told = {"kv_transfer_params": fields, "sampling_params": parameters}
    odd = request(list(range(600)), _output_token_ids=[], status=None, **told)
    try:
        step(scheduler_side(), odd)
    except Exception as error:
        found = f"{step.__name__}: {error!r}"
        raise ProbeError(f"A request with {fields} should harm nobody, but {found}") from error


def _is_scheduled(connector: Any, odd: Any) -> None:
    connector.update_state_after_alloc(odd, 0)


def _is_looked_up(connector: Any, odd: Any) -> None:
    import torch
    from lmcache.utils import CacheEngineKey

    connector.get_num_new_matched_tokens(odd, 0)
    for call in connector.lookup_client.lookup.call_args_list:
        hash(CacheEngineKey("model", 1, 0, 1, torch.float32, call.kwargs["request_configs"]))


def _ends(connector: Any, odd: Any) -> None:
    connector.request_finished(odd, [])


def _require_understood(skip_save: bool) -> None:
    from lmcache.v1.lookup_client.async_lookup_message import LookupRequestMsg

    configs = {"lmcache.skip_save": skip_save}
    sent = msgspec.msgpack.encode(LookupRequestMsg("id", [1], [256], configs))
    try:
        found = msgspec.msgpack.decode(sent, type=LookupRequestMsg).request_configs
    except msgspec.ValidationError as error:
        raise ProbeError(f"A lookup with {configs} should be understood, but: {error}") from error
    if found != configs:
        raise ProbeError(f"A lookup with {configs} should arrive so, but is {found}.")
