"""A `docker` command whose engines are folders: what the tool pipes, follows and kills is a real process.

Installed on PATH by `FakeDocker`; each context is a folder with `images.json` (name: inspected image),
`containers.json` (id: inspected container), `logs/ID`, `exec.json` (last argument: output). Files named after
a fault make the engine faulty: `down`, `slow-save`, `cut-save`, `full-disk`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

END = b"the end of the archive"
BLOCK = 1 << 16


class FakeDocker:
    """The engines, as a test sets them up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "engines"
        program = folder / "bin" / "docker"
        program.parent.mkdir(parents=True)
        program.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
            f"from tests.unit.fake_docker import main\nmain({str(self.folder)!r}, sys.argv[1:])\n"
        )
        program.chmod(0o755)
        self.path = f"{program.parent}:{os.environ['PATH']}"

    def engine(self, context: str, *faults: str) -> Path:
        """Return a context's folder, made on first use."""
        engine = self.folder / context
        (engine / "logs").mkdir(parents=True, exist_ok=True)
        for fault in faults:
            (engine / fault).touch()
        return engine

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
        "Health": {"Status": "healthy"},
        "StartedAt": "2026-11-24T08:00:00.123456789Z",
    }
    return {
        "Id": identity,
        "Name": f"/kvshare-{service}-1",
        "Image": "sha256:" + "ab" * 32,
        "State": {**state, **more.get("state", {})},
        "Config": {"Labels": labels, "Image": "kvshare/engine-cpu:0.1.0", "Env": more.get("env", [])},
    }


def main(folder: str, arguments: list[str]) -> None:
    """Act as `docker` would."""
    root = Path(folder)
    if arguments[:2] == ["context", "inspect"]:
        _context(root / arguments[2])
    assert arguments[0] == "--context", f"no context named in {arguments}"
    engine, (verb, *rest) = root / arguments[1], arguments[2:]
    if not engine.is_dir():
        _fail(f'context "{arguments[1]}": context not found')
    if (engine / "down").exists():
        _fail("Cannot connect to the Docker daemon at unix:///nowhere. Is the docker daemon running?")
    _VERBS[verb](engine, rest)


def _context(engine: Path) -> NoReturn:
    if not engine.is_dir():
        _fail("context not found")
    endpoint = {"Host": f"ssh://{engine.name}", "SkipTLSVerify": False}
    print(json.dumps({"Endpoints": {"docker": endpoint}, "Storage": {"TLSPath": "/nowhere"}}))
    sys.exit(0)


def _info(_engine: Path, _arguments: list[str]) -> None:
    print(json.dumps({"Name": _engine.name, "ServerVersion": "26.1.5"}))


def _version(_engine: Path, arguments: list[str]) -> None:
    print("amd64" if "Arch" in arguments[-1] else json.dumps({"Server": {"Version": "26.1.5"}}))


def _compose(_engine: Path, arguments: list[str]) -> None:
    assert arguments[0] == "version"
    print("2.26.1")


def _image(engine: Path, arguments: list[str]) -> None:
    images = _read(engine / "images.json")
    found = [i for name, i in images.items() if arguments[1] in (name, i["Id"])]
    if not found:
        _fail(f"Error response from daemon: No such image: {arguments[1]}")
    print(json.dumps(found))


def _save(engine: Path, arguments: list[str]) -> None:
    out = sys.stdout.buffer
    for number in range(20):
        out.write(b"x" * BLOCK)
        out.flush()
        if (engine / "slow-save").exists():
            time.sleep(0.2)
        if number == 9 and (engine / "cut-save").exists():
            _fail("Error response from daemon: lost the disk")
    out.write(
        json.dumps({arguments[0]: _read(engine / "images.json")[arguments[0]]}).encode().rjust(4096) + END
    )


def _load(engine: Path, _arguments: list[str]) -> None:
    if (engine / "full-disk").exists():
        sys.stdin.buffer.read(BLOCK)
        _fail("Error processing tar file(exit status 1): write /x: no space left on device")
    archive = sys.stdin.buffer.read()
    if not archive.endswith(END):
        _fail("unexpected EOF")
    images = _read(engine / "images.json") | json.loads(archive.removesuffix(END)[-4096:])
    (engine / "images.json").write_text(json.dumps(images))


def _ps(engine: Path, arguments: list[str]) -> None:
    assert "label=com.docker.compose.project=kvshare" in arguments
    print("\n".join(_read(engine / "containers.json")))


def _inspect(engine: Path, arguments: list[str]) -> None:
    containers = _read(engine / "containers.json")
    print(json.dumps([containers[identity] for identity in arguments]))


def _logs(engine: Path, arguments: list[str]) -> None:
    (engine / "asked").write_text(" ".join(arguments))
    if "--follow" in arguments:
        with (engine / "logs" / arguments[-1]).open() as log:
            while not (engine / "ended").exists():
                sys.stdout.write(log.read())
                sys.stdout.flush()
                time.sleep(0.05)
        return
    sys.stdout.write((engine / "logs" / arguments[-1]).read_text())


def _exec(engine: Path, arguments: list[str]) -> None:
    answers = _read(engine / "exec.json")
    if arguments[-1] not in answers:
        _fail("urllib.error.URLError: <urlopen error [Errno 111] Connection refused>")
    sys.stdout.write(answers[arguments[-1]])


def _tag(engine: Path, arguments: list[str]) -> None:
    images = _read(engine / "images.json")
    images[arguments[1]] = next(i for name, i in images.items() if arguments[0] in (name, i["Id"]))
    (engine / "images.json").write_text(json.dumps(images))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    sys.exit(1)


_VERBS = {
    "info": _info,
    "version": _version,
    "compose": _compose,
    "image": _image,
    "save": _save,
    "load": _load,
    "ps": _ps,
    "inspect": _inspect,
    "logs": _logs,
    "exec": _exec,
    "tag": _tag,
}
