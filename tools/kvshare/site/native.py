"""Controller, prefill and decode as plain processes, for a machine where no container engine can run.

usage: make native PYTHON=…

Run it with the Python of an environment that holds vLLM, LMCache and NIXL; kvshare's patches are put into it.
compose.yaml, configs/lmcache.yaml and the entrypoint are those of the containers, .env is read as always.
Only the place differs: everything listens on 127.0.0.1, and files are kept under .kvshare/native, not in an
image. In the environment, KVSHARE_VLLM_ARGS replaces the servers' arguments and HF_HOME says where hub models
are. Ctrl-C stops all three.

exit codes: 0 stopped as asked; 1 a process ended by itself; 2 bad input; 130 stopped before all served
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml

from kvshare.config.settings import Settings, find_root, load_settings
from kvshare.errors import FAILED, INTERRUPTED, KvshareError

HOST = "127.0.0.1"
SERVICES = ("controller", "prefill", "decode")  # in the order of start
START_S = 900.0
STOP_S = 30.0
POLL_S = 2.0
TAIL_LINES = 20
# What the images set by themselves, and vLLM's own address, which compose.yaml has no need to name.
IMAGE = {"VLLM_NO_USAGE_STATS": "1", "LMCACHE_TRACK_USAGE": "false", "PYTHONUNBUFFERED": "1"}
IMAGE_CPU = {"TORCHDYNAMO_DISABLE": "1"}
LOOPBACK = {"VLLM_HOST_IP": HOST}
USERS = ("HF_HOME", "KVSHARE_VLLM_ARGS")  # what the caller's environment decides, if it does
SHARED_GPU = "--gpu-memory-utilization 0.45"  # the last one given counts; two servers must fit

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:?)-([^}]*))?\})")


class EndedError(Exception):
    """A process ended by itself, or never became healthy; the message is for the user."""


class _Loader(yaml.SafeLoader):
    """YAML with Compose's ``!reset``, which takes away what an earlier file set."""


_Loader.add_constructor("!reset", lambda _loader, _node: None)


def local(settings: Settings) -> Settings:
    """Return the same decisions with every service on this machine, reachable from nowhere else."""
    return replace(settings, values={**settings.values, "PREFILL_HOST": HOST, "DECODE_HOST": HOST})


def compose_config(settings: Settings) -> dict[str, Any]:
    """Return the Compose files merged and interpolated; only what kvshare's own files use is understood."""
    merged: dict[str, Any] = {}
    for name in settings.compose_files:
        merged = _merged(merged, yaml.load((settings.root / name).read_text(), _Loader))
    config: dict[str, Any] = _interpolated(merged, settings.values)
    return config


def service_environment(config: Mapping[str, Any], service: str) -> dict[str, str]:
    """Return a service's environment as Compose hands it to the container."""
    return {name: _text(value) for name, value in config["services"][service]["environment"].items()}


def process_environment(
    config: Mapping[str, Any], service: str, device: str, caller: Mapping[str, str]
) -> dict[str, str]:
    """Return a service's environment outside a container, over the ``caller``'s own."""
    given = service_environment(config, service)
    given.pop("HF_HOME", None)  # a folder of the container
    gpus = _gpus(config)
    if service in gpus:
        given["CUDA_VISIBLE_DEVICES"] = gpus[service]
        if len(set(gpus.values())) < len(gpus):
            given["KVSHARE_VLLM_ARGS"] += f" {SHARED_GPU}"
    image = {**IMAGE, **(IMAGE_CPU if device == "cpu" else {}), **LOOPBACK}
    users = {name: caller[name] for name in USERS if name in caller}
    return {**caller, **image, **given, **users}


