"""What cannot work, found before it fails late or shares nothing, by the tool and the engine image alike.

The image carries a copy of this file, so it stands on nothing but Python.
"""

import argparse
import json
import os
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

# --- which of vLLM's options are kvshare's ------------------------------------------------------------------

_ONE_MACHINE = "a server is of one machine, whose GPUs PREFILL_GPU and DECODE_GPU in .env list"
# Each with what to do instead.
OWNED_OPTIONS: dict[tuple[str, ...], str] = {
    ("--host", "--uds"): "set PREFILL_HOST and DECODE_HOST in .env",
    ("--port", "--grpc", "--grpc-port"): "set KVSHARE_API_PORT in x-kvshare of compose.yaml",
    ("--ssl-keyfile", "--ssl-certfile"): "put a proxy that speaks TLS in front of the servers",
    ("--api-key",): "set API_KEY_FILE in .env",
    ("--model",): "set MODEL in .env",
    ("--revision",): "set MODEL_REVISION in .env",
    ("--max-model-len",): "set MAX_MODEL_LEN in .env",
    ("--dtype",): "set KVSHARE_DTYPE in x-kvshare of compose.yaml",
    ("--kv-cache-dtype",): "set KV_CACHE_DTYPE in .env",
    ("--kv-transfer-config", "--kv-offloading-size", "--kv-offloading-backend"): (
        "set KVSHARE_KV_TRANSFER_CONFIG in x-kvshare of compose.yaml"
    ),
    ("--tensor-parallel-size", "-tp"): "list as many GPUs in PREFILL_GPU and DECODE_GPU in .env",
    ("--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp"): _ONE_MACHINE,
    ("--decode-context-parallel-size", "-dcp", "--prefill-context-parallel-size", "-pcp"): _ONE_MACHINE,
    ("--nnodes", "-n", "--node-rank", "-r", "--headless"): _ONE_MACHINE,
    ("--config",): "write its options into VLLM_ARGS",
}


def refusal_of(vllm_args: str) -> str:
    """Return why VLLM_ARGS cannot be given to vLLM, in a sentence; '' if it can."""
    try:
        arguments = shlex.split(vllm_args)
    except ValueError as error:
        return f"VLLM_ARGS cannot be read as a shell would ({error}): correct its quotes in .env."
    for argument in arguments:
        # --json.key=value and --under_score are vLLM's own ways to write an option.
        name = argument.split("=")[0].split(".")[0].replace("_", "-")
        for owned, instead in OWNED_OPTIONS.items():
            if any(name == option or _abbreviates(name, option) for option in owned):
                return f"VLLM_ARGS has {argument}, which is kvshare's own to set: {instead}."
    return ""


def _abbreviates(name: str, option: str) -> bool:
    """Return whether vLLM would take a name for that option, of which it is the beginning."""
    return len(name) > len("--h") and name.startswith("--") and option.startswith(name)


# Of speculative decoding what needs no second model, whose layers LMCache would take for the first one's.
DRAFTS_WITHOUT_A_MODEL = ("ngram", "suffix")


