"""Docker engines of our own: what the Docker SDK asks of them goes over a real socket, and streams as theirs.

`FakeDocker` puts a `docker` on PATH that knows its contexts and leads to their engines, as the real one does
to those of other machines. Each context is a folder with `images.json` (name: inspected image),
`containers.json` (id: inspected container), `logs/ID`, `exec.json` (last argument: output), `run` (a shell
script: what a container does that is started), `calls` (method and path of each request, a line each). Files
named after a fault make the engine faulty: `down` (holds what is complained
of), `silent`, `broken`, `at-once`, `slow-save`, `cut-save`, `full-disk`.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

END = b"the end of the archive"
BLOCK = 1 << 16
STDOUT, STDERR = 1, 2
DOCKER = """#!{python} -IS
import json, os, socket, sys, threading
engines, arguments = {engines!r}, sys.argv[1:]
def fail(sentence):
    sys.stderr.write(sentence + "\\n")
    sys.exit(1)
if arguments[:2] == ["context", "inspect"]:
    if not os.path.isdir(f"{{engines}}/{{arguments[2]}}"):
        fail("context not found")
    address = f"{{engines}}/{{arguments[2]}}/address"
    host = open(address).read() if os.path.exists(address) else f"ssh://{{arguments[2]}}"
    print(json.dumps({{"Endpoints": {{"docker": {{"Host": host}}}}}}))
elif arguments[:2] == ["compose", "version"]:
    print("2.26.1")
elif arguments == ["--version"]:
    print("Docker version 28.2.2, build e6534b4")
else:
    assert arguments[0] == "--context" and arguments[2:] == ["system", "dial-stdio"], arguments
    engine = f"{{engines}}/{{arguments[1]}}"
    if os.path.exists(f"{{engine}}/down"):
        fail(open(f"{{engine}}/down").read() or "Cannot connect to the Docker daemon at unix:///nowhere.")
    far = socket.socket(socket.AF_UNIX)
    try:
        far.connect(open(f"{{engine}}/socket").read())
    except OSError as error:
        fail(str(error))
    def pump():
        while data := os.read(0, 65536):
            far.sendall(data)
        far.shutdown(socket.SHUT_WR)
    threading.Thread(target=pump, daemon=True).start()
    while data := far.recv(65536):
        os.write(1, data)
