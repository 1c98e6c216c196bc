"""The operator's side: what the Docker engines say of their containers, one explicit context a node."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from datetime import datetime
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container as DockerContainer
from docker.tls import TLSConfig
from docker.transport import sshconn

from kvshare.contract import FINGERPRINT, Fingerprint
from kvshare.errors import KvshareError
from kvshare.records import loads
from kvshare.site import contexts
from kvshare.stack.members import Stack
from kvshare.verify.evidence import Container, EngineProbe, Hit, Logs

API_TIMEOUT_S = 20
POLL_S = 1.0

# What comes when an engine is not there: from docker-py, requests, the socket, or the docker command.
ENGINE_ERRORS = (DockerException, requests.RequestException, OSError, subprocess.TimeoutExpired)
_HIT = re.compile(r"Reqid: (\S+?), Total tokens \d+, .*?LMCache hit tokens: (\d+)")
_OWNER_LOOKUP = re.compile(r"Received P2P batched lookup and get msg, lookup_id: (\S+)")
_LOOKUP_TIMEOUT = re.compile(r"Request (\S+) is still waiting for async lookup")
_TROUBLE = "missing|error|exception|invalid"
_CONTROLLER_ERROR = re.compile(rf"peer_init_url.*(?:{_TROUBLE})|(?:{_TROUBLE}).*peer_init_url", re.IGNORECASE)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class _SshSocket(sshconn.SSHSocket):
    """docker-py's, except that closing after ssh has ended is no error (7.2.0 loses the answer with it)."""

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            super().close()
        if self.proc is not None:
            self.proc.terminate()


sshconn.SSHSocket = _SshSocket  # type: ignore[misc]  # docker-py offers no other way in


class Engines:
    """Connections to the engines of a stack; use it as a context manager."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._clients: dict[str, docker.DockerClient] = {}
        self._errors: dict[str, str] = {}
        self._since: dict[str, int] = {}

    def __enter__(self) -> Engines:
        for context in self._stack.contexts:
            self._connect(context)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def probes(self) -> tuple[EngineProbe, ...]:
        """Return every engine, with the reason where it cannot be asked."""
        return tuple(EngineProbe(context, self._errors.get(context)) for context in self._stack.contexts)

    def containers(self) -> tuple[Container, ...]:
        """Return the containers of the controller and the servers, each with its fingerprint."""
        return tuple(self._describe(member.service, member.context) for member in self._stack.members)

    def wait_until_started(self, wait_s: float) -> None:
        """Return when no container is starting any more, or after ``wait_s`` seconds."""
        end = time.monotonic() + wait_s
        while any(c.state == "restarting" or c.health == "starting" for c in self._states()):
            if time.monotonic() >= end:
                return
            time.sleep(POLL_S)

    def logs(self) -> Logs:
        """Return what the logs say: lookups since the connection, the controller's errors since its start."""
        decode = self._log("decode", since_connection=True)
        owner = self._log("prefill", since_connection=True)
        controller = self._log("controller", since_connection=False)
        return Logs(
            decode_hits=None if decode is None else _hits(decode),
            owner_lookups=None if owner is None else tuple(_OWNER_LOOKUP.findall(owner)),
            controller_errors=None if controller is None else _errors(controller),
            lookup_timeouts=tuple(_LOOKUP_TIMEOUT.findall(f"{owner or ''}\n{decode or ''}")),
        )

    def tail(self, service: str, lines: int = 20) -> str:
        """Return the last lines of a service's log, or '' if it cannot be read."""
        try:
            container = self._find(service, self._stack.member(service).context)
            return "" if container is None else _text(container.logs(tail=lines))
        except ENGINE_ERRORS:
            return ""

    # --- one engine ---------------------------------------------------------------------------------------

    def _connect(self, context: str) -> None:
        try:
            client = connect(context)
            # The engine's own clock, so that `logs since` does not depend on ours.
            self._since[context] = _epoch(client.info()["SystemTime"])
            self._clients[context] = client
        except ENGINE_ERRORS as error:
            self._errors[context] = _sentence(error)

    def _find(self, service: str, context: str) -> DockerContainer | None:
        client = self._clients.get(context)
        if client is None:
            return None
        labels = [
            f"com.docker.compose.project={self._stack.project}",
            f"com.docker.compose.service={service}",
            "com.docker.compose.oneoff=False",
        ]
        found = client.containers.list(all=True, filters={"label": labels})
        return found[0] if found else None

    def _states(self) -> tuple[Container, ...]:
        return tuple(self._describe(m.service, m.context, fingerprint=False) for m in self._stack.members)

    def _describe(self, service: str, context: str, fingerprint: bool = True) -> Container:
        name = f"{self._stack.project}-{service}-1"
        try:
            container = self._find(service, context)
            if container is None:
                return Container(service, name, "missing", error=self._errors.get(context))
            state: dict[str, Any] = container.attrs["State"]
            read, error = _read_fingerprint(container) if fingerprint else (None, None)
            return Container(
                service=service,
                name=container.name or name,
                state=str(state["Status"]),
                health=str(state.get("Health", {}).get("Status", "")),
                exit_code=int(state.get("ExitCode", 0)),
                image_id=str(container.attrs["Image"]),
                fingerprint=read,
                error=error,
            )
        except ENGINE_ERRORS as error:
            return Container(service, name, "missing", error=_sentence(error))

    def _log(self, service: str, since_connection: bool) -> str | None:
        context = self._stack.member(service).context
        try:
            container = self._find(service, context)
            if container is None:
                return None
            return _text(container.logs(since=self._since[context] if since_connection else None))
        except ENGINE_ERRORS:
            return None