def refusal_of_drafts(vllm_args: str) -> str:
    """Return why options, which a shell can read, must not speculate so, in a sentence; '' if they may."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--speculative-config", "--speculative_config", "-sc", default="{}")
    options.add_argument("--spec-method", "--spec_method")
    options.add_argument("--spec-model", "--spec_model")
    given, _ = options.parse_known_args(shlex.split(vllm_args))
    try:
        config = dict(json.loads(given.speculative_config))
    except (ValueError, TypeError):
        return ""  # vLLM says what is wrong with it
    method = given.spec_method or config.get("method")
    drafts = given.spec_model or config or method
    if not drafts or method in DRAFTS_WITHOUT_A_MODEL:
        return ""
    return (
        f"expected no draft model and found {method or 'one'} for speculative decoding, "
        "whose layers LMCache takes for the model's own: take it out of VLLM_ARGS."
    )


# --- the models volume --------------------------------------------------------------------------------------

USER, GROUPS = 2000, (0,)  # who the image's programs are


def may_write(folder: Path, user: int, groups: Collection[int]) -> bool:
    """Return whether a folder's owner and mode let somebody put files into it, however it is mounted here.

    Of one that is not there yet, those of the folder that it would be made in.
    """
    try:
        while not folder.exists():
            folder = folder.parent
        found = folder.stat()
        has_acl = "system.posix_acl_access" in os.listxattr(folder)  # which may well name the user
    except PermissionError:
        return True  # who asks cannot tell
    shift = 6 if found.st_uid == user else 3 if found.st_gid in groups else 0
    return user == 0 or has_acl or found.st_mode >> shift & 0o3 == 0o3


# --- decisions that would fail late, or not at all and share nothing ----------------------------------------

_LENGTH = re.compile(r"(\d+)([KMGT]?)|(\d+(?:\.\d+)?)([kmgt])")


def length_of(text: str) -> int | None:
    """Return MAX_MODEL_LEN in tokens as vLLM reads it, 32k as 32,000 and 32K as 32,768; None for auto.

    ValueError if it is no length. Source: ``human_readable_int_or_auto`` of vLLM 0.32.0
    (``vllm/utils/argparse_utils.py``).
    """
    text = text.strip()
    if text.lower() in ("auto", "-1"):
        return None
    if not (found := _LENGTH.fullmatch(text)):
        raise ValueError(f"MAX_MODEL_LEN={text} is no length: set it to tokens, as 8192 or 32k, or to auto")
    whole, binary, number, decimal = found.groups()
    if number is not None:
        return int(float(number) * 1000 ** ("kmgt".index(decimal) + 1))
    return int(whole) << 10 * " KMGT".index(binary or " ")


def refusal_of_host(name: str, host: str) -> str:
    """Return why a node cannot have that address, in a sentence; '' if it may."""
    if ":" not in host:
        return ""
    return (
        f"{name} has {host}, and kvshare speaks IPv4 alone: give the machine's IPv4 address, without a port."
    )


def refusal_of_model(model: str) -> str:
    """Return why a model of that name cannot share KV, in a sentence; '' if it can."""
    if "@" not in model:
        return ""
    return (
        f"MODEL={model} has an @, at which LMCache takes its keys apart, so that nothing would be shared: "
        "rename the folder."
    )


# --- which models share KV in this mode, by their own config.json -------------------------------------------

# Layers that keep a running state: what a config calls them, or the names of its settings where it does not.
_STATEFUL = ("linear_attention", "mamba", "conv", "hybrid", "recurrent")
_OF_STATE = ("mamba_", "ssm_", "state_size", "linear_attn", "linear_num_", "conv_L_cache", "hybrid_override")
# What gives some layers another KV than the figure beside it gives the others.
_OF_UNLIKE_LAYERS = {
    "global_head_dim": "head_dim",
    "swa_head_dim": "head_dim",
    "swa_num_key_value_heads": "num_key_value_heads",
    "block_configs": "",
    "index_topk": "",
}


# Families of which every layer has the config's sliding_window, whose config names no kinds of layers.
_ALL_OF_WINDOWS = ("mistral", "mixtral", "phi3", "starcoder2")
_WINDOW = "sliding_attention"
FULL_ATTENTION = "--disable-sliding-window"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a model's config that tells of the layers which generate text."""
    return config.get("text_config") or config


def unshareable(
    config: Mapping[str, Any], device: str, vllm_args: str = "", multiprocess: bool = False
) -> str:
    """Return why a model with this config.json shares no KV on a cpu or cuda, in a clause; '' if it does.

    Options of vLLM may be what lets it, or SHARING=multiprocess.
    """
    text = text_config(config)
    kinds = text.get("layer_types") or text.get("layers_block_type") or text.get("block_types")
    if stateful := sorted({*map(str, kinds)} & {*_STATEFUL}) if kinds else _of_state(text):
        return f"layers of it keep a running state ({stateful[0]}), which nothing cuts into chunks"
    if config.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        return "it is an encoder-decoder, whose KV follows from what its encoder read, of which no key tells"
    if text.get("kv_lora_rank") and device == "cpu":
        return "it keeps KV compressed (multi-head latent attention), which is moved with DEVICE=cuda alone"
    if _has_windows_alone(text) and not multiprocess and FULL_ATTENTION not in vllm_args.split():
        return (
            f"every layer has a window ({text['sliding_window']} tokens), and vLLM keeps no KV that the "
            f"window has left behind ({FULL_ATTENTION} in VLLM_ARGS shares prompts of up to a window, "
            "SHARING=multiprocess longer ones)"
        )
    if unlike := _of_unlike_layers(text):
        return f"its layers' KV differs in shape ({unlike[0]}), and LMCache moves all layers' as one"
    return ""


def _of_state(config: Mapping[str, Any]) -> list[str]:
    return sorted(name for name, value in config.items() if name.startswith(_OF_STATE) and value)


def _has_windows_alone(config: Mapping[str, Any]) -> bool:
    if not config.get("sliding_window"):
        return False
    kinds = config.get("layer_types")
    return {*kinds} == {_WINDOW} if kinds else config.get("model_type") in _ALL_OF_WINDOWS


def _of_unlike_layers(config: Mapping[str, Any]) -> list[str]:
    figures = {name: (config.get(name), config.get(usual)) for name, usual in _OF_UNLIKE_LAYERS.items()}
    listed = [name for name in {*_OF_UNLIKE_LAYERS.values()} - {""} if isinstance(config.get(name), list)]
    return [name for name, (own, usual) in figures.items() if own and own != usual] + [
        name for name in sorted(listed) if len({*config[name]}) > 1
    ]


# What to do about a model that shares no KV.
INSTEAD = "choose a model whose layers are all attention of one shape, or serve this one without kvshare"