"""


class FakeDocker:
    """The engines, as a test sets them up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "engines"
        self.folder.mkdir()
        program = folder / "bin" / "docker"
        program.parent.mkdir(parents=True)
        program.write_text(DOCKER.format(python=sys.executable, engines=str(self.folder)))
        program.chmod(0o755)
        self.path = f"{program.parent}:{os.environ['PATH']}"
        self._sockets = tempfile.TemporaryDirectory(prefix="kv")  # a socket's path must be short
        self._servers: list[_Server] = []

    def engine(self, context: str, *faults: str) -> Path:
        """Return a context's folder, made on first use."""
        engine = self.folder / context
        (engine / "logs").mkdir(parents=True, exist_ok=True)
        if not (engine / "socket").exists():
            server = _Server(f"{self._sockets.name}/{context}", engine)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            (engine / "socket").write_text(f"{self._sockets.name}/{context}")
            self._servers.append(server)
        for fault in faults:
            (engine / fault).touch()
        return engine

    def close(self) -> None:
        """End the engines."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._sockets.cleanup()

    def add_image(self, context: str, name: str, number: str, created: str = "2026-11-24T08:00:00Z") -> None:
        """Give an engine an image; ``number`` makes it the same or another one."""
        engine = self.engine(context)
        images = _read(engine / "images.json")
        images[name] = image(number, created)
        (engine / "images.json").write_text(json.dumps(images))

    def image_ids(self, context: str) -> dict[str, str]:
        """Return ids by name."""
        return {name: found["Id"] for name, found in _read(self.engine(context) / "images.json").items()}

    def add_container(self, context: str, service: str, log: str = "", **more: Any) -> str:
        """Give an engine a running container; return its id."""
        engine = self.engine(context)
        containers = _read(engine / "containers.json")
        identity = f"{service}-id"
        containers[identity] = container(service, identity, **more)
        (engine / "containers.json").write_text(json.dumps(containers))
        (engine / "logs" / identity).write_text(log)
        return identity

    def answers(self, context: str, **by_last_argument: str) -> None:
        """Set what `docker exec` prints, by its last argument."""
        (self.engine(context) / "exec.json").write_text(json.dumps(by_last_argument))

    def runs(self, context: str, script: str) -> None:
        """Set what a container does that is started."""
        (self.engine(context) / "run").write_text(script)

    def calls(self, context: str) -> list[str]:
        """Return the requests so far, each as its method and path, and the body of what made something."""
        calls = self.engine(context) / "calls"
        return calls.read_text().splitlines() if calls.exists() else []


def image(number: str, created: str) -> dict[str, Any]:
    """Return what `docker image inspect` says of an image."""
    return {
        "Id": f"sha256:{number * 32}",
        "Size": 20 * BLOCK,
        "Created": created,
        "Architecture": "amd64",
        "Config": {"Labels": {"org.opencontainers.image.version": "0.1.0"}},
        "RootFS": {"Layers": [f"sha256:{number}"]},
    }


def container(service: str, identity: str, **more: Any) -> dict[str, Any]:
    """Return what `docker inspect` says of a container."""
    labels = {"com.docker.compose.project": "kvshare", "com.docker.compose.service": service}
    state = {
        "Status": "running",
        "Running": True,
        "ExitCode": 0,
        "Health": {"Status": "healthy"},
        "StartedAt": "2026-11-24T08:00:00.123456789Z",
    }
    return {
        "Id": identity,
        "Name": f"/kvshare-{service}-1",
        "Image": "sha256:" + "ab" * 32,
        "State": {**state, **more.get("state", {})},
        "Config": {
            "Labels": labels,
            "Image": "kvshare/engine-cpu:0.1.0",
            "Env": more.get("env", []),
            "Tty": False,
        },
    }


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, engine: Path) -> None:
        super().__init__(path, _Handler)
        self.engine = engine
        self.execs: dict[str, list[str]] = {}
        self.started: dict[str, _Started] = {}


class _Started:
    """A container that was created, and is gone when its process ends."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.process: subprocess.Popen[bytes] | None = None
        self.begun, self.gone = threading.Event(), threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_DELETE = do_GET  # noqa: N815

    def _handle(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0].startswith("v1."):
            del parts[0]
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.engine = self.server.engine
        loads = parts == ["images", "load"]
        body = b"" if loads else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with (self.engine / "calls").open("a") as calls:
            calls.write(f"{self.command} /{'/'.join(parts)} {url.query} {body.decode()}\n")
        if (self.engine / "silent").exists():
            time.sleep(5)
        name = parts[0] if len(parts) == 1 else f"{parts[0]}_{parts[-1]}"
        if parts[0] == "containers" and parts[-1] not in ("create",) and self.command == "DELETE":
            name = "containers_delete"
        getattr(self, f"_{name}")("/".join(parts[1:-1]) or parts[-1], json.loads(body or b"{}"))

    # --- answering ----------------------------------------------------------------------------------------

    def _json(self, data: Any, status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, message: str, status: int = 500) -> None:
        self._json({"message": message}, status)

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _hijack(self, said: bytes = b"", headers: bool = True) -> None:
        upgraded = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        self.wfile.write((upgraded if headers else b"") + said)
        self.wfile.flush()
        self.close_connection = True

    # --- the engine ---------------------------------------------------------------------------------------

    def _info(self, *_: Any) -> None:
        told = {"Name": self.engine.name, "ServerVersion": "26.1.5", "DockerRootDir": "/", "Runtimes": {}}
        self._json(
            {**told, "SystemTime": "2026-11-24T06:00:00.123456789Z", **_read(self.engine / "info.json")}
        )

    def _version(self, *_: Any) -> None:
        self._json({"Version": "26.1.5", "Arch": "amd64"})

    def _volumes(self, *_: Any) -> None:
        self._json({"Volumes": [{"Name": "kvshare_models"}]})

    # --- containers ---------------------------------------------------------------------------------------

    def _containers_json(self, identity: str, _: Any) -> None:
        containers = _read(self.engine / "containers.json")
        if identity != "json":
            self._json(containers[identity])
            return
        labels = json.loads(self.query["filters"])["label"]
        if "com.docker.compose.project=kvshare" not in labels:
            found = {n: s.labels for n, s in self.server.started.items() if not s.gone.is_set()}
            self._json([{"Id": n, "Labels": own} for n, own in found.items() if _match(own, labels)])
            return
        assert self.query["all"] == "1", "stopped containers matter too"
        assert "com.docker.compose.oneoff=False" in labels
        self._json([{"Id": i, "Labels": c["Config"]["Labels"]} for i, c in containers.items()])

    def _containers_logs(self, identity: str, _: Any) -> None:
        if (self.engine / "broken").exists():
            self._refuse("the engine went away")
            return
        self._begin_stream()
        with (self.engine / "logs" / identity).open("rb") as log:
            while True:
                if data := log.read():
                    self._chunk(struct.pack(">BxxxL", STDOUT, len(data)) + data)
                if self.query["follow"] == "0" or (self.engine / "ended").exists():
                    break
                time.sleep(0.05)
        self._chunk(b"")

    def _containers_exec(self, _: str, wanted: dict[str, Any]) -> None:
        if (self.engine / "broken").exists():
            self._refuse("the engine went away")
            return
        identity = str(len(self.server.execs))
        self.server.execs[identity] = wanted["Cmd"]
        self._json({"Id": identity}, 201)

    def _exec_start(self, identity: str, _: Any) -> None:
        if not (at_once := (self.engine / "at-once").exists()):
            self._hijack()
            self.rfile.read()
        answers, asked = _read(self.engine / "exec.json"), self.server.execs[identity][-1]
        error = b"urllib.error.URLError: <urlopen error [Errno 111] Connection refused>\n"
        stream, said = (STDOUT, answers[asked].encode()) if asked in answers else (STDERR, error)
        self._hijack(struct.pack(">BxxxL", stream, len(said)) + said, headers=at_once)

    def _exec_json(self, identity: str, _: Any) -> None:
        known = self.server.execs[identity][-1] in _read(self.engine / "exec.json")
        self._json({"ExitCode": 0 if known else 1})

    def _containers_create(self, _: str, wanted: dict[str, Any]) -> None:
        self.server.started[self.query["name"]] = _Started(wanted["Labels"])
        self._json({"Id": self.query["name"]}, 201)

    def _containers_attach(self, name: str, _: Any) -> None:
        self._hijack()
        started = self.server.started[name]
        started.begun.wait(10)
        process = started.process
        assert process is not None
        assert process.stdin is not None
        outputs = [
            threading.Thread(target=self._pass_on, args=(number, source))
            for number, source in ((STDOUT, process.stdout), (STDERR, process.stderr))
        ]
        for thread in (threading.Thread(target=self._take, args=(process.stdin,), daemon=True), *outputs):
            thread.start()
        for thread in outputs:
            thread.join()
        process.wait()
        started.gone.set()

    def _take(self, sink: BinaryIO) -> None:
        with suppress(OSError):
            while data := self.connection.recv(65536):
                sink.write(data)
                sink.flush()
        sink.close()

    def _pass_on(self, stream: int, source: BinaryIO) -> None:
        with suppress(OSError):
            while data := os.read(source.fileno(), 65536):
                self.wfile.write(struct.pack(">BxxxL", stream, len(data)) + data)
                self.wfile.flush()

    def _containers_wait(self, name: str, _: Any) -> None:
        self._begin_stream()
        started = self.server.started[name]
        started.gone.wait(60)
        assert started.process is not None
        self._chunk(json.dumps({"StatusCode": started.process.returncode}).encode())
        self._chunk(b"")

    def _containers_start(self, name: str, _: Any) -> None:
        started = self.server.started[name]
        pipe = subprocess.PIPE
        script = ["sh", "-c", (self.engine / "run").read_text()]
        started.process = subprocess.Popen(script, stdin=pipe, stdout=pipe, stderr=pipe)
        started.begun.set()
        self.send_response(204)
        self.end_headers()

    def _containers_delete(self, name: str, _: Any) -> None:
        name = self.path.split("?")[0].rpartition("/")[2]
        started = self.server.started[name]
        if started.process is not None:
            started.process.kill()
        started.gone.set()
        self.send_response(204)
        self.end_headers()

    # --- images -------------------------------------------------------------------------------------------

    def _images_json(self, name: str, _: Any) -> None:
        images = _read(self.engine / "images.json")
        found = [i for known, i in images.items() if name in (known, i["Id"])]
        if found:
            self._json(found[0])
        else:
            self._refuse(f"No such image: {name}", 404)

    def _images_get(self, name: str, _: Any) -> None:
        self._begin_stream()
        for number in range(20):
            self._chunk(b"x" * BLOCK)
            if (self.engine / "slow-save").exists():
                time.sleep(0.2)
            if number == 9 and (self.engine / "cut-save").exists():
                self.close_connection = True
                return
        archive = json.dumps({name: _read(self.engine / "images.json")[name]}).encode().rjust(4096)
        self._chunk(archive + END)
        self._chunk(b"")

    def _images_load(self, *_: Any) -> None:
        archive = b""
        while size := int(self.rfile.readline() or b"0", 16):
            archive = archive[-2 * BLOCK :] + self.rfile.read(size)
            self.rfile.readline()
            if (self.engine / "full-disk").exists():
                self._refuse("Error processing tar file(exit status 1): write /x: no space left on device")
                self.close_connection = True
                return
        self.rfile.readline()
        if archive.endswith(END):
            images = _read(self.engine / "images.json") | json.loads(archive.removesuffix(END)[-4096:])
            (self.engine / "images.json").write_text(json.dumps(images))
            self._begin_stream()
            self._chunk(b'{"stream": "Loaded image"}')
            self._chunk(b"")

    def _images_tag(self, name: str, _: Any) -> None:
        images = _read(self.engine / "images.json")
        images[f"{self.query['repo']}:{self.query['tag']}"] = images[name]
        (self.engine / "images.json").write_text(json.dumps(images))
        self.send_response(201)
        self.end_headers()


def _match(own: dict[str, str], labels: list[str]) -> bool:
    return all(f"{name}={value}" in labels for name, value in own.items())


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
