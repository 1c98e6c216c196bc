"""The user's decisions: `.env` over the defaults of `.env.example`, the environment over both."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvshare.errors import KvshareError, did_you_mean

NODES = ("prefill", "decode", "all")
DEVICES = ("cpu", "cuda")
CPU_FILE = "compose.cpu.yaml"

_ASSIGNMENT = re.compile(r"^(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$")
_SUGGESTION = re.compile(r"^#\s?([A-Z][A-Z0-9_]*)=")


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

    def context(self, node: str) -> str:
        """Return the Docker context of ``prefill`` (and with it the controller) or ``decode``."""
        return self.get(f"{node.upper()}_CONTEXT", "default")

    def compose_environment(self) -> dict[str, str]:
        """Return the environment to run `docker compose` with, so that it sees what the tool sees."""
        return {**os.environ, **self.values}


def load_settings(root: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read and validate the decisions under ``root``; KvshareError names what is wrong and what is near."""
    environ = os.environ if environ is None else environ
    example = root / ".env.example"
    if not example.is_file():
        raise KvshareError(
            f"{root} is no kvshare folder, it has no .env.example: cd to it or set KVSHARE_ROOT."
        )
    known, defaults = _known_variables(example), _assignments(example)
    chosen = _assignments(root / ".env") if (root / ".env").is_file() else {}
    for name in chosen:
        if name not in known and not name.startswith("COMPOSE_"):  # Compose's own are not ours to know
            raise KvshareError(f".env sets {name}, which kvshare does not know{did_you_mean(name, known)}")
    override = {name: environ[name] for name in known if name in environ}
    if "DEVICE" in override and "COMPOSE_FILE" not in override:  # make up DEVICE=cuda means the whole of it
        override["COMPOSE_FILE"] = _compose_files(override["DEVICE"])
    settings = Settings(root, {**defaults, **chosen, **override})
    _validate_device(settings)
    return settings


def validate_node(name: str) -> str:
    """Return ``name`` if it is a node, else KvshareError with the nearest one."""
    if name not in NODES:
        raise KvshareError(f"NODE={name} is no node{did_you_mean(name, NODES)}")
    return name


def find_root() -> Path:
    """Return the kvshare folder: KVSHARE_ROOT, or the working directory or the nearest parent that is one."""
    if root := os.environ.get("KVSHARE_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / ".env.example").is_file()), here)


def _validate_device(settings: Settings) -> None:
    device, files = settings.device, settings.compose_files
    if device not in DEVICES:
        raise KvshareError(f"DEVICE={device} is no device{did_you_mean(device, DEVICES)}")
    has_cpu_file = any(Path(name).name == CPU_FILE for name in files)
    if has_cpu_file != (device == "cpu"):
        raise KvshareError(
            f"DEVICE={device} and COMPOSE_FILE={':'.join(files)} disagree: "
            f"set COMPOSE_FILE={_compose_files(device)} in .env."
        )


def _compose_files(device: str) -> str:
    return f"compose.yaml:{CPU_FILE}" if device == "cpu" else "compose.yaml"


def _known_variables(example: Path) -> set[str]:
    suggested = (_SUGGESTION.match(line) for line in example.read_text().splitlines())
    return {*_assignments(example), *(match.group(1) for match in suggested if match)}


def _assignments(path: Path) -> dict[str, str]:
    """Return NAME=value lines; a quoted value is taken as it is, an unquoted one ends before ` #`."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.match(line)
        if match is None:
            raise KvshareError(f"{path.name} line {number} is no NAME=value: {line}")
        found[match.group(1)] = _value(match.group(2).strip())
    return found


def _value(text: str) -> str:
    if text[:1] in ("'", '"') and (end := text.find(text[0], 1)) > 0:
        return text[1:end]
    return "" if text.startswith("#") else text.split(" #")[0].rstrip()
