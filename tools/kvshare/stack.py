"""The system as Compose resolves it: which service runs where, under which address and ports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.settings import Settings

COMPOSE_TIMEOUT_S = 60


@dataclass(frozen=True)
class Server:
    """One vLLM server and the LMCache worker inside it."""

    service: str
    context: str
    host: str
    instance: str
    api_port: int
    worker_port: int
    p2p_init_port: int
    p2p_lookup_port: int

    @property
    def url(self) -> str:
        """Where the OpenAI API, `/health` and `/metrics` answer."""
        return f"http://{self.host}:{self.api_port}"

    @property
    def peer_init_url(self) -> str:
        """The address that peers dial first, as the controller must hand it out."""
        return f"{self.host}:{self.p2p_init_port}"


@dataclass(frozen=True)
class Controller:
    """The LMCache controller, which runs on the prefill node."""

    service: str
    context: str
    host: str
    http_port: int
    pull_port: int
    reply_port: int
    heartbeat_port: int

    @property
    def url(self) -> str:
        """Where its HTTP interface answers."""
        return f"http://{self.host}:{self.http_port}"


@dataclass(frozen=True)
class Stack:
    """The whole system: one controller and two servers."""

    project: str
    device: str
    controller: Controller
    prefill: Server
    decode: Server

    @property
    def members(self) -> tuple[Controller | Server, ...]:
        """Everything that runs for good, in the order of start."""
        return (self.controller, self.prefill, self.decode)

    @property
    def contexts(self) -> tuple[str, ...]:
        """The Docker contexts in use, each once."""
        return tuple(dict.fromkeys(member.context for member in self.members))

    def member(self, service: str) -> Controller | Server:
        """Return the member of that service name."""
        return next(member for member in self.members if member.service == service)

    def where(self, *services: str) -> str:
        """Return the place of services in words, e.g. ``decode on 10.0.0.2 (context gpu-b)``."""
        members = [self.member(service) for service in services]
        return ", ".join(f"{m.service} on {m.host} (context {m.context})" for m in members)


def compose_command(context: str, *arguments: str) -> list[str]:
    """Return a `docker compose` command line that names its context; run it in the root."""
    return ["docker", "--context", context, "compose", *arguments]


def read_stack(settings: Settings) -> Stack:
    """Ask Compose for the resolved facts; CouldNotCheckError without Compose, KvshareError if it refuses."""
    command = compose_command("default", "--profile", "*", "config", "--format", "json")
    try:
        result = subprocess.run(
            command,
            cwd=settings.root,
            env=settings.compose_environment(),
            capture_output=True,
            text=True,
            timeout=COMPOSE_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise CouldNotCheckError("docker is not installed here: type make demo, or see README.md.") from None
    except subprocess.TimeoutExpired:
        raise CouldNotCheckError(f"docker compose config did not end in {COMPOSE_TIMEOUT_S} s.") from None
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise KvshareError(f"docker compose config refuses the settings: {reason[0]}")
    return parse_stack(json.loads(result.stdout), settings)


def parse_stack(config: Mapping[str, Any], settings: Settings) -> Stack:
    """Return the stack from `docker compose config --format json` and the user's decisions."""
    try:
        facts = config["x-kvshare"]
        return Stack(
            project=config["name"],
            device=settings.device,
            controller=_controller(facts["controller"], settings),
            prefill=_server("prefill", facts["prefill"], settings),
            decode=_server("decode", facts["decode"], settings),
        )
    except KeyError as missing:
        raise KvshareError(f"compose.yaml has no {missing} where x-kvshare should state it.") from None


def _controller(facts: Mapping[str, Any], settings: Settings) -> Controller:
    return Controller(
        service="controller",
        context=settings.context("prefill"),
        host=str(facts["KVSHARE_CONTROLLER_HOST"]),
        http_port=int(facts["KVSHARE_CONTROLLER_HTTP_PORT"]),
        pull_port=int(facts["KVSHARE_CONTROLLER_PULL_PORT"]),
        reply_port=int(facts["KVSHARE_CONTROLLER_REPLY_PORT"]),
        heartbeat_port=int(facts["KVSHARE_CONTROLLER_HEARTBEAT_PORT"]),
    )


def _server(service: str, facts: Mapping[str, Any], settings: Settings) -> Server:
    return Server(
        service=service,
        context=settings.context(service),
        host=str(facts["KVSHARE_HOST"]),
        instance=str(facts["KVSHARE_INSTANCE"]),
        api_port=int(facts["KVSHARE_API_PORT"]),
        worker_port=int(facts["KVSHARE_WORKER_PORT"]),
        p2p_init_port=int(facts["KVSHARE_P2P_INIT_PORT"]),
        p2p_lookup_port=int(facts["KVSHARE_P2P_LOOKUP_PORT"]),
    )
