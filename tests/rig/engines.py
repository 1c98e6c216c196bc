"""A Docker engine on each host, and the context that leads to it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from tests.rig import network
from tests.rig.network import DECODE, DECODE_2, DECODE_3, PREFILL, STATE, Host, RigError, run

DATA = Path("/var/lib/kvshare-rig")
THIN = Path(__file__).with_name("thin.py")
START_TIMEOUT_S, STOP_TIMEOUT_S, LOAD_TIMEOUT_S = 60, 60, 900
PAIR = (PREFILL, DECODE)
HOSTS = (*PAIR, DECODE_2, DECODE_3)
REGISTRY = os.environ.get("REGISTRY", "kvshare")
ENGINE, CLIENT, OBSERVE = (f"{REGISTRY}/{name}:0.1.0" for name in ("engine-cpu", "client", "observe"))
IMAGES = (ENGINE, CLIENT)
LAYERS = ("docker", "image", "inspect", "--format", "{{range .RootFS.Layers}}{{println .}}{{end}}")


def context_of(host: Host) -> str:
    return f"kvshare-rig-{host.name}"


def socket_of(host: Host) -> Path:
    return STATE / host.name / "docker.sock"


def docker(host: Host, *arguments: str, timeout_s: float = 120, both: bool = False) -> str:
    """What the docker client says of a host's engine; ``both`` its streams, if wanted."""
    return run(["docker", "--host", f"unix://{socket_of(host)}", *arguments], timeout_s, both)


def start(host: Host) -> None:
    """Start a host's engine unless it runs, and make its context."""
    folder = STATE / host.name
    folder.mkdir(parents=True, exist_ok=True)
    if _pid(host) is None:
        with (folder / "log").open("wb") as log:
            subprocess.Popen(
                host.command(
                    "dockerd",
                    f"--data-root={DATA / host.name}",
                    f"--exec-root={folder / 'exec'}",
                    f"--pidfile={folder / 'pid'}",
                    f"--host=unix://{socket_of(host)}",
                    # An engine that manages iptables would cut the bridge.
                    "--bridge=none",
                    "--iptables=false",
                    "--ip6tables=false",
                ),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
    _wait_until_it_answers(host)
    make_context(context_of(host), f"unix://{socket_of(host)}")


def stop(host: Host) -> None:
    """Stop a host's engine; its containers stop with it, and would start with it again."""
    pid = _pid(host)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _pid(host) is not None:
        if time.monotonic() > deadline:
            raise RigError(f"the engine of {host.name} (pid {pid}) did not stop in {STOP_TIMEOUT_S} s")
        time.sleep(0.2)


def remove(host: Host, purge: bool) -> None:
    """Remove a host's containers, stop its engine and forget its context; ``purge`` takes its images too."""
    if is_running(host):
        clear(host)
        stop(host)
    remove_context(context_of(host))
    # An engine leaves its network namespace mounted, which would keep the host's alive without a name.
    left = STATE / host.name / "exec/netns/default"
    subprocess.run(["umount", str(left)], capture_output=True)
    shutil.rmtree(STATE / host.name, ignore_errors=True)
    if purge:
        shutil.rmtree(DATA / host.name, ignore_errors=True)


def clear(host: Host) -> None:
    """Remove a host's containers: those of an engine that was killed would start again with it."""
    if containers := docker(host, "ps", "--all", "--quiet").split():
        docker(host, "rm", "--force", *containers)


def is_running(host: Host) -> bool:
    return _pid(host) is not None


@contextlib.contextmanager
def running(hosts: Sequence[Host]) -> Iterator[None]:
    """The network and these hosts' engines, with this machine's images and no container; then none of it.

    The images of a pair are kept, so that the next run need not load them again.
    """
    with network.claimed():
        _remove_all()  # what a run that was killed has left
        network.up()
        try:
            for host in hosts:
                start(host)
                clear(host)
            load_images(hosts)
            yield
        finally:
            _remove_all()


def _remove_all() -> None:
    for host in HOSTS:
        remove(host, purge=host not in PAIR)
    network.down()


def load_images(hosts: Iterable[Host], images: Sequence[str] = IMAGES) -> None:
    """Give each engine these images of this machine's own engine, where it has not the same already."""
    wanted = {image: _own_image_id(image) for image in images}
    lacking = [h for h in hosts if any(_image_id(h, image) != wanted[image] for image in images)]
    if not lacking:
        return
    thin = shlex.join([sys.executable, str(THIN), *sorted(_known_layers(lacking, images))])
    loads = " ".join(f">(docker --host unix://{socket_of(host)} load --quiet)" for host in lacking)
    # One reading for all: bash's own `wait` waits for the loads too.
    script = f"set -o pipefail; docker save {' '.join(images)} | {thin} | tee {loads} > /dev/null; wait"
    run(["bash", "-c", script], LOAD_TIMEOUT_S)
    for host in lacking:
        for image in images:
            if _image_id(host, image) != wanted[image]:
                raise RigError(f"the engine of {host.name} did not load {image}")
        docker(host, "image", "prune", "--force")


def make_context(name: str, address: str) -> None:
    remove_context(name)
    run(["docker", "context", "create", name, "--docker", f"host={address}"])


def remove_context(name: str) -> None:
    subprocess.run(["docker", "context", "rm", "--force", name], capture_output=True)


def _own_image_id(image: str) -> str:
    """This machine's own engine has it, or RigError."""
    try:
        return run(["docker", "image", "inspect", "--format", "{{.Id}}", image])
    except RigError as error:
        raise RigError(
            f"this machine's own engine should hold {image}, for the rig to load: {error} "
            "Type make engine ARGS=start, and make image if it has none."
        ) from None


def _image_id(host: Host, image: str) -> str:
    try:
        return docker(host, "image", "inspect", "--format", "{{.Id}}", image)
    except RigError:
        return ""


def _known_layers(hosts: Iterable[Host], images: Sequence[str]) -> set[str]:
    """The layers of this machine's images that every engine has already, each on the same ones beneath it."""
    everything, lacking = set[str](), set[str]()
    for image in images:
        own = run([*LAYERS, image]).split()
        everything.update(own)
        for host in hosts:
            theirs = docker(host, *LAYERS[1:], image).split() if _image_id(host, image) else []
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, theirs, strict=False)))
            lacking.update(own[same:])
    return everything - lacking


def _wait_until_it_answers(host: Host) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            docker(host, "info")
            return
        except RigError as error:
            if time.monotonic() > deadline:
                log = (STATE / host.name / "log").read_text(errors="replace").splitlines()[-5:]
                raise RigError(
                    f"the engine of {host.name} did not start: {error}\n" + "\n".join(log)
                ) from None
            time.sleep(0.3)


def _pid(host: Host) -> int | None:
    """The pid of the host's engine, if it is that program still."""
    try:
        pid = int((STATE / host.name / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        zombie = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (OSError, ValueError):
        return None
    return pid if b"dockerd" in command and str(DATA / host.name).encode() in command and not zombie else None
