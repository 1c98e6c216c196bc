"""The user's decisions: `.env` over the defaults of `.env.example`, the environment over both."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvshare.config import cluster_key, dotenv, threshold
from kvshare.contract import name_of_secret
from kvshare.errors import KvshareError, did_you_mean
from kvshare.refusals import length_of, refusal_of, refusal_of_drafts, refusal_of_host, refusal_of_model

DEVICES = ("cpu", "cuda")
TRANSPORTS = ("tcp", "rdma")
CHECKSUM, SWITCH = "KV_CHECKSUM", ("off", "on")
CONTROLLER, MULTIPROCESS = "controller", "multiprocess"
SHARINGS = (CONTROLLER, MULTIPROCESS)
# What compose.yaml is merged with, by the decision that asks for it.
OVERLAYS = {
    ("DEVICE", "cpu"): "compose.cpu.yaml",
    ("TRANSPORT", "rdma"): "compose.rdma.yaml",
    ("SHARING", MULTIPROCESS): "compose.mp.yaml",
}
FIRST_DECODE_INSTANCE = 2  # prefill is lmcache_instance_1

_SUGGESTION = re.compile(r"^#\s?([A-Z][A-Z0-9_]*)=")


@dataclass(frozen=True)
class DecodeNode:
    """One machine that decodes, named ``decode``, or of several ``decode-1``, ``decode-2`` …"""

    name: str
    number: int
    host: str
    context: str
    gpu: str

    @property
    def instance(self) -> int:
        """The number in the name of its LMCache instance."""
        return FIRST_DECODE_INSTANCE + self.number - 1

    @property
    def variables(self) -> dict[str, str]:
        """What compose.yaml must be told to mean this node."""
        return {"DECODE_HOST": self.host, "DECODE_GPU": self.gpu, "DECODE_INSTANCE": str(self.instance)}


@dataclass(frozen=True)
class Settings:
    """Every decision, resolved and validated; ``values`` holds them all by name."""

    root: Path
    values: Mapping[str, str]

    def get(self, name: str, default: str = "") -> str:
        """Return the decision ``name``; an empty value counts as not made."""
        return self.values.get(name) or default

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.get("DEVICE", "cuda")

    @property
    def compose_files(self) -> tuple[str, ...]:
        """The Compose files, relative to the root, in the order in which Compose merges them."""
        separator = self.get("COMPOSE_PATH_SEPARATOR", ":")
        return tuple(self.get("COMPOSE_FILE", "compose.yaml").split(separator))

    @property
    def transport(self) -> str:
        """``tcp`` or ``rdma``."""
        return self.get("TRANSPORT", "tcp")

    @property
    def sharing(self) -> str:
        """``controller`` or ``multiprocess``."""
        return self.get("SHARING", CONTROLLER)

    @property
    def overlays(self) -> tuple[str, ...]:
        """The files that compose.yaml must be merged with for what was decided."""
        decided = {("DEVICE", self.device), ("TRANSPORT", self.transport), ("SHARING", self.sharing)}
        return tuple(file for decision, file in OVERLAYS.items() if decision in decided)

    @property
    def prefill_context(self) -> str:
        """The Docker context of prefill, and with it of the controller."""
        return self.get("PREFILL_CONTEXT", "default")

    @property
    def decode_nodes(self) -> tuple[DecodeNode, ...]:
        """Every decode node: those of DECODE_HOSTS, or without it the one of DECODE_HOST."""
        if not self.get("DECODE_HOSTS"):
            rest = self.get("DECODE_CONTEXT", "default"), self.get("DECODE_GPU", "0")
            return (DecodeNode("decode", 1, self.get("DECODE_HOST", "127.0.0.1"), *rest),)
        hosts, contexts = self.list_of("DECODE_HOSTS"), self.list_of("DECODE_CONTEXTS")
        gpus = self._gpus_by_node() or (self.get("DECODE_GPU", "0"),) * len(hosts)
        for name, values in (("DECODE_CONTEXTS", contexts), ("DECODE_GPUS", gpus)):
            if len(values) != len(hosts):
                raise KvshareError(
                    f"DECODE_HOSTS names {len(hosts)} nodes and {name} {len(values)}: "
                    "give one for each, in one order."
                )
        nodes = enumerate(zip(hosts, contexts, gpus, strict=True), start=1)
        return tuple(DecodeNode(f"decode-{number}", number, *node) for number, node in nodes)

    def compose_environment(self, context: str | None = None) -> dict[str, str]:
        """Return the environment to run `docker compose` with on a context: what the tool sees.

        Where a decode node lives on the context, compose.yaml's `decode` means that node.
        """
        node = next((node for node in self.decode_nodes if node.context == context), self.decode_nodes[0])
        secrets = {"HF_TOKEN": self._secret("HF_TOKEN_FILE", "HF_TOKEN"), "VLLM_API_KEY": self.api_key}
        secrets["CLUSTER_KEY"] = self.cluster_key
        keys = name_of_secret("\n".join(secrets.values()).encode()) if any(secrets.values()) else ""
        return {**os.environ, **self.values, **secrets, **node.variables, "KVSHARE_KEYS": keys}

    @property
    def api_key(self) -> str:
        """The key that the servers' API asks for, or empty; KvshareError if there is none in its file."""
        key = self._secret("API_KEY_FILE", "VLLM_API_KEY")
        if self.get("API_KEY_FILE") and not re.fullmatch(r"[!-~]+", key):
            raise KvshareError(
                f"API_KEY_FILE={self.get('API_KEY_FILE')} must hold one key, a line of ASCII without spaces: "
                "make one, e.g. with openssl rand -hex 32."
            )
        return key

    @property
    def cluster_key(self) -> str:
        """The key that lets a node into the cluster, or empty; KvshareError if it is not fit for it."""
        given = self.get(cluster_key.NAME)
        if given == cluster_key.OFF:
            return ""
        if not given and self.get("CLUSTER_KEY"):
            return cluster_key.checked(self.get("CLUSTER_KEY"), "CLUSTER_KEY")
        path = self.cluster_key_file
        if not given and not path.is_file():
            return ""  # until `kvshare up` makes it
        name = given or str(cluster_key.MADE)
        key = self._secret(cluster_key.NAME, "", name)
        return cluster_key.checked(key, f"{cluster_key.NAME}={name}", path)

    @property
    def cluster_key_file(self) -> Path:
        """Where that key lies: the file that the user has named, or the one that `kvshare up` makes."""
        return self.root / Path(self.get(cluster_key.NAME) or cluster_key.MADE).expanduser()

    @property
    def wants_cluster_key(self) -> bool:
        """Whether `kvshare up` is to make that file: neither a key was given, nor is it off."""
        return not self.get(cluster_key.NAME) and not self.get("CLUSTER_KEY")

    @property
    def observes(self) -> bool:
        """Whether Prometheus and the canary are wanted."""
        return bool(self.get("OBSERVE"))

    @property
    def clients(self) -> tuple[str, ...]:
        """Addresses and networks that may use the servers' API; none means anyone."""
        return self.list_of("CLIENTS")

    def _secret(self, file: str, value: str, default: str = "") -> str:
        """What the file named by ``file`` holds, else ``value`` itself; KvshareError if it cannot be read."""
        path = self.get(file, default)
        if not path:
            return self.get(value)
        try:
            return (self.root / Path(path).expanduser()).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise KvshareError(f"{file}={path} cannot be read: {reason}; correct .env.") from None

    def _gpus_by_node(self) -> tuple[str, ...]:
        """What DECODE_GPUS gives each node: ``0,1`` of two nodes one GPU each, ``0,1;0,1`` two each."""
        given = self.get("DECODE_GPUS")
        return tuple(given.split(";")) if ";" in given else self.list_of("DECODE_GPUS")

    def list_of(self, name: str) -> tuple[str, ...]:
        """Return the parts of a decision that commas or spaces separate."""
        return tuple(self.get(name).replace(",", " ").split())


