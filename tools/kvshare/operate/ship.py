"""`kvshare ship`: an image streamed from the engine that has it to the one that does not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

import click
from rich.filesize import decimal

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.progress import transfer
from kvshare.site import contexts, disk, docker_cli, images
from kvshare.site.disk import GIB
from kvshare.site.images import Image
from kvshare.stack.members import Stack

BLOCK_BYTES = 1 << 20
# docker load keeps the whole archive beside the layers that it unpacks from it.
ROOM = 2.0
END_S = 2.0


@dataclass(frozen=True)
class Shipment:
    """One image that goes from one context to another; ``replaced`` is what the target has under its name."""

    image: Image
    source: str
    target: str
    replaced: Image | None = None

    @property
    def sentence(self) -> str:
        """What is about to happen, in words."""
        image = self.image
        told = (
            f"{image.name} ({image.short_id}, {decimal(image.size_bytes)}, built {image.created[:16]}) goes"
        )
        told += f" from context {self.source} to context {self.target}"
        if self.replaced is not None:
            told += f", in place of {self.replaced.short_id} (built {self.replaced.created[:16]})"
        return told


def plan(settings: Settings, stack: Stack, node: str, source: str | None) -> tuple[Shipment, ...]:
    """Return what must go where so that ``node`` has its images; empty if it has them.

    Args:
        source: the context to take them from; None picks it as `images.source_of` says.

    Raises:
        KvshareError: if no context has an image, or a target's is newer than the one picked.
        CouldNotCheckError: if an engine does not answer.
    """
    wanted = images.needed(settings, stack, node)
    contexts.read_engines(wanted)
    targets_of: dict[str, list[str]] = {}
    for context, names in wanted.items():
        for name in names:
            targets_of.setdefault(name, []).append(context)
    return tuple(
        shipment
        for name, targets in targets_of.items()
        for shipment in _shipments(name, stack, targets, source)
    )


def _shipments(name: str, stack: Stack, targets: Sequence[str], chosen: str | None) -> list[Shipment]:
    source, image = images.source_of(name, stack, targets, chosen)
    found = []
    for target in targets:
        present = image if target == source else images.find(target, name)
        if image.is_same_as(present):
            continue
        if chosen is None and present is not None and present.created > image.created:
            raise KvshareError(
                f"context {target} has a newer {name} (built {present.created[:16]}) than context {source} "
                f'(built {image.created[:16]}): choose with make ship ARGS="--from {source}" or '
                f'ARGS="--from {target}".'
            )
        found.append(Shipment(image, source, target, present))
    return found


def ship(shipment: Shipment) -> None:
    """Stream the image, load it and compare it with the source's.

    Raises:
        KvshareError: if it cannot run there, does not fit, or either engine refuses.
        CouldNotCheckError: if what was loaded is another image.
    """
    _check_architecture(shipment)
    _check_room(shipment)
    name, target = shipment.image.name, shipment.target
    with transfer(f"Ship {name} to context {target}", shipment.image.size_bytes) as current:
        _stream(shipment, current.advance, current.note)
    loaded = images.find(target, name)
    if not shipment.image.is_same_as(loaded):
        found = "nothing" if loaded is None else loaded.short_id
        raise CouldNotCheckError(
            f"context {target}: after loading expected {name} to be {shipment.image.short_id}, found {found}."
        )


def _check_architecture(shipment: Shipment) -> None:
    told = docker_cli.docker(shipment.target, "version", "--format", "{{.Server.Arch}}").strip()
    if shipment.image.architecture not in ("", told):
        image = f"{shipment.image.name} on context {shipment.source}"
        raise KvshareError(
            f"{image} is built for {shipment.image.architecture} and context {shipment.target} is {told}: "
            "build it there, with make image."
        )


def _check_room(shipment: Shipment) -> None:
    """Check the disk where it can be seen; a remote engine says only when it is full."""
    room, need = disk.room(shipment.target), ROOM * shipment.image.size_bytes
    if room is not None and room.free < need:
        raise KvshareError(
            f"not enough disk in {room.folder}: need {need / GIB:.1f} GiB, have {room.free / GIB:.1f} GiB "
            "free; free some, e.g. with docker system prune."
        )


def _stream(shipment: Shipment, advance: Callable[[int], None], note: Callable[[str], None]) -> None:
    """Pump `docker save` into `docker load`; whatever ends early ends both, and nothing is loaded then."""
    save = _start(shipment.source, "save", shipment.image.name, stdout=subprocess.PIPE)
    load = _start(shipment.target, "load", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert save.stdout is not None
    assert load.stdin is not None
    try:
        note(f"context {shipment.source} packs it")
        sent = _pump(save.stdout, load.stdin, advance)
        if sent and save.wait() == 0:
            note(f"context {shipment.target} unpacks it")
            _close(load.stdin)
            load.wait()
        ended = ((save, shipment.source, "save"), (load, shipment.target, "load"))
        for process, context, verb in ended if sent else reversed(ended):
            _require_success(process, f"context {context}: docker {verb} of {shipment.image.name}")
    finally:
        # load first: the engine then sees a broken connection, not the end of an archive.
        for process in (load, save):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                _close(pipe)


def _start(context: str, *arguments: str, stdout: int, stdin: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        docker_cli.command(context, *arguments),
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is ours to pass on, in the right order
    )


def _pump(source: IO[bytes], sink: IO[bytes], advance: Callable[[int], None]) -> bool:
    """Copy to the end; return whether the sink took it all. Why it did not is in its exit code."""
    while block := source.read(BLOCK_BYTES):
        try:
            sink.write(block)
        except BrokenPipeError:
            return False
        advance(len(block))
    return True


def _require_success(process: subprocess.Popen[bytes], what: str) -> None:
    if _has_failed(process):
        assert process.stderr is not None
        said = docker_cli.reason(process.stderr.read().decode(errors="replace"))
        raise KvshareError(f"{what} failed: {said}.")


def _has_failed(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended with an error; one whose pipe has just broken is given a moment to say so."""
    try:
        return process.wait(timeout=END_S) != 0
    except subprocess.TimeoutExpired:
        return False


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:
        pass


def run(settings: Settings, stack: Stack, node: str, source: str | None) -> None:
    """Plan and ship, saying each before it starts."""
    shipments = plan(settings, stack, node, source)
    if not shipments:
        click.echo(f"kvshare: nothing to ship, every image that {node} needs is there already", err=True)
    for shipment in shipments:
        click.echo(f"kvshare: {shipment.sentence}", err=True)
        ship(shipment)
