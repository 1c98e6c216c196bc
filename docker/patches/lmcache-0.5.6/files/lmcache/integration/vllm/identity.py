# SPDX-License-Identifier: Apache-2.0
"""What decides the KV of a token besides the tokens before it.

LMCache's chunk hashes cover token ids alone. Another LoRA adapter, another
``cache_salt``, other weights under the same name, or the same weights served
with another rope scaling, give other KV for the same tokens; the root of the
hash chain therefore carries a digest of all of these. A model's digest is the
same on every node that serves the same thing, a request's is made from what
vLLM knows of the request and never from what the client sends to LMCache.
"""

# Standard
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

# First Party
from lmcache.integration.vllm.weights import (
    UnknownError,
    digest,
    file_digest,
    weights_digest,
)
from lmcache.logging import init_logger

if TYPE_CHECKING:
    # Third Party
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.request import Request

logger = init_logger(__name__)

# A salt that begins so sets aside vLLM's own prefix cache and nothing else: how
# a benchmark sees LMCache's. Its KV is that of a request without a salt.
VLLM_ALONE = "vllm-only:"


def model_identity(vllm_config: "VllmConfig", role: str) -> str:
    """A digest of the model as served: weights, configuration, dtypes.

    The configuration is the one that vLLM made of config.json and every
    override of it (rope scaling, ``--hf-overrides``, quantisation). Where the
    weights cannot be found the digest is this engine's own, so that no other
    node has the same. The scheduler writes the parts to the file that
    LMCACHE_IDENTITY_REPORT names, for whoever compares two nodes.
    """
    model = vllm_config.model_config
    parts = {
        "config": digest(_plain(model.hf_config.to_dict())),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "weights": _weights(vllm_config),
    }
    found = digest(parts)
    if role == "scheduler" and (report := os.environ.get("LMCACHE_IDENTITY_REPORT")):
        Path(report).write_text(json.dumps({**parts, "identity": found}))
    return found


def _weights(vllm_config: "VllmConfig") -> str:
    model = vllm_config.model_config
    if str(vllm_config.load_config.load_format) == "dummy":
        return f"dummy, seed {model.seed}"
    try:
        return weights_digest(model_folder(model.model, model.revision))
    except UnknownError as reason:
        logger.warning("KV of this model is not shared with other nodes: %s", reason)
        return f"unknown, of engine {vllm_config.kv_transfer_config.engine_id}"


def model_folder(model: str, revision: str | None = None) -> Path:
    """The folder that holds a model's files: a path, or the hub's own cache."""
    if Path(model).is_dir():
        return Path(model)
    # Third Party
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception as error:
        raise UnknownError(f"{model} is no folder and not in the hub's cache") from error


def request_identity(request: "Request") -> str:
    """A digest of what sets a request's KV apart; empty for a plain one.

    Raises UnknownError for a request whose KV must not be shared at all.
    """
    if getattr(request, "prompt_embeds", None) is not None:
        raise UnknownError("its prompt is no tokens")
    apart: dict[str, Any] = {}
    if (adapter := getattr(request, "lora_request", None)) is not None:
        apart["lora"] = [adapter.lora_name, _adapter_digest(adapter)]
    salt = getattr(request, "cache_salt", None) or ""
    if salt and not salt.startswith(VLLM_ALONE):
        apart["salt"] = salt
    return digest(apart) if apart else ""


# lora_int_id -> what the files of the adapter were when it was seen first
_adapters: dict[int, tuple[Any, str]] = {}


def _adapter_digest(adapter: "LoRARequest") -> str:
    """A digest of an adapter's files as vLLM has loaded them; raises UnknownError.

    vLLM loads an adapter once, unless it was loaded in place, which makes it
    read the files again for each batch. Files that changed under an adapter
    that is not read again leave open which of the two is served.
    """
    # Third Party
    from vllm.lora.utils import get_adapter_absolute_path

    folder = Path(get_adapter_absolute_path(adapter.lora_path))
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        state = [(path.name, s.st_size, s.st_mtime_ns) for path in files for s in [path.stat()]]
        known = _adapters.get(adapter.lora_int_id)
        if known is not None and known[0] == state:
            return known[1]
        if known is not None and not adapter.load_inplace:
            raise UnknownError(f"the files of adapter {adapter.lora_name} changed")
        found = digest({path.name: file_digest(path) for path in files})
    except OSError as error:
        raise UnknownError(f"adapter {adapter.lora_name} cannot be read: {error}") from error
    _adapters[adapter.lora_int_id] = (state, found)
    return found


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration without what says where it lies and who wrote it."""
    ours = ("_name_or_path", "_commit_hash", "transformers_version", "architectures_path")
    return {key: value for key, value in config.items() if key not in ours}
