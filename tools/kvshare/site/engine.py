"""A Docker engine behind its context, through the Docker SDK: what runs there, its logs, its images."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal
from urllib.parse import urlsplit

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit
from docker.types.daemon import CancellableStream
from docker.utils import parse_repository_tag

from kvshare.errors import KvshareError
from kvshare.site import contexts
from kvshare.site.attached import Attached, EngineError
from kvshare.site.base import NONE, TIMEOUT_S, Variables, last_line, uncoloured
from kvshare.site.transport import DialedAdapter

ANSWER_TIMEOUT_S = 20.0  # for an engine to say who it is; docker lets ssh try for 30 s, and tries it twice
API_VERSION = "1.44"  # what Engine 25 speaks, and 29 still does
BLOCK_BYTES = 1 << 20
EXIT_S, POLL_S = 10.0, 0.05
UNKNOWN_KEY = ("Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED")
# What keeps containers from the machine's own network, by the engine's security option; and what to do.
APART = {
    "userns": (
        "runs containers as other users (userns-remap), and then none on that network",
        "take userns-remap out of /etc/docker/daemon.json there, and restart Docker",
    ),
    "rootless": (
        "is rootless, with a network of its own that no other machine reaches",
        "take a context of the machine's own engine, unix:///var/run/docker.sock there",
    ),
}
# What comes when an engine is not there: from docker-py, requests, urllib3 beneath it, or the socket.
SILENCE = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)


@dataclass(frozen=True)
class About:
    """What an engine says of itself; its clock in seconds since 1970, ``root`` is the folder of its data.

    ``apart``: what keeps its containers from the machine's own network, a key of ``APART``, or nothing.
    """

    host: str
    version: str
    clock_s: float
    runtimes: tuple[str, ...]
    root: str
    apart: str = ""


Kind = Literal["bind", "volume"]


@dataclass(frozen=True)
class Place:
    """What a container gets beside its image: what Compose gives the service in whose place it runs."""

    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[tuple[Kind, str, str], ...] = ()  # with source and target; to be read only
    ulimits: tuple[tuple[str, int, int], ...] = ()  # name, soft, hard
    cap_add: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    gpus: bool = False


class Following:
    """A log that is followed: lines until it is closed, or its container or engine goes away."""

    def __init__(self, pieces: "CancellableStream[bytes]") -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        rest = b""
        with suppress(*SILENCE, ValueError, AttributeError):  # as another thread closes it
            for piece in self._pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield uncoloured(line.decode(errors="replace"))

    def close(self) -> None:
        """End it; whoever waits for the next line gets none."""
        with suppress(OSError):
            self._pieces.close()


class Engine:
    """One engine. Every method raises EngineError if it does not answer or refuses, and says why."""

    def __init__(self, context: str) -> None:
        """Prepare, asking nothing of it; KvshareError if Docker knows no such context."""
        self.context = context
        self.endpoint = contexts.resolve(context)

    def about(self) -> About:
        """Return what it says of itself, however old it is; KvshareError if its host's key is unknown."""
        with self._asked(ANSWER_TIMEOUT_S):
            answer = self._api.get(f"{self._api.base_url}/info", timeout=ANSWER_TIMEOUT_S)
            answer.raise_for_status()
            found = answer.json()
            return About(
                host=found["Name"],
                version=found["ServerVersion"],
                clock_s=contexts.seconds_of(found["SystemTime"]),
                runtimes=tuple(sorted(found.get("Runtimes") or ())),
                root=found["DockerRootDir"],
                apart=next((name for name in APART if f"name={name}" in _options(found)), ""),
            )

    def supported(self) -> About:
        """Return the same; KvshareError if it is too old, or its containers are apart."""
        about = self.about()
        if contexts.version_of(about.version) < contexts.MINIMUM_ENGINE:
            wanted = ".".join(map(str, contexts.MINIMUM_ENGINE))
            raise KvshareError(
                f"context {self.context}: expected Docker Engine {wanted} or newer on {about.host} and found "
                f"{about.version}: upgrade it there, e.g. with make setup in a clone on that machine."
            )
        if about.apart:
            found, instead = APART[about.apart]
            raise KvshareError(
                f"context {self.context}: expected containers on the machine's own network and found that "
                f"the engine on {about.host} {found}: {instead}."
            )
        return about

    def version(self) -> dict[str, Any]:
        """Return the versions of its parts, and what processors it runs on."""
        with self._asked():
            return self._api.version()

    def volumes(self) -> tuple[str, ...]:
        """Return the names of its volumes."""
        with self._asked():
            return tuple(volume["Name"] for volume in self._api.volumes()["Volumes"] or ())

    # --- containers ---------------------------------------------------------------------------------------

    def containers(self, project: str) -> dict[str, dict[str, Any]]:
        """Return a project's containers by service, as `docker inspect` has them, but for those of `run`."""
        labels = [f"com.docker.compose.project={project}", "com.docker.compose.oneoff=False"]
        found = {}
        with self._asked():
            for listed in self._api.containers(all=True, filters={"label": labels}):
                service = listed["Labels"]["com.docker.compose.service"]
                with suppress(NotFound):  # it went away in between
                    found[service] = self._api.inspect_container(listed["Id"])
        return found

    def log(self, container: str, **selection: Any) -> str:
        """Return a container's log; ``selection`` may hold since (seconds since 1970), tail, timestamps."""
        with self._asked():
            text: bytes = self._api.logs(container, **selection)
            return uncoloured(text.decode(errors="replace"))

    def follow(self, container: str, **selection: Any) -> Following:
        """Return a container's log as it comes; the same selection."""
        with self._asked():
            return Following(self._api.logs(container, stream=True, follow=True, **selection))

    @contextmanager
    def inside(self, container: str, *command: str, environment: Variables = NONE) -> Iterator[Attached]:
        """Run a command in a running container."""
        with self._asked():
            made = self._api.exec_create(container, [*command], stdin=True, environment=dict(environment))
            stream = self._api.exec_start(made["Id"], socket=True)
        process = Attached(self.context, stream, lambda: self._exit_code(made["Id"]))
        try:
            yield process
        finally:
            process.close()

    @contextmanager
    def once(
        self, image: str, arguments: Iterable[str], place: Place, name: str, labels: Mapping[str, str]
    ) -> Iterator[Attached]:
        """Run a container that is gone when this is left; its engine removes it if we are gone first."""
        process = None
        try:
            with self._asked():
                self._create(image, arguments, place, name, labels)
                stream = self._api.attach_socket(name, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
                # Asked before it starts: once it has ended there is nothing left to ask.
                url = f"{self._api.base_url}/v{API_VERSION}/containers/{name}/wait"
                removed = self._patient.post(url, params={"condition": "removed"}, stream=True)
                process = Attached(self.context, stream, lambda: int(removed.json()["StatusCode"]))
                self._api.start(name)
            yield process
        finally:
            if process is not None:
                process.close()
            if process is None or not process.ended:
                self.remove(name)

    def _create(
        self, image: str, arguments: Iterable[str], place: Place, name: str, labels: Mapping[str, str]
    ) -> None:
        host = self._api.create_host_config(
            auto_remove=True,
            init=True,  # without it the kernel keeps the probe's own alarm from ending it
            network_mode="host",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            log_config=LogConfig(type="none"),
            mounts=[Mount(target, source, kind, read_only=True) for kind, source, target in place.mounts],
            ulimits=[Ulimit(name=limit, soft=soft, hard=hard) for limit, soft, hard in place.ulimits],
            cap_add=list(place.cap_add),
            devices=list(place.devices),
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if place.gpus else [],
        )
        self._api.create_container(
            image, list(arguments), stdin_open=True, environment=dict(place.environment),
            name=name, labels=dict(labels), host_config=host,
        )  # fmt: skip

    def labelled(self, label: str) -> tuple[str, ...]:
        """Return the ids of all containers with a label."""
        with self._asked():
            return tuple(found["Id"] for found in self._api.containers(all=True, filters={"label": label}))

    def remove(self, container: str) -> None:
        """Remove a container, whatever it does, if it is there."""
        with self._asked(), suppress(APIError):
            self._api.remove_container(container, force=True)

    # --- images -------------------------------------------------------------------------------------------

    def image(self, name: str) -> dict[str, Any] | None:
        """Return an image as `docker image inspect` has it, or None."""
        with self._asked():
            try:
                found: dict[str, Any] = self._api.inspect_image(name)  # type: ignore[no-untyped-call]
            except ImageNotFound:
                return None
            return found

    def save(self, name: str) -> Iterator[bytes]:
        """Yield an image's archive."""
        with self._asked():
            yield from self._patient.get_image(name, chunk_size=BLOCK_BYTES)

    def load(self, archive: Iterable[bytes]) -> None:
        """Load an archive; nothing is loaded if it ends early."""
        with self._asked():
            for _ in self._told(self._patient.load_image(archive)):  # type: ignore[no-untyped-call]
                pass

    def tag(self, image: str, name: str) -> None:
        """Give an image another name."""
        with self._asked():
            self._api.tag(image, *parse_repository_tag(name))

    def push(self, name: str) -> Iterator[str]:
        """Push an image to its name's registry, and yield what the engine says meanwhile."""
        with self._asked():
            yield from self._told(self._patient.push(name, stream=True, decode=True))

    def pull(self, name: str) -> Iterator[str]:
        """Pull an image; the same."""
        with self._asked():
            yield from self._told(self._patient.pull(name, stream=True, decode=True))

    def _told(self, lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        for line in lines:
            if "error" in line:
                raise EngineError(self.context, " ".join(str(line["error"]).split()).rstrip("."))
            yield " ".join(str(line[key]) for key in ("id", "status", "progress") if key in line)

    # --- the way to it ------------------------------------------------------------------------------------

    @cached_property
    def _api(self) -> docker.APIClient:
        return self._client(TIMEOUT_S)

    @cached_property
    def _patient(self) -> docker.APIClient:
        """For what may take as long as it likes."""
        return self._client(None)

    def _client(self, timeout_s: float | None) -> docker.APIClient:
        """Return docker-py's client, which asks nothing by itself where it is told the version."""
        local = self.endpoint.address if self.endpoint.is_local else "unix:///dialed"
        client = docker.APIClient(local, version=API_VERSION, timeout=timeout_s)  # type: ignore[arg-type]
        if not self.endpoint.is_local:
            client.mount("http+docker://", self._dialed)
        return client

    @cached_property
    def _dialed(self) -> DialedAdapter:
        return DialedAdapter(self.context)

    def _exit_code(self, started: str) -> int:
        """Return an exec's exit code, which the engine may come to know a moment after its output's end."""
        deadline = time.monotonic() + EXIT_S
        with self._asked():
            while (code := self._api.exec_inspect(started)["ExitCode"]) is None:
                if time.monotonic() > deadline:
                    raise EngineError(self.context, "a process in a container goes on without an output")
                time.sleep(POLL_S)
            return int(code)

    @contextmanager
    def _asked(self, limit_s: float = TIMEOUT_S) -> Iterator[None]:
        """Turn what comes of asking an engine into a sentence."""
        try:
            yield
        except APIError as error:
            raise EngineError(self.context, last_line(str(error.explanation or error))) from None
        except requests.Timeout:
            raise self._silent(f"nothing within {limit_s:.0f} s") from None
        except SILENCE as error:
            said = "" if self.endpoint.is_local else self._dialed.said()
            raise self._silent(said or _cause(error)) from None

    def _silent(self, reason: str) -> KvshareError:
        if any(sign in reason for sign in UNKNOWN_KEY):
            url = urlsplit(self.endpoint.address)
            port = f" -p {url.port}" if url.port else ""
            return KvshareError(
                f"context {self.context}: ssh does not know the host key of {url.hostname}: type "
                f"ssh-keyscan{port} {url.hostname} >> ~/.ssh/known_hosts, and compare the key with that "
                "machine's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)."
            )
        reason = " ".join(reason.rpartition("stderr=")[2].split())[-300:]  # ssh's own words, where it is ssh
        return EngineError(
            self.context,
            f"no Docker engine answers at {self.endpoint.address} ({reason})",
            f"type docker --context {self.context} version",
        )


def _options(info: Mapping[str, Any]) -> set[str]:
    return {option.split(",")[0] for option in info.get("SecurityOptions") or ()}


@cache
def engine(context: str) -> Engine:
    """Return the engine behind a context, its connections kept; KvshareError if there is no such context."""
    return Engine(context)


def _cause(error: BaseException) -> str:
    """Return what the system said beneath the libraries' words."""
    while isinstance(error, BaseException):
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if error.__context__ is None:
            break
        error = error.__context__
    return str(error) or type(error).__name__
