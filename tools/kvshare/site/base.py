"""The place where a stack runs, whatever it is: containers on engines, or plain processes."""

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from kvshare.config.settings import Settings
from kvshare.contract import Fingerprint
from kvshare.errors import KvshareError
from kvshare.records import loads
from kvshare.stack.members import Cache, Controller, Member, Stack

T = TypeVar("T")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TIMEOUT_S = 60.0
FETCH_TIMEOUT_S = 30.0
_FETCH = (  # whatever proxy Docker gives its containers
    "import sys, urllib.request as u; direct = u.build_opener(u.ProxyHandler({})); "
    "sys.stdout.buffer.write(direct.open(sys.argv[1], timeout=10).read())"
)


@dataclass(frozen=True)
class State:
    """How a member is; ``described`` is what its engine says of its container, as `docker inspect` has it."""

    name: str
    status: str  # running, exited, … in Docker's words
    health: str = ""
    exit_code: int = 0
    image_id: str = ""
    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """Whether it runs and its own check says so."""
        return self.status == "running" and self.health == "healthy"

    @property
    def last_check(self) -> str:
        """What its own check said last."""
        checks = (self.described.get("State", {}).get("Health") or {}).get("Log") or ()
        return str(checks[-1]["Output"]).strip() if checks else ""


class Process(Protocol):
    """A command that runs; each raises CouldNotCheckError if it fails or takes too long."""

    def answer(self, said: str, timeout_s: float) -> str:
        """Say all that it reads, and return all that it prints."""

    def first_line(self) -> str:
        """Return what it prints first."""

    def end(self) -> None:
        """End its input, and give it some time to end by that."""


Started = AbstractContextManager[Process]
Variables = Mapping[str, str]
NONE: Variables = MappingProxyType({})


class Site(Protocol):
    """Where the members of a stack run, and how to ask them.

    Whatever asks raises CouldNotCheckError where the answer cannot be had.
    """

    stack: Stack
    settings: Settings
    silent: Mapping[str, KvshareError]  # why those contexts' engines gave nothing at the last look

    def look(self) -> Mapping[str, State]:
        """Return how the members are now, by name; of those that are not there, nothing."""

    def log(self, member: Member, whole: bool = False) -> str:
        """Return what a member has printed since this site was opened, or since its own start."""

    def beside(self, member: Member, *command: str, environment: Variables = NONE) -> Started:
        """Run a command where a member runs."""

    def fingerprint(self, member: Member) -> str:
        """Return what a member wrote of itself at its start."""

    def identity(self, member: Member) -> str:
        """Return what a server wrote of the model that it serves."""

    def client(self, subcommand: str, task: object) -> AbstractContextManager[subprocess.Popen[str]]:
        """Run the tool's own ``subcommand`` beside prefill on a record; it is gone when this is left."""


@contextmanager
def held(started: Started) -> Iterator[str]:
    """Keep a process until the block ends, and end it then; yield its first line."""
    with started as process:
        try:
            yield process.first_line()
        finally:
            process.end()


def answered(started: Started, said: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Return what a process prints that reads ``said``."""
    with started as process:
        return process.answer(said, timeout_s)


def fetch(beside: Callable[..., Started], url: str) -> str:
    """Return what a URL answers where ``beside`` runs a command."""
    return answered(beside("python", "-c", _FETCH, url), timeout_s=FETCH_TIMEOUT_S)


def told(site: Site, member: Member, path: str) -> str:
    """Return what a member answers to a GET, asked where it runs and has its key."""
    if isinstance(member, Controller | Cache):
        ask = ("python", "-m", "kvshare_engine", "ask", path)
        return answered(site.beside(member, *ask), timeout_s=FETCH_TIMEOUT_S)
    return fetch(partial(site.beside, member), f"{member.url}{path}")


def start_client(command: Sequence[str], said: str, **more: Any) -> subprocess.Popen[str]:
    """Start a client that prints its evidence and has read what is said; Ctrl-C reaches us alone."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True, **more)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as keys:
        keys.write(said)
    process.stdin = None
    return process


def uncoloured(text: str) -> str:
    """Return a text without the escape sequences that colour it."""
    return _COLOUR.sub("", text)


def last_line(said: str) -> str:
    """Return the last thing that a failed program said, on one line and without a full stop."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " ".join((lines or ["no reason given"])[-1].split())[-400:].rstrip(".")


def fingerprint_of(said: str) -> Fingerprint:
    """Return what a member wrote of itself, of another version too; ValueError if it makes no sense."""
    return loads(Fingerprint, said, ignore_unknown=True)


def reason_of(error: KvshareError) -> str:
    """Return why an engine gave nothing, without its context and what to type, which stand beside it."""
    return str(getattr(error, "reason", error.message))


def at_once(ask: Callable[[str], T], names: Iterable[str]) -> tuple[dict[str, T], dict[str, KvshareError]]:
    """Ask for every name in a thread of its own; return the answers, and why the others gave none."""
    answers: dict[str, T] = {}
    errors: dict[str, KvshareError] = {}

    def one(name: str) -> None:
        try:
            answers[name] = ask(name)
        except KvshareError as error:
            errors[name] = error

    names = list(names)
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        list(pool.map(one, names))
    return {n: answers[n] for n in names if n in answers}, {n: errors[n] for n in names if n in errors}
