"""A stack that runs in containers: its engines asked all at once, its client run by Compose."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kvshare.config import keys
from kvshare.config.settings import Settings
from kvshare.contract import FINGERPRINT, IDENTITY
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site import compose
from kvshare.site.attached import EngineError, ProcessError
from kvshare.site.base import NONE, Started, State, Variables, answered, at_once, start_client
from kvshare.site.engine import engine
from kvshare.stack.members import Member, Stack, by_context

STOP_S = 15.0


class Containers:
    """The Site of a stack's containers, wherever their engines are."""

    def __init__(self, stack: Stack, settings: Settings, members: Sequence[Member] | None = None) -> None:
        """Look at the engines; from now on their logs count, by each engine's own clock.

        Args:
            members: look only at these, and ask only their engines.
        """
        self.stack, self.settings = stack, settings
        self.members = stack.members if members is None else tuple(members)
        self.silent: Mapping[str, KvshareError] = {}
        self.found: dict[str, State] = {}  # at the last look
        self._since: dict[str, int] = {}
        self.look()

    def look(self) -> Mapping[str, State]:
        """Return how the members are now; an engine that does not answer is in ``silent``."""
        found, self.silent = at_once(self._containers, by_context(self.members))
        self.found = {
            member.name: _state(found[member.context][member.service])
            for member in self.members
            if member.service in found.get(member.context, {})
        }
        return self.found

    def container(self, member: Member) -> str:
        """Return the id of a member's container."""
        if member.name not in self.found:
            missing = CouldNotCheckError(f"{member.name} has no container on context {member.context}.")
            raise self.silent.get(member.context, missing)
        return str(self.found[member.name].described["Id"])

    def log(self, member: Member, whole: bool = False) -> str:
        """Return a member's log, standard error included."""
        container = self.container(member)
        since = {} if whole else {"since": self._since[member.context]}
        return engine(member.context).log(container, **since)

    def beside(self, member: Member, *command: str, environment: Variables = NONE) -> Started:
        """Run a command in a member's container."""
        return engine(member.context).inside(self.container(member), *command, environment=environment)

    def fingerprint(self, member: Member) -> str:
        """Return the file that the engine image's entrypoint writes."""
        return self._file(member, FINGERPRINT)

    def identity(self, member: Member) -> str:
        """Return the file that a server's LMCache writes."""
        return self._file(member, IDENTITY)

    def _file(self, member: Member, path: str) -> str:
        try:
            return answered(self.beside(member, "cat", path))
        except ProcessError:
            name = self.found[member.name].name
            raise EngineError(member.context, f"{path} is not in {name}") from None

    @contextmanager
    def client(self, subcommand: str, task: object) -> Iterator[subprocess.Popen[str]]:
        """Run the client's container; its progress goes to our stderr, the keys into its input."""
        context = self.stack.prefill.context
        name = f"{self.stack.project}-{subcommand}-{os.getpid()}"
        options, said = keys.handed(self.settings.api_key, self.settings.cluster_key)
        process = start_client(
            compose.client(context, name, subcommand, task, options),
            said,
            cwd=self.settings.root,
            env=self.settings.compose_environment(context),
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                self._end(process, context, name)

    @staticmethod
    def _end(process: subprocess.Popen[str], context: str, container: str) -> None:
        with contextlib.suppress(CouldNotCheckError):
            engine(context).remove(container)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _containers(self, context: str) -> dict[str, dict[str, Any]]:
        about = engine(context).supported()
        self._since.setdefault(context, int(about.clock_s))
        return engine(context).containers(self.stack.project)


def _state(described: Mapping[str, Any]) -> State:
    state = described["State"]
    return State(
        name=str(described["Name"]).lstrip("/"),
        status=str(state["Status"]),
        health=str((state.get("Health") or {}).get("Status", "")),
        exit_code=int(state.get("ExitCode", 0)),
        image_id=str(described["Image"]),
        described=described,
    )
