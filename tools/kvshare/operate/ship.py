"""`kvshare ship`: an image streamed from the engine that has it to the one that does not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click
from rich.filesize import decimal

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.progress import Transfer, transfer
from kvshare.site import disk, images
from kvshare.site.attached import EngineError
from kvshare.site.disk import GIB
from kvshare.site.engine import engine
from kvshare.site.images import Image
from kvshare.stack.members import Stack

# docker load keeps the whole archive beside the layers that it unpacks from it.
ROOM = 2.0


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
    for context in wanted:
        engine(context).supported()
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
        _stream(shipment, current)
    loaded = images.find(target, name)
    if not shipment.image.is_same_as(loaded):
        found = "nothing" if loaded is None else loaded.short_id
        raise CouldNotCheckError(
            f"context {target}: after loading expected {name} to be {shipment.image.short_id}, found {found}."
        )


def _check_architecture(shipment: Shipment) -> None:
    told = engine(shipment.target).version()["Arch"]
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


def _stream(shipment: Shipment, current: Transfer) -> None:
    """Pass the archive on, block by block; where one end fails the other does, and nothing is loaded."""
    name = shipment.image.name

    def archive() -> Iterator[bytes]:
        current.note(f"context {shipment.source} packs it")
        with _failing_as(f"context {shipment.source}: docker save of {name}"):
            for block in engine(shipment.source).save(name):
                current.advance(len(block))
                yield block
        current.note(f"context {shipment.target} unpacks it")

    with _failing_as(f"context {shipment.target}: docker load of {name}"):
        engine(shipment.target).load(archive())


@contextmanager
def _failing_as(what: str) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise KvshareError(f"{what} failed: {error.reason}.") from None


def run(settings: Settings, stack: Stack, node: str, source: str | None) -> None:
    """Plan and ship, saying each before it starts."""
    shipments = plan(settings, stack, node, source)
    if not shipments:
        click.echo(f"kvshare: nothing to ship, every image that {node} needs is there already", err=True)
    for shipment in shipments:
        click.echo(f"kvshare: {shipment.sentence}", err=True)
        ship(shipment)
