"""Build, start, wait, stop: what `kvshare up`, `kvshare down` and `kvshare demo` are made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.operate import preflight
from kvshare.progress import Step, step
from kvshare.site import contexts, dockerd
from kvshare.stack.members import Controller, Server, Stack, compose_command

LOCAL_BASE = "kvshare/base:bookworm"
PULL_TIMEOUT_S = 120
LOG_LINES = 15
POLL_S = 1.0


@dataclass(frozen=True)
class ContainerState:
    """One container as the engine sees it."""

    service: str
    name: str
    state: str
    health: str

    @property
    def healthy(self) -> bool:
        return self.state == "running" and self.health == "healthy"

    @property
    def gave_up(self) -> bool:
        """It ended by itself; `restart: unless-stopped` would only repeat it."""
        return self.state in ("exited", "dead", "restarting")


def members_of(stack: Stack, node: str) -> tuple[Controller | Server, ...]:
    """The members that ``make up NODE=node`` starts: prefill brings the controller, all is everything.

    ``decode`` is every decode node; one of several is meant by its own name, such as ``decode-2``.
    """
    if node == "all":
        return stack.members
    if node == "prefill":
        return (stack.controller, stack.prefill)
    return tuple(member for member in stack.decodes if node in ("decode", member.name))


def by_context(members: Sequence[Controller | Server]) -> dict[str, list[str]]:
    """Service names by the Docker context they belong to, in order of start."""
    grouped: dict[str, list[str]] = {}
    for member in members:
        grouped.setdefault(member.context, []).append(member.service)
    return grouped


# Building


def build(settings: Settings, context: str) -> None:
    """Build the engine and client images on a context; the whole output goes to ``.kvshare/build.log``.

    Raises:
        KvshareError: with the last lines of the output.
    """
    environment = {**settings.compose_environment(context), **_build_environment(settings, context)}
    command = compose_command(context, "--profile", "*", "build", "--progress", "plain", "prefill", "client")
    with step(f"Build the images ({settings.device})") as current:
        _logged(command, settings.root, environment, "build.log", current)


def build_target(settings: Settings, context: str, target: str) -> None:
    """Build one stage of the Dockerfile on a context, for its effect alone; no image is kept."""
    environment = {**settings.compose_environment(context), **_build_environment(settings, context)}
    options = [f"--build-arg=BASE={base}"] if (base := environment.get("BASE")) else []
    options += [f"--secret=id=ca,src={ca}"] if (ca := environment.get("CA_BUNDLE")) else []
    command = ["docker", "--context", context, "build", "--network", "host", "--progress", "plain"]
    command += [*options, "--file", "docker/Dockerfile", "--target", target, "."]
    with step(f"Build {target}") as current:
        _logged(command, settings.root, environment, f"{target}.log", current)


def missing_images(settings: Settings, context: str, services: Sequence[str] = ()) -> list[str]:
    """Names of the images of services, or of all, that a context's engine does not have."""
    listing = _compose(settings, context, "config", "--images", *services)
    names = sorted(set(listing.split()))
    return [name for name in names if not _has_image(context, name)]


def _build_environment(settings: Settings, context: str) -> dict[str, str]:
    """What a build takes from this machine: its CA bundle, and a base image where none can be pulled."""
    found = _provenance(settings.root)
    if not settings.get("CA_BUNDLE") and (bundle := _ca_bundle()):
        found["CA_BUNDLE"] = bundle
    if not settings.get("BASE") and (base := _base_image(settings, context)):
        found["BASE"] = base
    if settings.device == "cpu":
        with step("Fetch PyTorch for the CPU") as current:
            script = ["bash", "docker/wheelhouse/fill.sh"]
            # This tool's own Python, whose pip reads this machine's pip settings.
            environment = {**settings.compose_environment(context), "PYTHON": sys.executable}
            _logged(script, settings.root, environment, "wheelhouse.log", current)
    return found


def _provenance(root: Path) -> dict[str, str]:
    """Where the images come from, for their labels; nothing outside a git clone."""

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return result.stdout.strip()

    found = {"REVISION": git("describe", "--always", "--dirty"), "SOURCE": git("remote", "get-url", "origin")}
    return {name: value for name, value in found.items() if value}


def _ca_bundle() -> str | None:
    """The CA bundle that this machine's own clients are told to use, if any."""
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        if (path := os.environ.get(name)) and Path(path).is_file():
            return path
    return None


def _base_image(settings: Settings, context: str) -> str | None:
    """The base made here if the registry's cannot be had; None leaves the Dockerfile's own."""
    if _has_image(context, LOCAL_BASE):
        return LOCAL_BASE
    default = _default_base(settings.root)
    if _has_image(context, default):
        return None
    with step(f"Pull the base image {default.split('@')[0]}") as current:
        if _pulls(context, default):
            return None
        current.detail("no registry to pull from")
    with step("Make a base image without a registry") as current:
        environment = {**settings.compose_environment(context), "DOCKER_CONTEXT": context}
        _logged(
            ["bash", "docker/base/make-base.sh", LOCAL_BASE], settings.root, environment, "base.log", current
        )
    return LOCAL_BASE


def _default_base(root: Path) -> str:
    for line in (root / "docker/Dockerfile").read_text().splitlines():
        if line.startswith("ARG BASE="):
            return line.removeprefix("ARG BASE=").strip()
    raise KvshareError("docker/Dockerfile has no ARG BASE= with a default: restore it.")


