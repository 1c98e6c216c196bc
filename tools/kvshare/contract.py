"""What the engine image writes and the tool reads, and what both must decide alike, declared here alone.

The image carries a copy of this file, so it stands on nothing but Python. Sizes are bytes, times seconds.
"""

import argparse
import json
import re
import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

ANY_ADDRESS = ("0.0.0.0", "::")
FINGERPRINT = "/tmp/kvshare/fingerprint.json"  # where a container of the engine image writes its own

# --- the ranks of a server: processes that compute a layer together, each on a GPU of its own ---------------


def gpus_of(listed: str) -> tuple[str, ...]:
    """Return the GPUs of a list such as ``0,1``; ValueError if it names none, or one twice."""
    gpus = tuple(gpu.strip() for gpu in listed.split(",") if gpu.strip())
    if not gpus or len(set(gpus)) < len(gpus):
        raise ValueError(f"'{listed}' is no list of GPUs, each named once, such as 0,1")
    return gpus


def ranks_of(device: str, gpus: str, cpu_ranks: str) -> int:
    """Return a server's ranks: as many as GPUs, or CPU_RANKS without any; ValueError if that is no number."""
    if device == "cuda":
        return len(gpus_of(gpus))
    if not cpu_ranks.isdecimal() or int(cpu_ranks) < 1:
        raise ValueError(f"CPU_RANKS={cpu_ranks} is no number of ranks, 1 or more")
    return int(cpu_ranks)


def ports_of_ranks(first: int, ranks: int, step: int) -> tuple[int, ...]:
    """Return the ports that a server's ranks listen on, for one purpose, from the first rank's on."""
    return tuple(first + rank * step for rank in range(ranks))


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


# --- what a server or the controller says of itself at its start --------------------------------------------


@dataclass(frozen=True)
class Patch:
    """A file as a patch left it; ``sha256_before`` is None where the patch adds it."""

    id: str
    file: str = ""
    sha256_before: str | None = None
    sha256_after: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """What an engine says it runs with; ``vocab_size`` in tokens, None for a model known only by its name."""

    role: str
    instance: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    python_hash_seed: str | None = None
    patches: tuple[Patch, ...] = ()
    model: str | None = None
    model_revision: str | None = None
    vllm_args: str = ""
    vocab_size: int | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    max_model_len: int | None = None
    kv_transfer_config: dict[str, Any] | None = None
    ranks: int = 1
    lmcache: dict[str, Any] = field(default_factory=dict)
    ucx: dict[str, str] = field(default_factory=dict)

    @property
    def kv_dtype(self) -> str | None:
        """What KV is kept in, as far as it is set; auto: what the model is in."""
        return self.dtype if self.kv_cache_dtype in (None, "auto") else self.kv_cache_dtype

    @property
    def patch_ids(self) -> tuple[str, ...]:
        """Each patch once, whatever it touches."""
        return tuple(sorted({patch.id for patch in self.patches}))


Kind = Literal["card", "virtual", "bridge", "loopback"]

# --- `probe facts` ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interface:
    """A network device; ``speed_mbit`` is the link's, None where the device has none to tell."""

    name: str
    addresses: tuple[str, ...]
    mtu: int
    speed_mbit: int | None
    up: bool
    kind: Kind

    @property
    def is_dockers(self) -> bool:
        """Whether Docker made it for its containers: no other machine reaches it, and all have the like."""
        return self.kind == "bridge" and self.name.startswith(("docker", "br-"))


@dataclass(frozen=True)
class Endpoint:
    """An address of a machine and a TCP port on it; ``by`` whom it is held, where that can be told."""

    host: str
    port: int
    by: str = ""


@dataclass(frozen=True)
class Model:
    """The model: whether it lies on this machine, and the figures that its KV's size follows from.

    ``longest`` is the longest prompt that it was made for, in tokens.
    """

    name: str
    found: bool
    layers: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    dtype: str | None = None
    longest: int | None = None


@dataclass(frozen=True)
class Hub:
    """What the Hugging Face hub said of the model: an HTTP status, or why there is none."""

    address: str
    token_given: bool
    status: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Ucx:
    """What UCX would be told, and every transport/device that it finds; ``error`` is the server's refusal."""

    tls: str
    devices: str
    found: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """One machine and one server on it, seen from a container; ``memlock`` is None if unlimited.

    ``max_model_len`` is what the model allows where vLLM is to choose, None where that is not known either.

    ``disk_free`` is where the engine keeps its data, in which the container's own root lies.
    """

    hostname: str
    cpus: int
    interfaces: tuple[Interface, ...]
    memory_total: int
    memory_available: int
    disk_free: int
    memlock: int | None
    listening: tuple[Endpoint, ...]
    model: Model
    hub: Hub | None
    ucx: Ucx
    versions: dict[str, str]
    patches: tuple[str, ...]
    python_hash_seed: str | None
    dtype: str
    max_model_len: int | None
    lmcache: dict[str, Any]

    @property
    def lookup_timeout_ms(self) -> int:
        """What caps a pull; LMCache's own default where nothing is set."""
        return int(self.lmcache.get("lookup_timeout_ms", 3000))

    def holder(self, address: str) -> Interface | None:
        """Return the device that holds an address, or None."""
        return next((i for i in self.interfaces if address in i.addresses), None)

    def listener(self, host: str, port: int) -> Endpoint | None:
        """Return what listens on that port of that address, or None."""
        return next((e for e in self.listening if e.port == port and e.host in (host, *ANY_ADDRESS)), None)


# --- `probe hardware` ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a server computes with; ``gpu`` is name and driver of each, None where there is none."""

    cpu: str | None
    cores: int | None
    gpu: str | None
    kernel: str


@dataclass(frozen=True)
class Nic:
    """A network device, its speed and MTU as the kernel has them; None where it has none to tell."""

    device: str
    mbit_per_s: str | None
    mtu: str | None


@dataclass(frozen=True)
class Hardware:
    """A machine, and the network device that UCX was told to use."""

    machine: Machine
    nic: Nic | None


# --- `probe listen` and `probe dial` ------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A port that could not be held, and why."""

    host: str
    port: int
    error: str


@dataclass(frozen=True)
class Held:
    """The ports that are listened on, and those that could not be."""

    held: tuple[Endpoint, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class Answer:
    """How one connection went: ``error`` is empty where it stood after ``seconds``."""

    host: str
    port: int
    seconds: float
    error: str


# --- `probe link-serve` and `probe link-measure` ------------------------------------------------------------


@dataclass(frozen=True)
class Ports:
    """Where the far end waits: for the tests of bandwidth, one a connection, and for that of latency."""

    bandwidth: tuple[int, ...]
    latency: int


@dataclass(frozen=True)
class Measurement:
    """Bytes a second of large messages, seconds one way of a small one; or why there is neither."""

    bytes_per_s: float | None = None
    latency_s: float | None = None
    error: str = ""