def load_settings(root: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read and validate the decisions under ``root``; KvshareError names what is wrong and what is near."""
    environ = os.environ if environ is None else environ
    example = root / ".env.example"
    if not example.is_file():
        raise KvshareError(
            f"{root} is no kvshare folder, it has no .env.example: cd to it or set KVSHARE_ROOT."
        )
    known, defaults = _known_variables(example), dotenv.read(example)
    chosen = dotenv.read(root / ".env") if (root / ".env").is_file() else {}
    for name in chosen:
        if name not in known and not name.startswith("COMPOSE_"):  # Compose's own are not ours to know
            raise KvshareError(f".env sets {name}, which kvshare does not know{did_you_mean(name, known)}")
    override = {name: environ[name] for name in known if name in environ}
    values = {**defaults, **chosen, **override}
    if {name for name, _ in OVERLAYS} & override.keys() and "COMPOSE_FILE" not in override:
        # make up DEVICE=cuda means the whole of it
        values["COMPOSE_FILE"] = _compose_files(Settings(root, values))
    settings = Settings(root, values)
    _validate_choices(settings)
    return settings


def validate_node(name: str, settings: Settings) -> str:
    """Return ``name`` if it is a node, else KvshareError with the nearest one."""
    watchers = ("observe", "prometheus", "canary")
    known = ("prefill", "all", "decode", "gateway", *watchers, *(n.name for n in settings.decode_nodes))
    if name in watchers and not settings.observes:
        raise KvshareError("nothing is to watch the stack: set OBSERVE=5 in .env, a canary every 5 minutes.")
    if name not in known:
        raise KvshareError(f"NODE={name} is no node{did_you_mean(name, known)}")
    return name


def find_root() -> Path:
    """Return the kvshare folder: KVSHARE_ROOT, or the working directory or the nearest parent that is one."""
    if root := os.environ.get("KVSHARE_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / ".env.example").is_file()), here)


def _validate_choices(settings: Settings) -> None:
    for name, value, known in (
        ("DEVICE", settings.device, DEVICES),
        ("TRANSPORT", settings.transport, TRANSPORTS),
        ("SHARING", settings.sharing, SHARINGS),
    ):
        if value not in known:
            raise KvshareError(f"{name}={value} is no {name.lower()}{did_you_mean(value, known)}")
    if (checks := settings.get(CHECKSUM, "off")) not in SWITCH:
        raise KvshareError(f"{CHECKSUM}={checks} is neither on nor off: set {CHECKSUM}=on or off in .env.")
    if not threshold.VALUE.fullmatch(least := settings.get(threshold.NAME, "0")):
        raise KvshareError(
            f"{threshold.NAME}={least} is no number of tokens: set it to 0, to what "
            f"make bench ARGS=--calibrate finds, or to {threshold.NEVER}."
        )
    every = settings.get("OBSERVE", "1")
    if not every.isdecimal() or int(every) < 1:
        raise KvshareError(f"OBSERVE={every} is no number of minutes: set OBSERVE=5, or leave it empty.")
    for refusal in filter(None, _refusals(settings)):
        raise KvshareError(refusal)
    files = {Path(name).name for name in settings.compose_files}
    if files & {*OVERLAYS.values()} != {*settings.overlays}:
        decided = [f"{name}={settings.get(name)}" for name, _ in OVERLAYS if settings.get(name)]
        raise KvshareError(
            f"{', '.join(decided)} and COMPOSE_FILE={':'.join(settings.compose_files)} disagree: "
            f"set COMPOSE_FILE={_compose_files(settings)} in .env."
        )


def _refusals(settings: Settings) -> Iterator[str]:
    """Why the servers could not do as decided, which they would say late or not at all."""
    for name in ("PREFILL_HOST", "DECODE_HOST", "DECODE_HOSTS"):
        yield from (refusal_of_host(name, host) for host in settings.list_of(name))
    yield refusal_of_model(settings.get("MODEL"))
    try:
        length_of(settings.get("MAX_MODEL_LEN", "auto"))
    except ValueError as error:
        yield f"{error}."
    yield refusal_of(settings.get("VLLM_ARGS"))
    yield refusal_of_drafts(settings.get("VLLM_ARGS"))
    if settings.sharing == MULTIPROCESS:
        yield from _refusals_of_multiprocess(settings)


def _refusals_of_multiprocess(settings: Settings) -> Iterator[str]:
    """What only the other way of sharing does."""
    if settings.transport == "rdma":
        yield "SHARING=multiprocess was never tried over TRANSPORT=rdma: set one of the two back in .env."
    if settings.get(threshold.NAME, "0") != "0":
        yield f"SHARING=multiprocess pulls whatever a peer has: set {threshold.NAME}=0 in .env."
    if settings.get(CHECKSUM, "off") != "off":
        yield f"SHARING=multiprocess has no checksums of KV: set {CHECKSUM}=off in .env."
    if settings.observes:
        yield "OBSERVE watches SHARING=controller alone: leave OBSERVE empty in .env."
    if settings.get(cluster_key.NAME) == cluster_key.OFF:
        yield (
            "SHARING=multiprocess hands out and clears KV for whoever reaches its ports: "
            f"leave {cluster_key.NAME} empty in .env, and a key is made."
        )


def _compose_files(settings: Settings) -> str:
    return ":".join(("compose.yaml", *settings.overlays))


def _known_variables(example: Path) -> set[str]:
    suggested = (_SUGGESTION.match(line) for line in example.read_text().splitlines())
    return {*dotenv.read(example), *(match.group(1) for match in suggested if match)}
