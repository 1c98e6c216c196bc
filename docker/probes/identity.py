"""Probe of identity: no token's KV has the key of another adapter's, tenant's or model's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from probes import ProbeError
from probes.adapter import CHUNK, request, scheduler_side

TOKENS = list(range(2 * CHUNK))


def probe() -> None:
    """Raises ProbeError unless unlike requests and models have unlike keys, and like ones the same."""
    with tempfile.TemporaryDirectory() as folder:
        _require_keys_apart(Path(folder))
        _require_weights_apart(Path(folder))


def _require_keys_apart(folder: Path) -> None:
    adapters = [adapter(folder, name, number) for number, name in enumerate("ab", start=1)]
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "plain": ("model", {}),
        "salt a": ("model", {"cache_salt": "a"}),
        "salt b": ("model", {"cache_salt": "b"}),
        "adapter a": ("model", {"lora_request": adapters[0]}),
        "adapter b": ("model", {"lora_request": adapters[1]}),
        "both": ("model", {"lora_request": adapters[0], "cache_salt": "a"}),
        "another model": ("other", {}),
    }
    keys = {name: _keys(*kind) for name, kind in kinds.items()}
    if len(set(keys.values())) < len(keys):
        raise ProbeError(f"Each of {', '.join(keys)} should have keys of its own, but they are {keys}.")
    for name, kind in kinds.items():
        if _keys(*kind) != keys[name]:
            raise ProbeError(f"The keys of {name} should be the same every time.")
    if _keys("model", {"cache_salt": "vllm-only:x"}) != keys["plain"]:
        raise ProbeError("A salt for vLLM alone should leave LMCache's keys as they are, but does not.")
    chosen = SimpleNamespace(extra_args={"kv_transfer_params": {"lmcache.identity": "chosen"}})
    if _keys("model", {"sampling_params": chosen}) != keys["plain"]:
        raise ProbeError("A client should not choose the identity of its request, but can.")
    if not _keys("model", {"prompt_embeds": object()}) == ():
        raise ProbeError("A prompt of embeddings should not be shared, but is.")


def _keys(model: str, differs: dict[str, Any]) -> tuple[object, ...]:
    """The keys that a request is looked up by, which must be those that it is stored by."""
    import torch
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.token_database import ChunkedTokenDatabase

    metadata: Any = LMCacheMetadata("model", 1, 1, 0, 0, torch.float32, (1, 2, CHUNK, 1, 8))
    metadata.identity = model
    database = ChunkedTokenDatabase(
        LMCacheEngineConfig.from_defaults(chunk_size=CHUNK),
        metadata,
    )
    connector = scheduler_side()
    connector.get_num_new_matched_tokens(request(TOKENS, **differs), 0)
    return tuple(
        key
        for call in connector.lookup_client.lookup.call_args_list
        for _, _, key in database.process_tokens(
            *call.args, make_key=False, request_configs=call.kwargs["request_configs"]
        )
    )


def adapter(folder: Path, name: str, number: int) -> Any:
    """A LoRA adapter of one name for all, whose files and number differ."""
    place = folder / name
    place.mkdir()
    (place / "adapter_model.safetensors").write_bytes(name.encode() * 100)
    return SimpleNamespace(lora_name="tuned", lora_int_id=number, lora_path=str(place), load_inplace=False)


def _require_weights_apart(folder: Path) -> None:
    """Two fine-tunes whose files have the same names, sizes and index must have two digests."""
    import torch
    from lmcache.integration.vllm import weights
    from safetensors.torch import save_file

    weights.WHOLE_FILE_BYTES = 1 << 16  # so that these count as large
    found = []
    for number in range(2):
        place = folder / f"model{number}"
        place.mkdir()
        tensors = {name: torch.ones(64, 1024) for name in ("k_proj", "v_proj")}
        tensors["v_proj"] += number * 0.01
        save_file(tensors, place / "model.safetensors")
        found.append(weights.weights_digest(place))
        if weights.weights_digest(place) != found[-1]:
            raise ProbeError("The digest of the same weights should be the same every time.")
    if found[0] == found[1]:
        raise ProbeError("Weights that differ in one layer should have two digests, but have one.")
