"""The facts that compose.yaml hands to a container, read from its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kvshare import contract
from kvshare.contract import ports_of_ranks, ranks_of
from kvshare.refusals import length_of, refusal_of_host, refusal_of_model

FINGERPRINT = Path(contract.FINGERPRINT)
STATE_DIR = FINGERPRINT.parent  # a tmpfs; nothing in it outlives the container
IDENTITY = STATE_DIR / Path(contract.IDENTITY).name
METRICS_DIR = STATE_DIR / "metrics"
NIXL_DIR = STATE_DIR / "nixl"  # where its agents keep what they count
LMCACHE_CONFIG = Path("/etc/kvshare/lmcache.yaml")


def refuse(sentence: str) -> NoReturn:
    """End the container with exit code 2 and one sentence: expected, found, what to do."""
    print(f"kvshare: {sentence.removesuffix('.')}", file=sys.stderr)
    raise SystemExit(2)


def required(name: str, environment: Mapping[str, str] = os.environ) -> str:
    value = environment.get(name, "")
    if not value:
        refuse(f"expected {name} in the environment and found none; compose.yaml sets it")
    return value


def port(name: str, environment: Mapping[str, str] = os.environ) -> int:
    value = required(name, environment)
    if not value.isdigit() or not 0 < int(value) < 65536:
        refuse(
            f"expected a port from 1 to 65535 in {name} and found '{value}'; see x-kvshare in compose.yaml"
        )
    return int(value)


def host(name: str, environment: Mapping[str, str] = os.environ) -> str:
    value = required(name, environment)
    if refusal := refusal_of_host(name, value):
        refuse(refusal)
    return value


def model(environment: Mapping[str, str]) -> str:
    value = required("KVSHARE_MODEL", environment)
    if refusal := refusal_of_model(value):
        refuse(refusal)
    return value


def length(environment: Mapping[str, str]) -> int | None:
    try:
        return length_of(required("KVSHARE_MAX_MODEL_LEN", environment))
    except ValueError as error:
        refuse(f"{error}; correct .env")


def gibibytes(name: str, environment: Mapping[str, str]) -> float:
    value = required(name, environment)
    try:
        if (size := float(value)) > 0:
            return size
    except ValueError:
        pass
    refuse(f"expected a number of GiB in {name} and found '{value}'; correct CPU_CACHE_GIB in .env")


def is_multiprocess(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether LMCache runs in a process of its own: SHARING=multiprocess."""
    return environment.get("KVSHARE_SHARING") == "multiprocess"


def ranks(environment: Mapping[str, str]) -> int:
    names = ("KVSHARE_DEVICE", "KVSHARE_GPUS", "KVSHARE_CPU_RANKS")
    try:
        return ranks_of(*(required(name, environment) for name in names))
    except ValueError as error:
        refuse(f"{error}; correct .env")


@dataclass(frozen=True)
class Controller:
    """Where the LMCache controller listens."""

    host: str
    http_port: int
    pull_port: int
    reply_port: int
    heartbeat_port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Controller:
        return cls(
            host=host("KVSHARE_CONTROLLER_HOST", environment),
            http_port=port("KVSHARE_CONTROLLER_HTTP_PORT", environment),
            pull_port=port("KVSHARE_CONTROLLER_PULL_PORT", environment),
            reply_port=port("KVSHARE_CONTROLLER_REPLY_PORT", environment),
            heartbeat_port=port("KVSHARE_CONTROLLER_HEARTBEAT_PORT", environment),
        )


@dataclass(frozen=True)
class Coordinator:
    """Where the coordinator of SHARING=multiprocess listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Coordinator:
        return cls(
            host=host("KVSHARE_COORDINATOR_HOST", environment),
            port=port("KVSHARE_COORDINATOR_PORT", environment),
        )


@dataclass(frozen=True)
class Cache:
    """The cache server of a node with SHARING=multiprocess, which its vLLM and its peers ask."""

    host: str
    port: int
    http_port: int
    p2p_port: int
    nixl_port: int
    device: str
    transport: str
    ranks: int
    cpu_cache_gib: float  # of each rank, without a GPU

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def transfer(self) -> str:
        """Who copies between vLLM's memory and the pool, as LMCache calls it.

        With a GPU vLLM does, so that nobody else needs its card; without one the cache server, which shares
        vLLM's memory and so can tell groups of unlike layers apart.
        """
        return "lmcache_driven" if self.device == "cpu" else "engine_driven"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Cache:
        return cls(
            host=host("KVSHARE_CACHE_HOST", environment),
            port=port("KVSHARE_CACHE_PORT", environment),
            http_port=port("KVSHARE_CACHE_HTTP_PORT", environment),
            p2p_port=port("KVSHARE_CACHE_P2P_PORT", environment),
            nixl_port=port("KVSHARE_CACHE_NIXL_PORT", environment),
            device=required("KVSHARE_DEVICE", environment),
            transport=required("KVSHARE_TRANSPORT", environment),
            ranks=ranks(environment),
            cpu_cache_gib=gibibytes("KVSHARE_CPU_CACHE_GIB", environment),
        )


@dataclass(frozen=True)
class Server:
    """One vLLM server with its LMCache worker, or beside the ``cache`` server of its node."""

    role: str
    instance: str
    host: str
    api_port: int
    ranks: int
    worker_ports: tuple[int, ...]
    p2p_init_ports: tuple[int, ...]
    p2p_lookup_ports: tuple[int, ...]
    nixl_port: int  # of all ranks
    model: str
    model_revision: str
    dtype: str
    kv_cache_dtype: str
    max_model_len: int | None  # None: as long as the model and the memory allow
    kv_transfer_config: str
    vllm_args: str
    user_args: str
    device: str
    transport: str
    cache: Cache | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.api_port}"

    @property
    def kv_dtype(self) -> str:
        """What KV is kept in, as far as it is set; auto: what the model is in."""
        return self.dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Server:
        count, step = ranks(environment), int(required("KVSHARE_RANK_PORT_STEP", environment))

        def ports(name: str) -> tuple[int, ...]:
            return ports_of_ranks(port(name, environment), count, step)

        return cls(
            role=required("KVSHARE_ROLE", environment),
            instance=required("KVSHARE_INSTANCE", environment),
            host=host("KVSHARE_HOST", environment),
            api_port=port("KVSHARE_API_PORT", environment),
            ranks=count,
            worker_ports=ports("KVSHARE_WORKER_PORT"),
            p2p_init_ports=ports("KVSHARE_P2P_INIT_PORT"),
            p2p_lookup_ports=ports("KVSHARE_P2P_LOOKUP_PORT"),
            nixl_port=port("KVSHARE_NIXL_PORT", environment),
            model=model(environment),
            model_revision=environment.get("KVSHARE_MODEL_REVISION", ""),
            dtype=required("KVSHARE_DTYPE", environment),
            kv_cache_dtype=required("KVSHARE_KV_CACHE_DTYPE", environment),
            max_model_len=length(environment),
            kv_transfer_config=environment.get("KVSHARE_KV_TRANSFER_CONFIG", ""),
            vllm_args=environment.get("KVSHARE_VLLM_ARGS", ""),
            user_args=environment.get("KVSHARE_USER_VLLM_ARGS", ""),
            device=required("KVSHARE_DEVICE", environment),
            transport=required("KVSHARE_TRANSPORT", environment),
            cache=Cache.from_environment(environment) if is_multiprocess(environment) else None,
        )
