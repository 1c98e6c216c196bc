"""What the engine image writes and the tool reads, and what both must decide alike, declared here alone.

The image carries a copy of this file, so it stands on nothing but Python. Sizes are bytes, times seconds.
"""

import hmac
import re
from dataclasses import dataclass, field
from typing import Any, Literal

ANY_ADDRESS = ("0.0.0.0", "::")
FINGERPRINT = "/tmp/kvshare/fingerprint.json"  # where a container of the engine image writes its own
DRAINED = (
    "/tmp/drained"  # of the gateway: a file there named as a server's place, HOST:PORT, keeps requests off it
)
IDENTITY = "/tmp/kvshare/identity.json"  # where LMCache writes what the model's part in its keys is made of

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


# --- the models volume --------------------------------------------------------------------------------------

DEMO_MODEL = "demo"


def folder_of(model: str) -> str:
    """Return where in the models volume a model is or will be: the demo's, one of a path, or the hub's."""
    if model == DEMO_MODEL:
        return "kvshare-demo"
    return (
        model.removeprefix("/models/")
        if model.startswith("/")
        else f"huggingface/hub/models--{model.replace('/', '--')}"
    )


# --- the cluster's key --------------------------------------------------------------------------------------


def name_of_key(key: str) -> str:
    """Return a few digits by which keys, in hexadecimal, are told apart and that tell nothing of them."""
    return name_of_secret(bytes.fromhex(key))


def name_of_secret(secret: bytes) -> str:
    """Return a few digits by which secrets are told apart and that tell nothing of them."""
    return hmac.digest(secret, b"kvshare name", "sha256")[:4].hex()


def bearer_of(key: str) -> str:
    """Return the token that the controller's HTTP asks for; the patch http-key derives the same."""
    return hmac.digest(bytes.fromhex(key), b"kvshare http", "sha256").hex()


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
    """What an engine says it runs with; ``vocab_size`` in tokens, None for a model known only by its name.

    ``identity`` holds digests of the model as served, by what each is of; the tool adds it (``IDENTITY``).
    ``cluster_key`` tells keys apart and nothing of them; empty without one.
    """

    role: str
    instance: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    python_hash_seed: str | None = None
    cluster_key: str = ""
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
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def kv_dtype(self) -> str | None:
        """What KV is kept in, as far as it is set; auto: what the model is in."""
        return self.dtype if self.kv_cache_dtype in (None, "auto") else self.kv_cache_dtype

    @property
    def patch_ids(self) -> tuple[str, ...]:
        """Each patch once, whatever it touches."""
        return tuple(sorted({patch.id for patch in self.patches}))


Kind = Literal["card", "virtual", "bridge", "loopback"]
_DOCKERS = re.compile(r"docker\w*|br-[0-9a-f]{12}")

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
        return self.kind == "bridge" and bool(_DOCKERS.fullmatch(self.name))


@dataclass(frozen=True)
class Endpoint:
    """An address of a machine and a TCP port on it; ``by`` whom it is held, where that can be told."""

    host: str
    port: int
    by: str = ""


@dataclass(frozen=True)
class Model:
    """The model: whether it lies on this machine, and the figures that its KV's size follows from.

    ``longest`` is the longest prompt that it was made for, in tokens; ``unshareable`` why it shares no KV.
    ``writable``: whether we may put into the models volume what is not there. ``files`` holds digests of its
    weights and its config.json.
    """

    name: str
    found: bool
    layers: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    dtype: str | None = None
    longest: int | None = None
    unshareable: str = ""
    writable: bool = True
    files: dict[str, str] = field(default_factory=dict)


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
