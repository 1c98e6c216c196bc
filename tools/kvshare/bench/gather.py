"""A benchmark's operator side: the client container's lines as they come, and what only Docker can tell."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kvshare import __version__, records
from kvshare.bench.observed import Line, Observed
from kvshare.bench.results import RunFingerprint
from kvshare.bench.spec import BenchSpec
from kvshare.bench.stages import Moments, read_moments
from kvshare.config.settings import Settings
from kvshare.contract import FINGERPRINT
from kvshare.cost.plan import Architecture, read_architecture, with_kv
from kvshare.errors import USAGE, CouldNotCheckError, KvshareError
from kvshare.site import client, docker_cli, nodes
from kvshare.stack.members import Member, Stack

STOP_S = 15.0
# A model's configuration: beside its weights, or where the hub's cache keeps it.
_CONFIG = (
    'cat "$1/config.json" 2>/dev/null || '
    'cat "$HF_HOME/hub/models--$(echo "$1" | sed s:/:--:g)"/snapshots/*/config.json'
)
_MACHINE = (
    "import json, os, pathlib, re, subprocess\n"
    "read = lambda p: pathlib.Path(p).read_text().strip() if pathlib.Path(p).exists() else None\n"
    "model = re.search(r'model name\\s*: (.*)', read('/proc/cpuinfo') or '')\n"
    "try:\n"
    "    gpu = subprocess.run(['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader'],\n"
    "        capture_output=True, text=True, timeout=10).stdout.strip() or None\n"
    "except OSError:\n"
    "    gpu = None\n"
    "print(json.dumps({'cpu': model.group(1) if model else None, 'cores': os.cpu_count(), 'gpu': gpu,\n"
    "    'kernel': os.uname().release}))\n"
)
_NIC = (
    "import json, pathlib, sys\n"
    "def read(p):\n"
    "    try: return pathlib.Path(p).read_text().strip()\n"
    "    except OSError: return None\n"
    "net = sys.argv[1].split(':')[0]\n"
    "print(json.dumps({'device': net, 'mbit_per_s': read(f'/sys/class/net/{net}/speed'),\n"
    "    'mtu': read(f'/sys/class/net/{net}/mtu')}))\n"
)


class Containers:
    """The stack's running containers, to be asked things."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._look = nodes.look(stack)
        self._clocks: dict[str, str] = {}
        for member in stack.members:
            self._clocks.setdefault(
                member.context,
                docker_cli.docker(member.context, "info", "--format", "{{.SystemTime}}").strip(),
            )

    def require_running(self) -> None:
        """CouldNotCheckError names the first member that is not running."""
        for member in self.stack.members:
            found = self._look.of(member)
            if member.context in self._look.errors:
                raise CouldNotCheckError(self._look.errors[member.context])
            if found is None or not found["State"]["Running"]:
                raise CouldNotCheckError(
                    f"{member.name} does not run on context {member.context}: type make up NODE=all."
                )

    def ask(self, member: Member, *command: str) -> str | None:
        """Return what a command inside a member's container prints, or None if it fails."""
        found = self._look.of(member)
        if found is None:
            return None
        try:
            return docker_cli.docker(member.context, "exec", str(found["Id"]), *command)
        except CouldNotCheckError:
            return None

    def ask_json(self, member: Member, *command: str) -> dict[str, Any]:
        """Return the JSON object that a command prints, or an empty one."""
        try:
            data = json.loads(self.ask(member, *command) or "{}")
        except ValueError:
            return {}
        return data if isinstance(data, dict) else {}

    def container_id(self, member: Member) -> str:
        """Return the id of a member's container; CouldNotCheckError if there is none."""
        found = self._look.of(member)
        if found is None:
            raise CouldNotCheckError(f"{member.name} has no container on context {member.context}.")
        return str(found["Id"])

    def image_id(self, member: Member) -> str:
        """Return the id of the image that a member runs."""
        found = self._look.of(member)
        return "" if found is None else str(found["Image"])

    def log(self, member: Member) -> str:
        """Return what a member has logged since this object was made, by its own engine's clock."""
        found = self._look.of(member)
        if found is None:
            return ""
        command = ("logs", "--since", self._clocks[member.context], str(found["Id"]))
        try:
            result = subprocess.run(
                docker_cli.command(member.context, *command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=docker_cli.TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return ""
        return result.stdout


def fingerprints(containers: Containers) -> dict[str, dict[str, Any]]:
    """Return by node what its engine wrote of itself at its start; empty where that cannot be read."""
    return {
        member.name: containers.ask_json(member, "cat", FINGERPRINT) for member in containers.stack.members
    }


def run_fingerprint(
    containers: Containers, prints: Mapping[str, Mapping[str, Any]], settings: Settings
) -> RunFingerprint:
    """Return what runs where; the hash leaves out what two fair runs may differ in, as addresses."""
    found: dict[str, Any] = {}
    for member in containers.stack.members:
        own = prints.get(member.name, {})
        device = str(own.get("ucx", {}).get("UCX_NET_DEVICES", ""))
        found[member.name] = {
            **own,
            "image_id": containers.image_id(member),
            "machine": containers.ask_json(member, "python", "-c", _MACHINE),
            "nic": containers.ask_json(member, "python", "-c", _NIC, device) if device else {},
        }
    return RunFingerprint(
        __version__,
        settings.device,
        settings.transport,
        configuration_hash(found, settings),
        found,
    )


def configuration_hash(found: Mapping[str, Mapping[str, Any]], settings: Settings) -> str:
    """Return the sha256 of versions, patches, model, UCX's transports and LMCache's shared settings."""
    own = ("p2p", "instance", "url", "port", "config_file")
    shared = [
        {
            "role": node.get("role"),
            **{key: node.get(key) for key in ("versions", "patches", "model", "dtype", "max_model_len")},
            "kv_cache_dtype": node.get("kv_cache_dtype"),
            "kv_transfer_config": node.get("kv_transfer_config"),
            "ucx_tls": node.get("ucx", {}).get("UCX_TLS"),
            "gpu": node.get("machine", {}).get("gpu"),
            "lmcache": {
                key: value
                for key, value in sorted(node.get("lmcache", {}).items())
                if key == "enable_p2p" or not any(word in key for word in own)
            },
        }
        for _, node in sorted(found.items())
    ]
    text = json.dumps([settings.device, settings.transport, shared], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def architecture(containers: Containers, print_of_decode: Mapping[str, Any]) -> Architecture | None:
    """Return the served model's architecture from its own config.json, or None if it cannot be read."""
    model = str(print_of_decode.get("model") or "")
    text = containers.ask(containers.stack.decode, "sh", "-c", _CONFIG, "sh", model)
    if not model or not text:
        return None
    try:
        kept = str(print_of_decode.get("kv_cache_dtype") or "auto")
        return with_kv(read_architecture(text, str(print_of_decode.get("dtype") or "auto"), model), kept)
    except KvshareError:
        return None


def moments(containers: Containers) -> dict[str, Moments]:
    """Return by request id what both servers' logs say of its pull."""
    return read_moments(containers.log(containers.stack.decode), containers.log(containers.stack.prefill))


# --- the client container -----------------------------------------------------------------------------------


def observe(
    spec: BenchSpec, stack: Stack, settings: Settings, told: Callable[[Observed], None]
) -> tuple[Observed, bool]:
    """Run the client container; return all it said, and whether Ctrl-C ended it.

    Args:
        told: called after each line with everything so far.
    """
    seen = Observed()
    try:
        with _client(spec, stack, settings) as process:
            assert process.stdout is not None
            for text in process.stdout:
                seen = seen.add(_line(text))
                told(seen)
            code = process.wait()
    except KeyboardInterrupt:
        return seen, True
    if code == USAGE and seen.opening is None:
        raise KvshareError("the client container refused the request, for the reason above.")
    if code != 0 and seen.closing is None and not seen.repetitions:
        raise CouldNotCheckError(f"`docker compose run client` ended with code {code}, see above.")
    return seen, False


@contextmanager
def _client(spec: BenchSpec, stack: Stack, settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """The running client container, in a process group of its own, so that Ctrl-C reaches us first."""
    name = f"{stack.project}-bench-{spec.seed}-{os.getpid()}"
    process = subprocess.Popen(
        client.command(stack, settings, "bench-client", spec, "--name", name),
        cwd=settings.root,
        env=settings.compose_environment(stack.prefill.context),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(settings.api_key)
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process, stack.prefill.context, name)


def _end(process: subprocess.Popen[str], context: str, container: str) -> None:
    """Remove the client's container; Compose, when interrupted, would leave it sending requests."""
    with contextlib.suppress(CouldNotCheckError):
        docker_cli.docker(context, "rm", "--force", container)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(STOP_S)


def _line(text: str) -> Line:
    try:
        return records.loads(Line, text)
    except ValueError as error:
        raise CouldNotCheckError(
            f"the client container said what this version does not know: {error}; type make image."
        ) from None
