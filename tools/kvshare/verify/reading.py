"""What the place where the stack runs says, as evidence: engines, containers and fingerprints, logs."""

import re
import time
from dataclasses import replace

from kvshare.contract import FINGERPRINT, Fingerprint
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.records import loads
from kvshare.site.base import Site, State, fingerprint_of, reason_of
from kvshare.stack.members import EngineMember, Member, Server
from kvshare.verify.evidence import Container, EngineProbe, Hit, Logs

POLL_S = 1.0
_HIT = re.compile(r"Reqid: (\S+?), Total tokens \d+, .*?LMCache hit tokens: (\d+)")
_OWNER_LOOKUP = re.compile(r"Received P2P batched lookup and get msg, lookup_id: (\S+)")
_LOOKUP_TIMEOUT = re.compile(r"Request (\S+) is still waiting for async lookup")
_TROUBLE = "missing|error|exception|invalid"
_CONTROLLER_ERROR = re.compile(rf"peer_init_url.*(?:{_TROUBLE})|(?:{_TROUBLE}).*peer_init_url", re.IGNORECASE)


def await_started(site: Site, wait_s: float) -> None:
    """Return when no member is starting any more, or after ``wait_s`` seconds."""
    end = time.monotonic() + wait_s
    while any(s.status == "restarting" or s.health == "starting" for s in site.look().values()):
        if time.monotonic() >= end:
            return
        time.sleep(POLL_S)


def engines(site: Site) -> tuple[EngineProbe, ...]:
    """Return every engine, with the reason where it cannot be asked."""
    return tuple(
        EngineProbe(context, reason_of(site.silent[context]) if context in site.silent else None)
        for context in site.stack.contexts
    )


def containers(site: Site) -> tuple[Container, ...]:
    """Return the containers of the controller and the servers, each with its fingerprint."""
    found = site.look()
    return tuple(_container(site, member, found.get(member.name)) for member in site.stack.engines)


def logs(site: Site) -> Logs:
    """Return what the logs say: lookups since we came, the controller's errors since its start."""
    decode = _log(site, site.stack.decode)
    owner = _log(site, site.stack.prefill)
    controller = _log(site, site.stack.controller, whole=True)
    return Logs(
        decode_hits=None if decode is None else _hits(decode),
        owner_lookups=None if owner is None else tuple(_OWNER_LOOKUP.findall(owner)),
        controller_errors=None if controller is None else _errors(controller),
        lookup_timeouts=tuple(_LOOKUP_TIMEOUT.findall(f"{owner or ''}\n{decode or ''}")),
    )


def _container(site: Site, member: EngineMember, state: State | None) -> Container:
    if state is None:
        error = site.silent.get(member.context)
        name = site.stack.container_of(member)
        return Container(member.service, name, "missing", error=None if error is None else reason_of(error))
    fingerprint, reason = _fingerprint(site, member, state)
    told = (state.name, state.status, state.health, state.exit_code, state.image_id)
    return Container(member.service, *told, fingerprint, reason)


def _fingerprint(site: Site, member: EngineMember, state: State) -> tuple[Fingerprint | None, str | None]:
    """Return the fingerprint, or None and why it cannot be read."""
    if state.status != "running":
        return None, f"{state.name} is not running"
    try:
        fingerprint = fingerprint_of(site.fingerprint(member))
        return replace(fingerprint, identity=_identity(site, member)), None
    except CouldNotCheckError as error:
        return None, reason_of(error)
    except ValueError as error:
        return None, f"{FINGERPRINT} in {state.name} makes no sense: {error}"


def _identity(site: Site, member: Member) -> dict[str, str]:
    """Return what the model's part in a server's keys is made of; nothing where that is not written."""
    try:
        return loads(dict[str, str], site.identity(member)) if isinstance(member, Server) else {}
    except (CouldNotCheckError, ValueError):
        return {}


def _log(site: Site, member: Member, whole: bool = False) -> str | None:
    try:
        return site.log(member, whole)
    except KvshareError:
        return None


def _hits(log: str) -> tuple[Hit, ...]:
    return tuple(Hit(request, int(tokens)) for request, tokens in _HIT.findall(log))


def _errors(log: str) -> tuple[str, ...]:
    return tuple(line.strip()[:300] for line in log.splitlines() if _CONTROLLER_ERROR.search(line))
