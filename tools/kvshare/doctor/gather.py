"""Look at every machine of the stack, with nothing of it started: engines, probes, connections, links."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from kvshare.config.settings import Settings
from kvshare.contract import FINGERPRINT, name_of_key
from kvshare.doctor import engines as engine_side
from kvshare.doctor import links, network, probing
from kvshare.doctor.containers import OneOffs
from kvshare.doctor.evidence import Behind, Engine, Evidence, Node
from kvshare.doctor.services import Service, service_of
from kvshare.errors import CouldNotCheckError
from kvshare.site import contexts
from kvshare.site.base import answered, at_once, fetch, fingerprint_of, reason_of
from kvshare.site.compose import read_stack, resolved_config
from kvshare.site.engine import engine
from kvshare.stack.members import Member, Stack

POLL_S = 3.0
Narrate = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What the user chose: seconds to wait for engines, a known prefill speed in tokens a second."""

    wait_s: float = 0.0
    prefill_speed: float | None = None
    network: bool = True


def examine(settings: Settings, options: Options, narrate: Narrate) -> Evidence:
    """Return what can be seen now; what cannot be is named in the evidence.

    Raises:
        KvshareError: if the settings make no stack, or a context does not exist.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    stack = read_stack(settings)
    for context in stack.contexts:
        contexts.resolve(context)
    narrate("engines")
    services = services_of(settings, stack.members)
    image = services[stack.prefill.name].image
    engines = _engines(stack, image, options.wait_s)
    evidence = Evidence(
        started=started,
        stack=stack,
        operator=engine_side.operator(),
        engines=engines,
        nodes=(),
        environments={name: service.environment for name, service in services.items()},
    )
    one_offs = OneOffs(image)
    try:
        return _look_closer(evidence, services, settings, one_offs, options, narrate)
    finally:
        one_offs.remove_leftovers([engine.context for engine in evidence.asked])


def _look_closer(
    evidence: Evidence,
    services: dict[str, Service],
    settings: Settings,
    one_offs: OneOffs,
    options: Options,
    narrate: Narrate,
) -> Evidence:
    narrate("machines")
    evidence = replace(evidence, nodes=_nodes(evidence, services, settings, one_offs))
    evidence = replace(evidence, keys=_keys(evidence), next_key=_next_key(settings))
    if options.network:
        narrate("ports")
        with ExitStack() as listeners:
            unheld = network.listen(evidence, one_offs, listeners)
            evidence = replace(evidence, dialed=network.dial(evidence, one_offs, unheld.free))
        evidence = replace(evidence, unheld=unheld.refused)
        evidence = replace(evidence, behind=_behind(evidence))
        narrate("links")
        evidence = replace(evidence, links=links.measure(evidence, services, one_offs))
    return replace(evidence, prefill_speed=links.prefill_speed(evidence, options.prefill_speed))


def services_of(settings: Settings, members: Sequence[Member]) -> dict[str, Service]:
    """Return the members' services by the member's name, as its own machine has it resolved."""
    names = dict.fromkeys(member.context for member in members)
    configs = {context: resolved_config(settings, context) for context in names}
    return {member.name: service_of(configs[member.context], member.service) for member in members}


def _engines(stack: Stack, image: str, wait_s: float) -> tuple[Engine, ...]:
    """Return every engine; those that do not answer are asked again until ``wait_s`` is over."""
    deadline = time.monotonic() + wait_s
    while True:
        found, errors = at_once(
            lambda context: engine_side.look(context, image, stack.project), stack.contexts
        )
        if not errors or time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    return tuple(found.get(c) or Engine(c, reason_of(errors[c])) for c in stack.contexts)


def _nodes(
    evidence: Evidence, services: dict[str, Service], settings: Settings, one_offs: OneOffs
) -> tuple[Node, ...]:
    stack = evidence.stack
    gpus = {node.name: node.gpu for node in settings.decode_nodes}
    gpus[stack.prefill.name] = settings.get("PREFILL_GPU", "0")
    token = settings.compose_environment()["HF_TOKEN"]
    servers = {server.name: server for server in (stack.prefill, *stack.decodes)}

    def one(name: str) -> Node:
        server = servers[name]
        bare = Node(name, server.service, server.context, server.host, gpus[name])
        return _probe(bare, evidence, services[name], token, one_offs)

    found, errors = at_once(one, servers)
    assert not errors, "a probe that fails is a node with an error"
    return tuple(found.values())


def _behind(evidence: Evidence) -> Behind | None:
    """Ask a gateway that runs for the servers that it knows."""
    gateway = evidence.stack.gateway
    if gateway is None or not evidence.runs(gateway):
        return None
    name = evidence.stack.container_of(gateway)
    try:
        said = json.loads(fetch(partial(engine(gateway.context).inside, name), f"{gateway.url}/health"))
        return Behind({node["place"]: bool(node["up"]) for node in said["nodes"]})
    except CouldNotCheckError as error:
        return Behind(error=error.message)
    except (LookupError, TypeError, ValueError):
        return Behind(error="it is not the gateway of this version that answers; type make up NODE=gateway")


def _keys(evidence: Evidence) -> dict[str, str]:
    """Return what tells the cluster keys of the engines that run apart; of those that do not say, nothing."""

    def one(name: str) -> str:
        member = running[name]
        container = evidence.stack.container_of(member)
        said = answered(engine(member.context).inside(container, "cat", FINGERPRINT))
        try:
            return fingerprint_of(said).cluster_key
        except ValueError as error:
            raise CouldNotCheckError(str(error)) from None

    running = {member.name: member for member in evidence.stack.engines if evidence.runs(member)}
    return at_once(one, running)[0]


def _next_key(settings: Settings) -> str | None:
    if key := settings.cluster_key:
        return name_of_key(key)
    return None if settings.wants_cluster_key else ""


def _probe(node: Node, evidence: Evidence, service: Service, token: str, one_offs: OneOffs) -> Node:
    engine = evidence.engine(node.context)
    if engine.error or engine.image is None:
        return replace(node, error=engine.error or f"there is no image {service.image}")
    try:
        node = probing.look(node, service, engine_side.volumes(node.context), token, one_offs)
    except CouldNotCheckError as error:
        return replace(node, error=error.message)
    cuda = evidence.stack.device == "cuda"
    return replace(node, gpus=probing.gpus(node, one_offs)) if cuda and node.facts else node