@dataclass
class Process:
    """One service: its folder holds the log, the fingerprint and the metrics."""

    service: str
    folder: Path
    environment: Mapping[str, str]
    running: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Everything that the service printed since its start."""
        return self.folder / "log"

    @property
    def fingerprint(self) -> Path:
        """What the engine says it runs with."""
        return self.folder / "fingerprint.json"

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def is_healthy(self) -> bool:
        """Run the container's own health check."""
        command = [sys.executable, "-m", "kvshare_engine", "health"]
        checked = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True)
        return checked.returncode == 0

    def ended(self) -> int | None:
        """Return the exit code if the process ended by itself."""
        return None if self.running is None else self.running.poll()

    def stop(self) -> None:
        """Ask the process and its children to end, and end what is left after STOP_S seconds."""
        if self.running is None:
            return
        _signal_group(self.running, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.wait(STOP_S)
        _signal_group(self.running, signal.SIGKILL)  # children that outlive their parent too
        self.running.wait()
        self.running = None


class Native:
    """The three processes of one stack; a context manager that stops what it started."""

    def __init__(self, settings: Settings, folder: Path | None = None, patches: Path | None = None) -> None:
        """Prepare, starting nothing.

        ``patches`` is a record that docker/guard wrote; without one they are applied at start.
        """
        self.settings = local(settings)
        self.folder = folder or settings.root / ".kvshare" / "native"
        self.config = compose_config(self.settings)
        self.patches = patches
        caller = {**os.environ, **self._paths()}
        self.processes = {
            service: Process(
                service,
                self.folder / service,
                process_environment(self.config, service, self.settings.device, caller),
            )
            for service in SERVICES
        }

    def __enter__(self) -> Native:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start one after the other, each once the one before is healthy.

        EndedError if one does not come up, KvshareError if something else has its ports.

        vLLM measures its GPU's free memory while it starts, so two servers of one GPU must not start at once.
        """
        _require_free(port for service in SERVICES for port in _ports(self.config, service))
        if self.patches is None:
            self.patches = self._apply_patches()
        for process in self.processes.values():
            self._say(f"starting {process.service}, log in {process.log}")
            self._launch(process)
            self._await(process)

    def restart(self, service: str, changes: Mapping[str, str]) -> None:
        """Stop one, and start it with its environment changed; EndedError if it does not come up."""
        process = self.processes[service]
        process.stop()
        process.environment = {**process.environment, **changes}
        self._launch(process)
        self._await(process)

    def watch(self) -> None:
        """Return never, EndedError as soon as one process ends by itself."""
        while True:
            self._require_running()
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop what runs, the servers before the controller."""
        for process in reversed(self.processes.values()):
            if process.running is not None:
                self._say(f"stopping {process.service}")
                process.stop()

    def _launch(self, process: Process) -> None:
        process.folder.mkdir(parents=True, exist_ok=True)
        role = "controller" if process.service == "controller" else "server"
        command = [
            sys.executable,
            "-m",
            "kvshare.site.native_entry",
            str(process.folder),
            str(self.settings.root),
        ]
        with process.log.open("wb") as log:
            process.running = _spawn([*command, str(self.patches), role], process, log)

    def _await(self, process: Process) -> None:
        end = time.monotonic() + START_S
        while not process.is_healthy():
            self._require_running()
            if time.monotonic() > end:
                raise EndedError(f"{process.service} was not healthy in {START_S:.0f} s:\n{process.tail()}")
            time.sleep(POLL_S)

    def _require_running(self) -> None:
        for process in self.processes.values():
            if (code := process.ended()) is not None:
                raise EndedError(f"{process.service} ended with exit code {code}:\n{process.tail()}")

    def _apply_patches(self) -> Path:
        """Patch the packages of this Python, if they are not yet, and return the record of it."""
        self._say(f"patching the packages of {sys.executable}, as docs/patches.md says")
        self.folder.mkdir(parents=True, exist_ok=True)
        record = (self.folder / "patches.json").absolute()
        command = [sys.executable, "-m", "guard", "--device", self.settings.device, "--record", str(record)]
        applied = subprocess.run(command, cwd=self.settings.root / "docker", capture_output=True, text=True)
        if applied.returncode != 0:
            raise KvshareError(applied.stderr.strip())
        return record

    def _paths(self) -> dict[str, str]:
        """Return where programs and modules are found: this Python's first, then the caller's."""
        ours = (str(self.settings.root / "docker/engine"), str(self.settings.root / "tools"))
        return {
            "PATH": _joined(str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)),
            "PYTHONPATH": _joined(*ours, os.environ.get("PYTHONPATH", "")),
        }

    @staticmethod
    def _say(sentence: str) -> None:
        print(f"kvshare: {sentence}", file=sys.stderr, flush=True)


def main() -> int:
    """Start, serve until Ctrl-C or the end of a process, stop."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serving = False
    try:
        with Native(load_settings(find_root())) as native:
            native.start()
            serving = True
            for service in ("prefill", "decode"):
                facts = native.config["x-kvshare"][service]
                print(f"{service}: http://{facts['KVSHARE_HOST']}:{facts['KVSHARE_API_PORT']}", flush=True)
            print("Ctrl-C stops all three.", flush=True)
            native.watch()
    except EndedError as error:
        print(f"kvshare: {error}", file=sys.stderr)
        return FAILED
    except KvshareError as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 0 if serving else INTERRUPTED
    return 0


def _spawn(command: list[str], process: Process, log: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches us alone, and we stop all in order.
    return subprocess.Popen(
        command,
        cwd=process.folder,
        env=process.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _ports(config: Mapping[str, Any], service: str) -> list[int]:
    facts: Mapping[str, Any] = config["x-kvshare"][service]
    return [int(value) for name, value in facts.items() if name.endswith("_PORT")]


def _require_free(ports: Iterable[int]) -> None:
    """KvshareError if something listens on one of the ports: its answers would be taken for ours."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left may still wait
            try:
                probe.bind((HOST, port))
            except OSError:
                raise KvshareError(
                    f"port {port} of {HOST} is taken: stop what listens there (ss -ltnp), perhaps make down."
                ) from None


def _gpus(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the GPU of each service that reserves one."""
    found = {}
    for name, service in config["services"].items():
        if deploy := service.get("deploy"):
            found[name] = str(deploy["resources"]["reservations"]["devices"][0]["device_ids"][0])
    return found


def _merged(earlier: Any, later: Any) -> Any:
    if not (isinstance(earlier, dict) and isinstance(later, dict)):
        return later
    return {**earlier, **{key: _merged(earlier.get(key), value) for key, value in later.items()}}


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """Return the value with ``${NAME}``, ``${NAME:-default}`` and ``${NAME-default}`` filled in."""
    if isinstance(value, dict):
        return {key: _interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, variables) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _filled_in(match, variables), value)
    return value


def _filled_in(match: re.Match[str], variables: Mapping[str, str]) -> str:
    name, colon, default = match.groups()
    if name is None:
        return "$"
    value = variables.get(name)
    return (default or "") if value is None or (colon and not value) else value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _joined(*paths: str) -> str:
    return os.pathsep.join(path for path in paths if path)


if __name__ == "__main__":
    sys.exit(main())
