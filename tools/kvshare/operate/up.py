"""Start a node and wait until it is healthy."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvshare.config.settings import Settings
from kvshare.errors import KvshareError
from kvshare.operate.build import missing_images
from kvshare.progress import step
from kvshare.site import compose
from kvshare.stack.members import Member, Stack, by_context, members_of

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


def start(settings: Settings, stack: Stack, node: str, timeout_s: float) -> None:
    """Start a node's services and wait until all are healthy.

    Raises:
        KvshareError: if an image is missing, or a service gives up or is not healthy in time; with its last
            log lines.
    """
    members = members_of(stack, node)
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


def states(settings: Settings, context: str) -> list[ContainerState]:
    """The stack's containers on a context, running or not."""
    output = compose.run(settings, context, "ps", "--all", "--format", "json")
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [ContainerState(row["Service"], row["Name"], row["State"], row["Health"]) for row in rows]


def last_lines(settings: Settings, context: str, service: str, lines: int = LOG_LINES) -> str:
    """The last log lines of a service."""
    return compose.run(settings, context, "logs", "--no-log-prefix", "--tail", str(lines), service)


def _start(settings: Settings, context: str, services: Sequence[str]) -> None:
    with step(f"Start {', '.join(services)} on context {context}"):
        compose.run(settings, context, "up", "--detach", "--no-build", *services)


def _wait_until_healthy(settings: Settings, members: Sequence[Member], timeout_s: float) -> None:
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


def _states_of(settings: Settings, members: Sequence[Member]) -> dict[str, ContainerState]:
    """The members' containers by the member's name, of which two contexts may have one service each."""
    found = {
        (context, state.service): state
        for context in by_context(members)
        for state in states(settings, context)
    }
    return {m.name: found[m.context, m.service] for m in members if (m.context, m.service) in found}


def _give_up(settings: Settings, member: Member, what: str) -> None:
    raise KvshareError(
        f"{member.name} on context {member.context} {what}; its last log lines:\n"
        f"{last_lines(settings, member.context, member.service).rstrip()}\n"
        f"See more: docker --context {member.context} compose logs {member.service}"
    )
