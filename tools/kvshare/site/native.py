"""Controller, prefill and decode as plain processes, for a machine where no container engine can run.

usage: make native PYTHON=…

Run it with the Python of an environment that holds vLLM, LMCache and NIXL; kvshare's patches are put into it.
compose.yaml, configs/lmcache.yaml and the entrypoint are those of the containers, .env is read as always.
Only the place differs: everything listens on 127.0.0.1, and files are kept under .kvshare/native, not in an
image. In the environment, KVSHARE_VLLM_ARGS replaces the servers' arguments and HF_HOME says where hub models
are. Ctrl-C stops all three.

exit codes: 0 stopped as asked; 1 a process ended by itself; 2 bad input; 130 stopped before all served
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from kvshare.config.settings import Settings, find_root, load_settings
from kvshare.contract import gpus_of
from kvshare.errors import FAILED, INTERRUPTED, KvshareError
from kvshare.site.base import Site
from kvshare.site.processes import Process, Processes
from kvshare.stack.members import Stack, parse_stack

HOST = "127.0.0.1"
SERVICES = ("controller", "prefill", "decode")  # in the order of start
RENDERED = "configs/native.json"  # made by tests/config/test_native.py
START_S = 900.0
POLL_S = 2.0
# What the images set by themselves, and vLLM's own address, which compose.yaml has no need to name.
IMAGE = {"VLLM_NO_USAGE_STATS": "1", "LMCACHE_TRACK_USAGE": "false", "PYTHONUNBUFFERED": "1"}
IMAGE_CPU = {"TORCHDYNAMO_DISABLE": "1"}
LOOPBACK = {"VLLM_HOST_IP": HOST}
USERS = ("HF_HOME", "KVSHARE_VLLM_ARGS")  # what the caller's environment decides, if it does
SHARED_GPU = "--gpu-memory-utilization 0.45"  # the last one given counts; two servers must fit


class EndedError(Exception):
    """A process ended by itself, or never became healthy; the message is for the user."""


def local(settings: Settings) -> Settings:
    """Return the same decisions with every service on this machine, reachable from nowhere else."""
    here = {"PREFILL_HOST": HOST, "DECODE_HOST": HOST, "DECODE_HOSTS": ""}
    return replace(settings, values={**settings.values, **here})


def service_environment(settings: Settings, service: str) -> dict[str, str]:
    """Return a service's environment as Compose hands it to a container on this machine."""
    rendered = json.loads((settings.root / RENDERED).read_text())[settings.device][service]
    # A value is a fact, or a decision's name and what it is where nobody decides.
    return {k: value if isinstance(value, str) else settings.get(*value) for k, value in rendered.items()}


def stack_of(settings: Settings) -> Stack:
    """Return the stack of the three services on this machine."""
    facts = {service: service_environment(settings, service) for service in SERVICES}
    return parse_stack([{"name": "kvshare", "x-kvshare": {**facts, "server": facts["prefill"]}}], settings)


def process_environment(settings: Settings, service: str, caller: Mapping[str, str]) -> dict[str, str]:
    """Return a service's environment outside a container, over the ``caller``'s own."""
    given = service_environment(settings, service)
    given.pop("HF_HOME", None)  # a folder of the container
    gpus = {name: gpus_of(settings.get(f"{name.upper()}_GPU", "0")) for name in ("prefill", "decode")}
    if settings.device == "cuda" and service in gpus:
        given["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[service])
        if set(gpus["prefill"]) & set(gpus["decode"]):
            given["KVSHARE_VLLM_ARGS"] += f" {SHARED_GPU}"
    image = {**IMAGE, **(IMAGE_CPU if settings.device == "cpu" else {}), **LOOPBACK}
    users = {name: caller[name] for name in USERS if name in caller}
    return {**caller, **image, **given, **users}


class Native:
    """The three processes of one stack; a context manager that stops what it started."""

    def __init__(self, settings: Settings, folder: Path | None = None, patches: Path | None = None) -> None:
        """Prepare, starting nothing.

        ``patches`` is a record that docker/guard wrote; without one they are applied at start.
        """
        self.settings = local(settings)
        self.folder = folder or settings.root / ".kvshare" / "native"
        self.patches = patches
        self.stack = stack_of(self.settings)
        caller = {**os.environ, **self._paths()}
        self.processes = {
            service: Process(
                service, self.folder / service, process_environment(self.settings, service, caller)
            )
            for service in SERVICES
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start one after the other, each once the one before is healthy.

        EndedError if one does not come up, KvshareError if something else has its ports.

        vLLM measures its GPU's free memory while it starts, so two servers of one GPU must not start at once.
        """
        _require_free(port for member in self.stack.members for port in member.ports)
        if self.patches is None:
            self.patches = self._apply_patches()
        for process in self.processes.values():
            self._say(f"starting {process.service}, log in {process.log}")
            self._launch(process)
            self._await(process)

    def site(self) -> Site:
        """Return the processes as a site, whose logs count from now on."""
        return Processes(self.stack, self.settings, self.processes)

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
        role = "controller" if process.service == "controller" else "server"
        entry = [sys.executable, "-m", "kvshare.site.native_entry", str(process.folder)]
        process.start([*entry, str(self.settings.root), str(self.patches), role])

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
            for server in (native.stack.prefill, native.stack.decode):
                print(f"{server.name}: {server.url}", flush=True)
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


def _joined(*paths: str) -> str:
    return os.pathsep.join(path for path in paths if path)


if __name__ == "__main__":
    sys.exit(main())
