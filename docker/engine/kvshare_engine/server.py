"""Start a vLLM server whose KV cache LMCache shares with its peers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import time
from pathlib import Path

from kvshare.refusals import refusal_of, refusal_of_drafts
from kvshare_engine import cluster_key, fingerprint, models, transport
from kvshare_engine.environment import (
    IDENTITY,
    LMCACHE_CONFIG,
    METRICS_DIR,
    NIXL_DIR,
    Cache,
    Controller,
    Server,
    refuse,
)

# What a client may tell LMCache is looked at where its request enters.
REQUESTS = "kvshare_engine.requests.KvTransferParams"
KEYED = "kvshare_engine.beside_v1.Keyed"  # the last one is asked first, before a stranger's body is read
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
# Files where Compose was given a secret, /dev/null where not.
HF_TOKEN_SECRET = Path("/run/secrets/hf_token")
API_KEY_SECRET = Path("/run/secrets/api_key")
CACHE_START_S = 120  # for its cache server to listen
CACHE_TIMEOUT_S = 5  # for each of its answers; so long a request waits when it goes away
CACHE_HEARTBEAT_S = 2


def lmcache_environment(server: Server, controller: Controller) -> dict[str, str]:
    """What differs from node to node in LMCache's settings, as environment over its YAML file."""
    return {
        "LMCACHE_CONFIG_FILE": str(LMCACHE_CONFIG),
        # LMCache's prefix and its key's own name double up here.
        "LMCACHE_LMCACHE_INSTANCE_ID": server.instance,
        "LMCACHE_LMCACHE_WORKER_PORTS": _listed(server.worker_ports),
        "LMCACHE_P2P_HOST": server.host,
        "LMCACHE_P2P_INIT_PORTS": _listed(server.p2p_init_ports),
        "LMCACHE_P2P_LOOKUP_PORTS": _listed(server.p2p_lookup_ports),
        "LMCACHE_CONTROLLER_PULL_URL": f"{controller.host}:{controller.pull_port}",
        "LMCACHE_CONTROLLER_REPLY_URL": f"{controller.host}:{controller.reply_port}",
    }


def sharing(server: Server) -> dict[str, str]:
    """What LMCache and NIXL inside vLLM must be told; beside a cache server that is next to nothing."""
    if server.cache is not None:
        # Whoever has prefill's answer, as the gateway has, asks another node for its KV at once.
        return {"LMCACHE_MP_STORED_FIRST": "1"} if server.role == "prefill" else {}
    return {
        **lmcache_environment(server, Controller.from_environment()),
        **transport.nixl_environment(server.nixl_port),
        **transport.environment(server.transport, server.device, server.host, server.ranks),
    }


def connector(server: Server) -> str:
    """vLLM's --kv-transfer-config; with a cache server it says where that answers."""
    if server.cache is None or not server.kv_transfer_config:
        return server.kv_transfer_config
    where = {
        "lmcache.mp.host": f"tcp://{server.cache.host}",
        "lmcache.mp.port": server.cache.port,
        "lmcache.mp.mp_transfer_mode": server.cache.transfer,
        "lmcache.mp.mq_timeout": CACHE_TIMEOUT_S,
        "lmcache.mp.heartbeat_interval": CACHE_HEARTBEAT_S,
    }
    return json.dumps({**json.loads(server.kv_transfer_config), "kv_connector_extra_config": where})


def command(server: Server, model: str) -> list[str]:
    """vLLM's command line; of an option given twice it takes the last, which is the user's."""
    arguments = [
        "vllm",
        "serve",
        model,
        f"--host={server.host}",
        f"--port={server.api_port}",
        f"--dtype={server.dtype}",
        f"--kv-cache-dtype={server.kv_cache_dtype}",
        f"--max-model-len={server.max_model_len or 'auto'}",
        f"--middleware={REQUESTS}",
        f"--middleware={KEYED}",
        *executor(server),
        *shlex.split(server.vllm_args),
        *shlex.split(server.user_args),
    ]
    if server.cache is not None and server.cache.transfer == "engine_driven":
        arguments.append("--disable-hybrid-kv-cache-manager")  # one group of layers is all that it moves
    if server.model_revision:
        arguments.append(f"--revision={server.model_revision}")
    if server.kv_transfer_config:
        arguments.append(f"--kv-transfer-config={connector(server)}")
    return arguments


def executor(server: Server) -> list[str]:
    """Who computes: vLLM's own choice, but for one rank without a GPU.

    There it would start a worker process, which imports all of vLLM once more and spins for a second after
    each request; the executor's class is named because vLLM turns its short name into that.
    """
    if server.ranks > 1:
        return [f"--tensor-parallel-size={server.ranks}"]
    return [f"--distributed-executor-backend={ONE_PROCESS}"] if server.device == "cpu" else []


def await_cache(cache: Cache, wait_s: float) -> None:
    """Return once the cache server listens; ends the container if it does not."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        try:
            socket.create_connection((cache.host, cache.port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    refuse(f"expected a cache server at {cache.host}:{cache.port} and found none; see its container's log")


def _listed(ports: tuple[int, ...]) -> str:
    return ",".join(map(str, ports))


def secrets(hub_token: Path = HF_TOKEN_SECRET, api_key: Path = API_KEY_SECRET) -> dict[str, str]:
    """The Hugging Face token and the API key as their libraries look for them, where they were given.

    In the environment, because every process of the machine may read a command line.
    """
    found = {"HF_TOKEN": hub_token, "VLLM_API_KEY": api_key}
    texts = {name: path.read_text().strip() for name, path in found.items() if path.is_file()}
    return {name: text for name, text in texts.items() if text}


def run() -> None:
    server = Server.from_environment()
    options = f"{server.vllm_args} {server.user_args}"
    if refusal := refusal_of(server.user_args) or refusal_of_drafts(options):
        refuse(refusal)
    IDENTITY.unlink(missing_ok=True)  # of an earlier start in this container
    for counted in (METRICS_DIR, NIXL_DIR):
        shutil.rmtree(counted, ignore_errors=True)
    METRICS_DIR.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(METRICS_DIR)
    defaults = {
        **sharing(server),
        "LMCACHE_IDENTITY_REPORT": str(IDENTITY),
        **cluster_key.environment(),
        **secrets(),
    }
    # A setting given from outside wins.
    os.environ.update({name: value for name, value in defaults.items() if not os.environ.get(name)})
    model = models.require(server.model, server.model_revision, server.device, server.user_args)
    fingerprint.write(fingerprint.of_server(server, model))
    if server.cache is not None:
        await_cache(server.cache, CACHE_START_S)
    arguments = command(server, model)
    os.execvp(arguments[0], arguments)
