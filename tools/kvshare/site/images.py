"""The stack's images: which a node needs, which an engine has, and whether two are the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.site.base import last_line
from kvshare.site.compose import resolved_config
from kvshare.site.contexts import docker
from kvshare.site.engine import engine
from kvshare.stack.members import Stack, by_context, members_of

ENGINE, CLIENT, PROMETHEUS = "prefill", "client", "prometheus"
BILL_OF_MATERIALS = "/opt/kvshare/sbom.cdx.json"
LOCAL_CONTEXT = "default"


@dataclass(frozen=True)
class Image:
    """An image as an engine describes it; ``content`` is equal exactly where files and settings are."""

    name: str
    id: str
    size_bytes: int
    created: str
    architecture: str
    content: str

    @property
    def short_id(self) -> str:
        """The first twelve digits of the id, as `docker images` shows them."""
        return self.id.removeprefix("sha256:")[:12]

    def is_same_as(self, other: Self | None) -> bool:
        """Whether both are one image; an engine with containerd's store gives it another id."""
        return other is not None and (self.id == other.id or self.content == other.content)


def find(context: str, name: str) -> Image | None:
    """Return an engine's image of that name, or None; CouldNotCheckError if the engine does not say."""
    found = engine(context).image(name)
    return None if found is None else parse(name, found)


def bill_of_materials(context: str, name: str) -> str:
    """Return the bill of materials that an image carries, CycloneDX's JSON.

    CouldNotCheckError if the engine does not have the image, or it carries none.
    """
    if find(context, name) is None:
        raise CouldNotCheckError(f"context {context} has no image {name}: type make image.")
    run = ("run", "--rm", "--network", "none", "--entrypoint", "cat", name, BILL_OF_MATERIALS)
    said = docker("--context", context, *run)
    if said.returncode != 0:
        raise CouldNotCheckError(f"{name} shows no {BILL_OF_MATERIALS}: {last_line(said.stderr)}.")
    return said.stdout


def parse(name: str, inspected: dict[str, Any]) -> Image:
    """Return the image that `docker image inspect` describes."""
    config = inspected.get("Config") or {}
    kept = {key: config.get(key) for key in ("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Labels")}
    layers = (inspected.get("RootFS") or {}).get("Layers") or [inspected["Id"]]
    return Image(
        name=name,
        id=inspected["Id"],
        size_bytes=int(inspected["Size"]),
        created=inspected.get("Created") or "",
        architecture=inspected.get("Architecture") or "",
        content=json.dumps([layers, kept], sort_keys=True),
    )


def names(settings: Settings, services: Sequence[str]) -> tuple[str, ...]:
    """Return the image names of services as Compose resolves them, each once."""
    described = resolved_config(settings, settings.prefill_context)["services"]
    return tuple(dict.fromkeys(described[service]["image"] for service in services))


def built(settings: Settings) -> tuple[str, ...]:
    """Return a service of each image; one engine image serves controller, prefill and decode."""
    return (ENGINE, CLIENT, *([PROMETHEUS] if settings.observes else []))


def missing(settings: Settings, context: str, services: Sequence[str]) -> list[str]:
    """Return the image names of services that a context's engine does not have."""
    return [name for name in names(settings, services) if engine(context).image(name) is None]


def needed(settings: Settings, stack: Stack, node: str) -> dict[str, tuple[str, ...]]:
    """Return the image names that ``node`` needs, by context; the client runs on the prefill context."""
    wanted = {}
    for context, services in by_context(members_of(stack, node)).items():
        client = [CLIENT] if context == stack.prefill.context else []
        wanted[context] = names(settings, [*services, *client])
    return wanted


def source_of(name: str, stack: Stack, targets: Sequence[str], chosen: str | None) -> tuple[str, Image]:
    """Return the context to take an image from, and the image.

    The chosen context; without one the first that has it of: the local engine, prefill's, the others',
    those that are themselves targets last.

    Raises:
        KvshareError: if none has the image, or there is no such context.
        CouldNotCheckError: if the chosen engine does not answer; of the others such a one is passed over.
    """
    if chosen is not None:
        engine(chosen).supported()
        if image := find(chosen, name):
            return chosen, image
        raise KvshareError(f"context {chosen} has no image {name}: type make image, or name another context.")
    candidates = dict.fromkeys((LOCAL_CONTEXT, stack.prefill.context, *stack.contexts))
    silent = []
    for context in sorted(candidates, key=lambda candidate: candidate in targets):
        try:
            image = find(context, name)
        except CouldNotCheckError as error:
            silent.append(error.message)
            continue
        if image is not None:
            return context, image
    passed_over = f" (not asked: {' '.join(silent)})" if silent else ""
    raise KvshareError(f"no context has the image {name}: type make image{passed_over}.")
