"""A stand-in registry on 127.0.0.1: as much of the Docker Registry HTTP API V2 as a push and a pull need.

Docker takes 127.0.0.0/8 without TLS. Blobs and manifests are kept in memory; with ``password`` set, whoever
does not send it is turned away.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_BLOB = re.compile(r"/v2/.+/blobs/(sha256:[0-9a-f]{64})")
_UPLOAD = re.compile(r"(/v2/.+/blobs/uploads/)([0-9a-f-]*)(?:\?digest=(.+))?")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/(.+)")


@dataclass
class Store:
    """What was pushed; ``manifests`` by ``name/reference``, with their media type."""

    password: str | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)


def digest_of(data: bytes) -> str:
    """Return the name of content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@contextmanager
def serve(store: Store) -> Iterator[str]:
    """Serve a store; yields its ``127.0.0.1:PORT``."""
    handler = type("Handler", (_Handler,), {"store": store})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        if not self._is_let_in():
            return
        if self.path == "/v2/":
            self._answer(200)
        elif (blob := _BLOB.fullmatch(self.path)) and blob[1] in self.store.blobs:
            self._answer(200, self.store.blobs[blob[1]], digest=blob[1])
        elif (asked := _MANIFEST.fullmatch(self.path)) and (kept := self._manifest(*asked.groups())):
            self._answer(200, kept[1], kind=kept[0], digest=digest_of(kept[1]))
        else:
            self._answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}')

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        if self._is_let_in():
            upload = str(uuid.uuid4())
            self.store.uploads[upload] = self._body()
            self._answer(202, location=f"{self.path.partition('?')[0]}{upload}")

    def do_PATCH(self) -> None:
        match = _UPLOAD.fullmatch(self.path)
        assert match is not None
        self.store.uploads[match[2]] += self._body()
        size = len(self.store.uploads[match[2]])
        self._answer(202, location=self.path, received=f"0-{size - 1}")

    def do_PUT(self) -> None:
        body = self._body()
        if match := _UPLOAD.fullmatch(self.path):
            data = self.store.uploads.pop(match[2]) + body
            digest = match[3].replace("%3A", ":")
            assert digest == digest_of(data)
            self.store.blobs[digest] = data
        else:
            match = _MANIFEST.fullmatch(self.path)
            assert match is not None
            digest = digest_of(body)
            for reference in (match[2], digest):
                self.store.manifests[f"{match[1]}/{reference}"] = (self.headers["Content-Type"], body)
        self._answer(201, digest=digest, location=self.path)

    def _manifest(self, name: str, reference: str) -> tuple[str, bytes] | None:
        return self.store.manifests.get(f"{name}/{reference}")

    def _is_let_in(self) -> bool:
        wanted = self.store.password
        sent = self.headers.get("Authorization", "").removeprefix("Basic ")
        if wanted is None or base64.b64decode(sent).decode().endswith(f":{wanted}"):
            return True
        self._body()
        refused = b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}'
        self._answer(401, refused, challenge='Basic realm="stand-in"')
        return False

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(
        self, status: int, body: bytes = b"", kind: str = "application/json", digest: str | None = None,
        location: str | None = None, challenge: str | None = None,
        received: str | None = None,
    ) -> None:  # fmt: skip
        self.send_response(status)
        headers = {
            "Content-Length": str(len(body)),
            "Content-Type": kind,
            "Docker-Distribution-Api-Version": "registry/2.0",
            "Docker-Content-Digest": digest,
            "Location": location,
            "WWW-Authenticate": challenge,
            "Range": received,
        }
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the test's output is the tool's."""
