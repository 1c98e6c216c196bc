"""Controller, prefill and decode as plain processes, for a machine where no container engine can run.

usage: make native PYTHON=…

Run it with the Python of an environment that holds vLLM, LMCache and NIXL; kvshare's patches are put into it.
compose.yaml, configs/lmcache.yaml and the entrypoint are those of the containers, .env is read as always.
Only the place differs: everything listens on 127.0.0.1, and files are kept under .kvshare/native, not in an
image. In the environment, KVSHARE_VLLM_ARGS replaces the servers' arguments and HF_HOME says where hub models
are. Of several DECODE_HOSTS each is a server at an address of the loopback of its own. Ctrl-C stops all.

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

from kvshare.config.settings import (
    MULTIPROCESS,
    OVERLAYS,
    DecodeNode,
    Settings,
    find_root,
    load_settings,
)
from kvshare.contract import gpus_of
from kvshare.errors import FAILED, INTERRUPTED, KvshareError
from kvshare.site.base import Site
from kvshare.site.processes import Process, Processes
from kvshare.stack.members import Stack, parse_stack

HOST = "127.0.0.1"
SERVICES = ("controller", "prefill", "decode")  # in the order of start; of the last there may be several
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
    """Return the same decisions with every service on this machine, reachable from nowhere else.

    KvshareError where cache servers are wanted.
    """
    if settings.sharing == MULTIPROCESS:
        raise KvshareError(
            "plain processes share with a controller alone: set SHARING=controller in .env, "
            f"and COMPOSE_FILE without {OVERLAYS['SHARING', MULTIPROCESS]}."
        )
    numbers = range(1, 1 + len(settings.list_of("DECODE_HOSTS")))
    here = {
        "PREFILL_HOST": HOST,
        "DECODE_HOST": HOST,
        "DECODE_HOSTS": ",".join(f"127.0.0.{number}" for number in numbers),
        "DECODE_CONTEXTS": ",".join(f"decode-{number}" for number in numbers),
    }
    return replace(settings, values={**settings.values, **here})


def service_environment(settings: Settings, service: str, node: DecodeNode | None = None) -> dict[str, str]:
    """Return a service's environment as Compose hands it to a container on this machine, or for that node."""
    rendered = json.loads((settings.root / RENDERED).read_text())[settings.device][service]
    # A value is a fact, or a decision's name and what it is where nobody decides.
    decided = replace(settings, values={**settings.values, **node.variables}) if node else settings
    given = {k: value if isinstance(value, str) else decided.get(*value) for k, value in rendered.items()}
    if node is not None:
        given |= {"KVSHARE_HOST": node.host, "KVSHARE_INSTANCE": f"lmcache_instance_{node.instance}"}
    return given


def stack_of(settings: Settings) -> Stack:
    """Return the stack of the services on this machine."""
    facts = {service: service_environment(settings, service) for service in SERVICES}
    every = [
        {**facts, "server": facts["prefill"], "decode": service_environment(settings, "decode", node)}
        for node in settings.decode_nodes
    ]
    return parse_stack([{"name": "kvshare", "x-kvshare": one} for one in every], settings)


def gpus_by_server(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each server, by its name."""
    decodes = {node.name: gpus_of(node.gpu) for node in settings.decode_nodes}
    return {"prefill": gpus_of(settings.get("PREFILL_GPU", "0")), **decodes}


def share_a_gpu(settings: Settings) -> bool:
    """Return whether two servers compute on one GPU."""
    used = [gpu for gpus in gpus_by_server(settings).values() for gpu in gpus]
    return settings.device == "cuda" and len(set(used)) < len(used)


def process_environment(settings: Settings, name: str, caller: Mapping[str, str]) -> dict[str, str]:
    """Return a member's environment outside a container, over the ``caller``'s own."""
    node = next((node for node in settings.decode_nodes if node.name == name), None)
    given = service_environment(settings, "decode" if node else name, node)
    given.pop("HF_HOME", None)  # a folder of the container
    gpus = gpus_by_server(settings)
    if settings.device == "cuda" and name in gpus:
        given["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[name])
        if share_a_gpu(settings):
            given["KVSHARE_VLLM_ARGS"] += f" {SHARED_GPU}"
    image = {**IMAGE, **(IMAGE_CPU if settings.device == "cpu" else {}), **LOOPBACK}
    users = {name: caller[name] for name in USERS if name in caller}
    return {**caller, **image, **given, **users}


class Native:
    """The processes of one stack; a context manager that stops what it started."""

    def __init__(self, settings: Settings, folder: Path | None = None, patches: Path | None = None) -> None:
        """Prepare, starting nothing.

        ``patches`` is a record that docker/guard wrote; without one they are applied at start.
        """
        self.settings = local(settings)
        self.folder = folder or settings.root / ".kvshare" / "native"
        self.patches = patches
        self.stack = stack_of(self.settings)
        caller = {**os.environ, **self._paths()}
        names = [member.name for member in self.stack.engines]
        self.processes = {
            name: Process(name, self.folder / name, process_environment(self.settings, name, caller))
            for name in names
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the controller, then the servers.

        EndedError if one does not come up, KvshareError if something else has its ports.

        vLLM measures its GPU's free memory while it starts, so two servers of one GPU must not start at once;
        nor do two without any, which would share the cores.
        """
        _require_free((member.host, port) for member in self.stack.members for port in member.ports)
        if self.patches is None:
            self.patches = self._apply_patches()
        controller, *servers = self.processes.values()
        apart = self.settings.device == "cuda" and not share_a_gpu(self.settings)
        for together in ([controller], *([servers] if apart else [[server] for server in servers])):
            for process in together:
                self._say(f"starting {process.service}, log in {process.log}")
                self._launch(process)
            for process in together:
                self._await(process)

    def site(self, stack: Stack | None = None) -> Site:
        """Return the processes as a site, or those of a pair of it; its logs count from now on."""
        return Processes(stack or self.stack, self.settings, self.processes)

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
            for server in (native.stack.prefill, *native.stack.decodes):
                print(f"{server.name}: {server.url}", flush=True)
            print("Ctrl-C stops all.", flush=True)
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


def _require_free(addresses: Iterable[tuple[str, int]]) -> None:
    """KvshareError if something listens on one of the ports: its answers would be taken for ours."""
    for host, port in addresses:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left may still wait
            try:
                probe.bind((host, port))
            except OSError:
                raise KvshareError(
                    f"port {port} of {host} is taken: stop what listens there (ss -ltnp), perhaps make down."
                ) from None


def _joined(*paths: str) -> str:
    return os.pathsep.join(path for path in paths if path)


if __name__ == "__main__":
    sys.exit(main())
