"""`kvshare push` and `kvshare pull` against a registry on 127.0.0.1, on this machine's own engine."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator

import pytest

from tests.conftest import CPU, ROOT
from tests.images.registry import Store, serve

FILES = f"{CPU['COMPOSE_FILE']}:tests/images/tiny.yaml"
NAMES = ("tiny-engine:test", "tiny-client:test")

pytestmark = pytest.mark.timeout(300)


def docker(*arguments: str, stdin: bytes = b"") -> str:
    result = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode().strip()


def kvshare(*arguments: str, **decisions: str) -> subprocess.CompletedProcess[str]:
    contexts = {"PREFILL_CONTEXT": "default", "DECODE_CONTEXT": "default", "DECODE_HOSTS": ""}
    environment = {**os.environ, **CPU, "COMPOSE_FILE": FILES, **contexts, **decisions}
    command = [sys.executable, "-m", "kvshare", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def remove(*names: str) -> None:
    subprocess.run(["docker", "image", "rm", *names], capture_output=True, timeout=60)


@pytest.fixture
def built() -> Iterator[dict[str, str]]:
    """Both images as `make image` would leave them: ids by name."""
    ids = {name: docker("import", "-", f"kvshare/{name}", stdin=archive(name)) for name in NAMES}
    yield ids
    remove(*(f"kvshare/{name}" for name in NAMES))


def archive(content: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        entry = tarfile.TarInfo("content")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content.encode()))
    return stream.getvalue()


def test_what_is_pushed_is_pulled_again_as_the_same_image(built: dict[str, str]) -> None:
    store = Store()
    with serve(store) as address:
        registry = f"{address}/kvshare"
        names = [f"{registry}/{name}" for name in NAMES]
        pushed = kvshare("push", REGISTRY=registry)
        assert pushed.returncode == 0, pushed.stderr
        assert f"kvshare: kvshare/{NAMES[0]} ({built[NAMES[0]][7:19]}, " in pushed.stderr
        assert {f"kvshare/{name.replace(':', '/')}" for name in NAMES} <= set(store.manifests)
        remove(*names, *(f"kvshare/{name}" for name in NAMES))
        try:
            pulled = kvshare("pull", "prefill", REGISTRY=registry)
            assert pulled.returncode == 0, pulled.stderr
            assert pulled.stderr.count("new there") == 2
            found = {name: json.loads(docker("image", "inspect", name))[0]["Id"] for name in names}
            assert list(found.values()) == list(built.values())
            again = kvshare("pull", "decode", REGISTRY=registry)
            assert "as before" in again.stderr
        finally:
            remove(*names)


@pytest.mark.usefixtures("built")
def test_the_newer_of_two_names_is_pushed() -> None:
    with serve(Store()) as address:
        names = [f"{address}/kvshare/{name}" for name in NAMES]
        newer = {name: docker("import", "-", name, stdin=archive("rebuilt")) for name in names}
        try:
            pushed = kvshare("push", REGISTRY=f"{address}/kvshare")
            assert all(identity[7:19] in pushed.stderr for identity in newer.values()), pushed.stderr
        finally:
            remove(*names)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("verb", ["push", "pull"])
def test_a_registry_that_lets_nobody_in(verb: str) -> None:
    with serve(Store(password="x")) as address:
        result = kvshare(verb, REGISTRY=f"{address}/kvshare")
        remove(f"{address}/kvshare/{NAMES[0]}")
    assert result.returncode == 2
    assert f"{address} does not let us in: type docker login {address} (" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("built")
def test_no_registry_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    result = kvshare("push", REGISTRY=f"{address}/kvshare")
    remove(f"{address}/kvshare/{NAMES[0]}")
    assert result.returncode == 2
    assert f"no registry answers at {address}, as seen from context default (" in result.stderr


def test_what_was_never_pushed() -> None:
    with serve(Store()) as address:
        result = kvshare("pull", REGISTRY=f"{address}/kvshare")
    assert result.returncode == 2
    assert f"{address} does not have it: type make push first (" in result.stderr


def test_nothing_is_built() -> None:
    result = kvshare("push", REGISTRY="127.0.0.1:1/kvshare")
    assert result.returncode == 2
    assert "no context has the image kvshare/tiny-engine:test: type make image" in result.stderr
