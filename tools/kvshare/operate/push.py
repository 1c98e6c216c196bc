"""`kvshare push` and `kvshare pull`: the images through a registry, under REGISTRY's name."""

import re
from dataclasses import replace

import click
from rich.filesize import decimal

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.progress import step
from kvshare.site import images
from kvshare.site.attached import EngineError
from kvshare.site.base import last_line
from kvshare.site.engine import engine
from kvshare.site.images import Image
from kvshare.stack.members import Stack

_REGISTRY = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)*")
# What Docker says, and what to do about it; {host} is the registry's, {context} the engine that asked.
_CURES = (
    (r"server gave HTTP response to HTTPS client", "{host} speaks plain HTTP: add it to insecure-registries "
     "in /etc/docker/daemon.json on the machine of context {context}, and restart Docker there"),
    (r"no basic auth|unauthorized|authentication required|denied|forbidden", "{host} does not let us in: "
     "type docker login {host}"),
    (r"x509|certificate", "context {context} does not trust the certificate of {host}: put its CA into "
     "/etc/docker/certs.d/{host}/ca.crt there"),
    (r"manifest unknown|not found: manifest|manifest for .* not found", "{host} does not have it: "
     "type make push first"),
    (r"connection refused|no such host|i/o timeout|deadline exceeded|no route|connect:", "no registry "
     "answers at {host}, as seen from context {context}"),
    (r"no space left", "the disk of context {context} is full: free some, e.g. with docker system prune"),
)  # fmt: skip


def registry_of(settings: Settings) -> str:
    """Return the decision REGISTRY; KvshareError if it is not made or is no registry's name."""
    registry = settings.get("REGISTRY")
    if not registry:
        raise KvshareError(
            "no registry is chosen: type make push REGISTRY=HOST[:PORT]/NAME, or set REGISTRY in .env."
        )
    if not _REGISTRY.fullmatch(registry):
        raise KvshareError(
            f"REGISTRY={registry} is no registry's name: give HOST[:PORT]/NAME in lower case, without https://."
        )
    return registry


def push(settings: Settings, stack: Stack, source: str | None) -> None:
    """Tag the images with the registry's name where they are built, and push them, each said before.

    Raises:
        KvshareError: if there is no image, no registry, or the registry refuses.
        CouldNotCheckError: if an engine does not answer.
    """
    registry = registry_of(settings)
    services = images.built(settings)
    unnamed = replace(settings, values={**settings.values, "REGISTRY": ""})
    for target, built in zip(images.names(settings, services), images.names(unnamed, services), strict=True):
        context, image = _newest(target, built, stack, source)
        click.echo(
            f"kvshare: {image.name} ({image.short_id}, {decimal(image.size_bytes)}) on context {context} "
            f"goes to {target}",
            err=True,
        )
        engine(context).tag(image.id, target)
        _through_registry("push", context, target, registry)


def _newest(target: str, built: str, stack: Stack, source: str | None) -> tuple[str, Image]:
    """Return the image to push: built under the registry's own name, or before REGISTRY was set."""
    found, reasons = [], []
    for name in (target, built):
        try:
            found.append(images.source_of(name, stack, (), source))
        except CouldNotCheckError:
            raise
        except KvshareError as error:
            reasons.append(error)
    if not found:
        raise reasons[-1]
    return max(found, key=lambda candidate: candidate[1].created)


def pull(settings: Settings, stack: Stack, node: str) -> None:
    """Pull the images that ``node`` needs onto its engines; raises as ``push`` does."""
    registry = registry_of(settings)
    wanted = images.needed(settings, stack, node)
    for context in wanted:
        engine(context).supported()
    for context, names in wanted.items():
        for name in names:
            before = images.find(context, name)
            _through_registry("pull", context, name, registry)
            image = images.find(context, name)
            if image is None:
                raise CouldNotCheckError(f"context {context} has no {name} after pulling it.")
            news = "as before" if image.is_same_as(before) else "new there"
            click.echo(f"kvshare: context {context} has {name} ({image.short_id}), {news}", err=True)


def _through_registry(verb: str, context: str, name: str, registry: str) -> None:
    """Push or pull an image, its latest line shown; KvshareError says what stood in the way."""
    words = "to the registry" if verb == "push" else f"to context {context}"
    move = engine(context).push if verb == "push" else engine(context).pull
    with step(f"{verb.capitalize()} {name} {words}") as current:
        try:
            for line in move(name):
                current.detail(line)
        except EngineError as error:
            reason = explain(error.reason, context, registry)
            raise KvshareError(f"docker {verb} of {name} failed: {reason}.") from None


def explain(said: str, context: str, registry: str) -> str:
    """Return what Docker's last line means and what to do; the line itself where that is not known."""
    said = last_line(said)
    for pattern, cure in _CURES:
        if re.search(pattern, said, re.IGNORECASE):
            return f"{cure.format(host=registry.split('/')[0], context=context)} ({said})"
    return said