def _has_image(context: str, name: str) -> bool:
    command = ["docker", "--context", context, "image", "inspect", name]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def _pulls(context: str, name: str) -> bool:
    command = ["docker", "--context", context, "pull", "--quiet", name]
    try:
        return subprocess.run(command, capture_output=True, timeout=PULL_TIMEOUT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


# Starting and stopping


def up(settings: Settings, stack: Stack, node: str, timeout_s: float) -> None:
    """Start a node's services and wait until all are healthy.

    Raises:
        KvshareError: if something stands in the way, or a service gives up or is not healthy in time;
            with its last log lines.
    """
    members = members_of(stack, node)
    preflight.check_all(settings, stack, _not_running(settings, members))
    for context, services in by_context(members).items():
        # The client runs beside prefill, at the first verification.
        client = ["client"] if context == stack.prefill.context else []
        if missing := missing_images(settings, context, [*services, *client]):
            how = _how_to_get_it(settings, node)
            raise KvshareError(f"context {context} has no image {missing[0]}: {how}, then this again.")
    # All machines first, then the wait: each loads its model while the others do.
    for context, services in by_context(members).items():
        _start(settings, context, services)
    _wait_until_healthy(settings, members, timeout_s)


def _how_to_get_it(settings: Settings, node: str) -> str:
    elsewhere = "make pull" if settings.get("REGISTRY") else "make ship"
    return f"type make image NODE={node}, or {elsewhere} NODE={node} if it is built already"


def _not_running(settings: Settings, members: Sequence[Controller | Server]) -> list[Controller | Server]:
    found = _states_of(settings, members)
    return [m for m in members if not (m.name in found and found[m.name].state == "running")]


def down(settings: Settings, names: Iterable[str]) -> None:
    """Stop and remove every container of the stack on these contexts; volumes and images stay.

    Raises:
        KvshareError: as ``read_engine`` does, when the other contexts have been served.
    """
    failed: list[KvshareError] = []
    for context in names:
        try:
            contexts.read_engine(context)
            with step(f"Stop the stack on context {context}"):
                _compose(settings, context, "down", "--remove-orphans", "--timeout", "20")
        except KvshareError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise CouldNotCheckError(" ".join(error.message for error in failed))


def states(settings: Settings, context: str) -> list[ContainerState]:
    """The stack's containers on a context, running or not."""
    output = _compose(settings, context, "ps", "--all", "--format", "json")
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [ContainerState(row["Service"], row["Name"], row["State"], row["Health"]) for row in rows]


def last_lines(settings: Settings, context: str, service: str, lines: int = LOG_LINES) -> str:
    """The last log lines of a service."""
    return _compose(settings, context, "logs", "--no-log-prefix", "--tail", str(lines), service)


def _start(settings: Settings, context: str, services: Sequence[str]) -> None:
    with step(f"Start {', '.join(services)} on context {context}"):
        _compose(settings, context, "up", "--detach", "--no-build", *services)


def _wait_until_healthy(settings: Settings, members: Sequence[Controller | Server], timeout_s: float) -> None:
    names = [member.name for member in members]
    with step(f"Wait until {', '.join(names)} {'is' if len(names) == 1 else 'are'} healthy") as current:
        while True:
            found = _states_of(settings, members)
            waiting = [m for m in members if not (m.name in found and found[m.name].healthy)]
            if not waiting:
                return
            for member in waiting:
                if member.name in found and found[member.name].gave_up:
                    _give_up(settings, member, "ended by itself")
            if current.seconds > timeout_s:
                _give_up(settings, waiting[0], f"was not healthy within {timeout_s:.0f} s")
            current.detail(f"waiting for {', '.join(member.name for member in waiting)}")
            time.sleep(POLL_S)


def _states_of(settings: Settings, members: Sequence[Controller | Server]) -> dict[str, ContainerState]:
    """The members' containers by the member's name, of which two contexts may have one service each."""
    found = {
        (context, state.service): state
        for context in by_context(members)
        for state in states(settings, context)
    }
    return {m.name: found[m.context, m.service] for m in members if (m.context, m.service) in found}


def _give_up(settings: Settings, member: Controller | Server, what: str) -> None:
    raise KvshareError(
        f"{member.name} on context {member.context} {what}; its last log lines:\n"
        f"{last_lines(settings, member.context, member.service).rstrip()}\n"
        f"See more: docker --context {member.context} compose logs {member.service}"
    )


# Running commands


def _compose(settings: Settings, context: str, subcommand: str, *arguments: str) -> str:
    """Output of a short `docker compose` command; CouldNotCheckError carries what it said when it fails."""
    command = compose_command(context, "--profile", "*", subcommand, *arguments)
    result = subprocess.run(
        command, cwd=settings.root, env=settings.compose_environment(context), capture_output=True, text=True
    )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CouldNotCheckError(f"docker compose {subcommand} failed on context {context}: {reason}")
    return result.stdout


def _logged(
    command: Sequence[str], root: Path, environment: Mapping[str, str], log_name: str, current: Step
) -> None:
    """Run a long command; its output goes to a log and, line by line, into the step."""
    log = dockerd.state_dir(root) / log_name
    tail: list[str] = []
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                sink.write(line)
                if line.strip():
                    tail = [*tail[1 - LOG_LINES :], line.rstrip()]
                    current.detail(line.strip())
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.wait() != 0:
        raise KvshareError(f"{' '.join(command[:4])} … failed; the end of {log}:\n" + "\n".join(tail))