def connect(context: str) -> docker.DockerClient:
    """Return a client of a context's engine; DockerException if there is no such context or no answer.

    The docker command resolves the context. docker-py's own `from_context` takes the local engine, silently,
    for a name that it does not find, and it finds none where there is no ~/.docker/config.json (7.2.0).
    """
    try:
        endpoint = contexts.resolve(context)
    except KvshareError as error:
        raise DockerException(error.message) from None
    return docker.DockerClient(
        base_url=endpoint.address,
        tls=_tls(endpoint) or False,
        timeout=API_TIMEOUT_S,
        use_ssh_client=True,  # so that ~/.ssh/config holds
    )


def _tls(endpoint: contexts.Endpoint) -> TLSConfig | None:
    """Return the context's certificates, or None if it has none."""
    ca, cert, key = (endpoint.tls_folder / f"{name}.pem" for name in ("ca", "cert", "key"))
    if not ca.is_file() and not cert.is_file():
        return None
    return TLSConfig(
        client_cert=(str(cert), str(key)) if cert.is_file() else None,
        ca_cert=str(ca) if ca.is_file() else None,
        verify=not endpoint.skip_tls_verify,
    )


def _read_fingerprint(container: DockerContainer) -> tuple[Fingerprint | None, str | None]:
    """Return the fingerprint, or None and why it cannot be read."""
    if container.status != "running":
        return None, f"{container.name} is not running"
    try:
        code, output = container.exec_run(["cat", FINGERPRINT])
        assert isinstance(output, bytes), "exec_run streams only when asked to"
    except (APIError, NotFound) as error:
        return None, _sentence(error)
    if code != 0:
        return None, f"{FINGERPRINT} is not in {container.name}"
    try:
        return loads(Fingerprint, output, ignore_unknown=True), None
    except ValueError as error:
        return None, f"{FINGERPRINT} in {container.name} makes no sense: {error}"


def _hits(log: str) -> tuple[Hit, ...]:
    return tuple(Hit(request, int(tokens)) for request, tokens in _HIT.findall(log))


def _errors(log: str) -> tuple[str, ...]:
    return tuple(line.strip()[:300] for line in log.splitlines() if _CONTROLLER_ERROR.search(line))


def _text(raw: bytes) -> str:
    return _ANSI.sub("", raw.decode("utf-8", errors="replace"))


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _epoch(timestamp: str) -> int:
    """Return whole seconds since 1970 of an engine's RFC 3339 time, whose fraction may have nine digits."""
    return int(datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", timestamp)).timestamp())
