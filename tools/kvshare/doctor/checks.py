"""The doctor's checks, in causal order: engines, images, machines, GPUs, the network, the configuration.

A check reads evidence and nothing else. A machine that could not be looked at is named by DOC-ENG-01,
DOC-IMG-01 or DOC-HOST-01, and the other checks judge the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from kvshare.checking.registry import Failed, NotChecked, NotNeeded, Outcome, Passed, Registry
from kvshare.cost import link as links
from kvshare.doctor.evidence import OPERATOR, Evidence, Facts, Interface, Link, Node, where
from kvshare.doctor.network import is_taken
from kvshare.operate.preflight import ANY_ADDRESS, CONTROLLER_GIB, CPU_SERVER_GIB, GIB
from kvshare.site.contexts import MINIMUM_ENGINE, version_of
from kvshare.stack.members import Controller, Server
from kvshare.stack.ports import Port, ports_of, ranges_of
from kvshare.verify.checks import PATCHES

CATEGORIES = ("engines", "images", "hosts", "gpu", "network", "configuration")
MINIMUM_COMPOSE = (2, 26)
MINIMUM_DRIVER = (580,)  # CUDA 13, which the locked packages are built for
CLOCK_LIMIT_S = 1.0
# Facts of one node alone; every other LMCache setting must be equal, or is judged by a check of its own.
OF_ONE_NODE = (
    *("lmcache_instance_id", "lmcache_worker_ports", "p2p_host", "p2p_init_ports", "p2p_lookup_ports"),
    *("max_local_cpu_size", "lookup_timeout_ms", "chunk_size"),
)
REDIRECT, UNAUTHORISED, FORBIDDEN, NOT_FOUND = 300, 401, 403, 404

REGISTRY: Registry[Evidence] = Registry(CATEGORIES, where=where)
_check, select, evaluate = REGISTRY.check, REGISTRY.select, REGISTRY.evaluate


def needs_network(selected: Iterable[str]) -> bool:
    """Return whether any of the checks judges connections or links."""
    chosen = set(selected)
    return any(
        check.id in chosen and (check.category == "network" or "DOC-NET-05" in check.needs)
        for check in REGISTRY
    )


# --- engines ------------------------------------------------------------------------------------------------


@_check("DOC-ENG-01", "engines", "every Docker engine answers")
def _engines_answer(evidence: Evidence) -> Outcome:
    bad = [engine for engine in evidence.engines if engine.error]
    if not bad:
        return Passed(", ".join(f"{e.context} on {e.machine}" for e in evidence.engines))
    silent = {engine.context for engine in bad}
    return Failed(
        "an engine behind every context",
        "; ".join(f"context {engine.context}: {engine.error}" for engine in bad),
        tuple(m.name for m in evidence.stack.members if m.context in silent),
        f"docker --context {bad[0].context} version",
    )


@_check("DOC-ENG-02", "engines", "every engine is new enough")
def _engines_new(evidence: Evidence) -> Outcome:
    wanted = _dotted(MINIMUM_ENGINE)
    if not evidence.asked:
        return NotChecked("no engine answers")
    old = [engine for engine in evidence.asked if version_of(engine.version) < MINIMUM_ENGINE]
    if not old:
        return Passed(", ".join(f"{e.context} {e.version}" for e in evidence.asked))
    return Failed(
        f"Docker Engine {wanted} or newer everywhere",
        "; ".join(f"{engine.version} on {engine.machine}" for engine in old),
        _members(evidence, [engine.context for engine in old]),
        "make setup, in a clone on that machine, or its distribution's own upgrade",
    )


@_check("DOC-ENG-03", "engines", "Compose is new enough")
def _compose_new(evidence: Evidence) -> Outcome:
    found = evidence.operator.compose
    if version_of(found) >= MINIMUM_COMPOSE:
        return Passed(found)
    return Failed(f"Compose {_dotted(MINIMUM_COMPOSE)} or newer", found or "none", (), "make setup")


@_check("DOC-ENG-04", "engines", "buildx is there (images cannot be built without it)", warning=True)
def _buildx_there(evidence: Evidence) -> Outcome:
    found = evidence.operator.buildx
    return Passed(found) if found else Failed("Docker's buildx plugin", "none", (), "make setup")


# --- images -------------------------------------------------------------------------------------------------


@_check("DOC-IMG-01", "images", "every machine has the engine image")
def _image_there(evidence: Evidence) -> Outcome:
    if not evidence.asked:
        return NotChecked("no engine answers")
    bad = [engine.context for engine in evidence.asked if engine.image is None]
    images = [engine.image for engine in evidence.asked if engine.image is not None]
    if not bad:
        return Passed(", ".join(dict.fromkeys(f"{image.name} {image.short_id}" for image in images)))
    names = _members(evidence, bad)
    how = f"make ship NODE={names[-1]}" if images else "make image"
    return Failed("the engine image everywhere", f"none on {_contexts(bad)}", names, how)


@_check("DOC-IMG-02", "images", "it is one image", warning=True)
def _one_image(evidence: Evidence) -> Outcome:
    images = {e.context: e.image for e in evidence.asked if e.image is not None}
    if len(images) < 2:
        return _alone(evidence, images)
    different = [(a, b) for a, b in combinations(images, 2) if not images[a].is_same_as(images[b])]
    if not different:
        return Passed(next(iter(images.values())).short_id)
    return Failed(
        "one image id",
        _pairs({context: image.short_id for context, image in images.items()}, different),
        _members(evidence, [different[0][1]]),
        f"make ship NODE={_members(evidence, [different[0][1]])[-1]}",
    )


@_check("DOC-IMG-03", "images", "the versions inside are the same", ("DOC-IMG-01",))
def _one_set_of_versions(evidence: Evidence) -> Outcome:
    found = {name: _versions(facts) for name, facts in evidence.seen.items()}
    return _same(evidence, "set of versions", found, "run one image everywhere: make ship, or make image")


@_check("DOC-IMG-04", "images", "it carries the patches", ("DOC-IMG-01",))
def _patched(evidence: Evidence) -> Outcome:
    expected = PATCHES[evidence.stack.device]
    missing = {name: set(expected) - set(facts.patches) for name, facts in evidence.seen.items()}
    return _each(
        evidence,
        {name: f"{', '.join(sorted(lacks))} missing" for name, lacks in missing.items() if lacks},
        ", ".join(expected),
        "make image, then make ship where it is not built",
    )


# --- hosts --------------------------------------------------------------------------------------------------


@_check("DOC-HOST-01", "hosts", "a container runs there as a server would", ("DOC-IMG-01",))
def _containers_run(evidence: Evidence) -> Outcome:
    asked = {engine.context for engine in evidence.asked}
    nodes = [node for node in evidence.nodes if node.context in asked]
    if not nodes:
        return NotChecked("no engine answers")
    bad = {node.name: node.error or node.refused for node in nodes if node.error or node.refused}
    if not bad:
        return Passed(", ".join(f"{n.name} on {n.facts.hostname}" for n in nodes if n.facts is not None))
    return Failed(
        "the engine image's probe runs with the server's own folders, limits and devices",
        _listed(bad),
        tuple(bad),
        "make image, so that image and tool are of one version, then correct what the engine refuses",
    )


@_check("DOC-HOST-02", "hosts", "each node's HOST is an address of its own machine")
def _hosts_are_theirs(evidence: Evidence) -> Outcome:
    bad = {
        node.name: wrong
        for node in evidence.nodes
        if node.facts is not None and (wrong := _wrong_host(evidence, node, node.facts))
    }
    if bad or not evidence.seen:
        first = evidence.node(next(iter(bad))) if bad else None
        fix = f"set {_host_variable(evidence, first)} in .env" if first else ""
        return _each(evidence, bad, "an address under which the other machines reach it", fix)
    return Passed(", ".join(f"{n.name} {n.host}" for n in evidence.nodes if n.facts is not None))


def _wrong_host(evidence: Evidence, node: Node, facts: Facts) -> str:
    """Return what is wrong with a node's HOST, and which addresses would do; '' if nothing is."""
    device = facts.holder(node.host)
    alone = len(evidence.stack.contexts) == 1
    fitting = [a for i in facts.interfaces if _fits(i) for a in i.addresses if ":" not in a]
    instead = f"; {facts.hostname} has {', '.join(fitting) or 'no other'}"
    if device is None:
        owner = [
            f"{name}'s machine has it" for name, other in evidence.seen.items() if other.holder(node.host)
        ]
        if _looks_like(node.host, "127."):
            owner = ["it is a loopback address"]
        elif _looks_like(node.host, "172.17."):
            owner = ["it is of docker0's network"]
        return f"{node.host} is no address of it{', ' + owner[0] if owner else ''}{instead}"
    if device.kind == "loopback":
        return "" if alone else f"{node.host} is a loopback address, which no other machine reaches{instead}"
    if device.is_dockers:
        return "" if alone else f"{node.host} is {device.name}'s, which every Docker machine has{instead}"
    return ""


def _fits(interface: Interface) -> bool:
    return interface.up and interface.kind != "loopback" and not interface.is_dockers


def _looks_like(address: str, start: str) -> bool:
    return address.startswith(start)


@_check("DOC-HOST-03", "hosts", "the machines' clocks agree", warning=True)
def _clocks_agree(evidence: Evidence) -> Outcome:
    clocks = {e.context: e.clock for e in evidence.asked if e.clock is not None}
    if len(clocks) < 2:
        return _alone(evidence, clocks)
    apart = {(a, b): abs(clocks[a].ahead_s - clocks[b].ahead_s) for a, b in combinations(clocks, 2)}
    (a, b), worst = max(apart.items(), key=lambda item: item[1])
    doubt = clocks[a].uncertain_s + clocks[b].uncertain_s
    said = f"{worst:.3f} s ± {doubt:.3f} s between {a} and {b}"
    if worst - doubt < CLOCK_LIMIT_S:
        return Passed(said)
    return Failed(
        f"less than {CLOCK_LIMIT_S:.0f} s apart",
        said,
        _members(evidence, [a, b]),
        "timedatectl set-ntp true, on both machines",
    )


@_check("DOC-HOST-04", "hosts", "there is memory for LMCache's cache")
def _memory_suffices(evidence: Evidence) -> Outcome:
    bad, good = {}, []
    for context, (name, facts) in _by_context(evidence).items():
        starting = [m for m in evidence.members_on(context) if not evidence.runs(m)]
        need = sum(_needed_gib(evidence, member) for member in starting)
        have = facts.memory_available / GIB
        said = f"{need:.1f} GiB needed, {have:.1f} GiB available"
        if need > have:
            bad[name] = said
        else:
            good.append(f"{name} {said}" if starting else f"{name} runs already")
    fix = "stop something there, or lower max_local_cpu_size (DEVICE=cpu: CPU_CACHE_GIB in .env)"
    return _each(evidence, bad, "memory for every member that is still to start", fix, "; ".join(good))


def _needed_gib(evidence: Evidence, member: Controller | Server) -> float:
    if isinstance(member, Controller):
        return CONTROLLER_GIB
    facts = evidence.seen.get(member.name)
    cache = float(facts.lmcache.get("max_local_cpu_size", 0)) if facts else 0.0
    return cache + (CPU_SERVER_GIB if evidence.stack.device == "cpu" else 0.0)


@_check("DOC-HOST-05", "hosts", "that memory may be locked")
def _memory_may_be_locked(evidence: Evidence) -> Outcome:
    environments = evidence.environments.values()
    rdma = any(environment.get("KVSHARE_TRANSPORT") == "rdma" for environment in environments)
    if evidence.stack.device == "cpu" and not rdma:
        return NotNeeded("with DEVICE=cpu and TRANSPORT=tcp no memory is locked")
    bad = {}
    for name, facts in evidence.seen.items():
        need = int(float(facts.lmcache.get("max_local_cpu_size", 0)) * GIB)
        if facts.memlock is not None and facts.memlock < need:
            bad[name] = f"memlock is limited to {facts.memlock / GIB:.2f} GiB of {need / GIB:.1f} GiB"
    fix = "let Docker raise it there: LimitMEMLOCK=infinity in docker.service, then restart Docker"
    return _each(evidence, bad, "memlock unlimited, or above max_local_cpu_size", fix)


@_check("DOC-HOST-06", "hosts", "the ports are free, or this stack's already")
def _ports_free(evidence: Evidence) -> Outcome:
    bad: dict[str, str] = {}
    running = 0
    for context, (_, facts) in _by_context(evidence).items():
        for member in evidence.members_on(context):
            if evidence.runs(member):
                running += 1
                continue
            taken = [p for p in ports_of(member) if is_taken(facts.listening, member.host, p.number)]
            if taken:
                bad[member.name] = ", ".join(f"{p.number} ({p.purpose}) is taken" for p in taken)
    fix = "stop what listens there (ss -ltnp shows it), or change the port in x-kvshare of compose.yaml"
    good = f"{running} of {len(evidence.stack.members)} members run already" if running else ""
    return _each(evidence, bad, "nothing listens on the stack's ports before it does", fix, good)


@_check("DOC-HOST-07", "hosts", "the model is there, or can be had")
def _model_there(evidence: Evidence) -> Outcome:
    bad = {n: wrong for n, facts in evidence.seen.items() if (wrong := _model_missing(facts))}
    if bad:
        fix = "correct MODEL, MODELS or HF_TOKEN_FILE in .env"
        return _each(evidence, bad, "the model in the models volume, or a hub that gives it", fix)
    unknown = {n: f.hub for n, f in evidence.seen.items() if f.hub is not None and f.hub.error}
    if unknown:
        said = "; ".join(f"{hub.address} from {n}: {hub.error}" for n, hub in unknown.items() if hub)
        return NotChecked(f"the model is not in the models volume, and the hub cannot be asked ({said})")
    return _each(evidence, {}, "", "", ", ".join(f"{n} {_model_state(f)}" for n, f in evidence.seen.items()))


def _model_missing(facts: Facts) -> str:
    model, hub = facts.model, facts.hub
    if model.found or model.name == "demo":
        return ""
    if hub is None:
        return f"no config.json at {model.name}"
    if hub.status in (UNAUTHORISED, FORBIDDEN):
        token = "the token given is not enough" if hub.token_given else "no token was given"
        return f"{hub.address} keeps {model.name} behind a licence, and {token} (HTTP {hub.status})"
    if hub.status is not None and hub.status >= UNAUTHORISED:
        return f"{hub.address} has no {model.name} to give (HTTP {hub.status})"
    return ""


def _model_state(facts: Facts) -> str:
    if facts.model.found:
        return f"has {facts.model.name}"
    return (
        f"{'makes' if facts.model.name == 'demo' else 'will download'} {facts.model.name} at its first start"
    )


# --- gpu ----------------------------------------------------------------------------------------------------


def _gpu_nodes(evidence: Evidence) -> Outcome | list[Node]:
    if evidence.stack.device != "cuda":
        return NotNeeded(f"DEVICE={evidence.stack.device}")
    nodes = [node for node in evidence.nodes if node.gpus is not None]
    return nodes or NotChecked("no machine could be looked at")


@_check("DOC-GPU-01", "gpu", "containers get GPUs (NVIDIA's container toolkit)")
def _toolkit(evidence: Evidence) -> Outcome:
    nodes = _gpu_nodes(evidence)
    if not isinstance(nodes, list):
        return nodes
    bad = {}
    for node in nodes:
        if node.gpus is not None and node.gpus.error:
            runtime = "nvidia" in evidence.engine(node.context).runtimes
            has = "there" if runtime else "not among the engine's runtimes"
            bad[node.name] = f"nvidia-smi in a container: {node.gpus.error}; the nvidia runtime is {has}"
    fix = "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker, on that machine"
    return _each(evidence, bad, "nvidia-smi runs in a container", fix)


@_check("DOC-GPU-02", "gpu", "the driver is new enough", ("DOC-GPU-01",))
def _driver(evidence: Evidence) -> Outcome:
    nodes = _gpu_nodes(evidence)
    if not isinstance(nodes, list):
        return nodes
    drivers = {node.name: node.gpus.driver for node in nodes if node.gpus is not None}
    bad = {name: driver for name, driver in drivers.items() if version_of(driver) < MINIMUM_DRIVER}
    return _each(
        evidence,
        bad,
        f"NVIDIA driver {_dotted(MINIMUM_DRIVER)} or newer, for CUDA 13",
        "install a newer driver there",
        _listed(drivers, ", "),
    )


@_check("DOC-GPU-03", "gpu", "the pinned GPU is there", ("DOC-GPU-01",))
def _pinned(evidence: Evidence) -> Outcome:
    nodes = _gpu_nodes(evidence)
    if not isinstance(nodes, list):
        return nodes
    bad, good = {}, []
    for node in nodes:
        found = node.gpus.found if node.gpus is not None else ()
        match = next((gpu for gpu in found if node.pinned_gpu in gpu[:2]), None)
        if match is None:
            there = ", ".join(f"{index} ({uuid}, {name})" for index, uuid, name in found) or "none"
            bad[node.name] = f"no GPU {node.pinned_gpu}, there is {there}"
        else:
            good.append(f"{node.name} {match[0]}, {match[2]}")
    variable = "PREFILL_GPU, DECODE_GPU or DECODE_GPUS"
    return _each(evidence, bad, "each pinned index or UUID", f"correct {variable} in .env", "; ".join(good))


# --- network ------------------------------------------------------------------------------------------------


@_check("DOC-NET-01", "network", "UCX uses a network card that the other machines reach", ("DOC-HOST-02",))
def _ucx_device(evidence: Evidence) -> Outcome:
    bad, good = {}, []
    for name, facts in evidence.seen.items():
        wrong = _wrong_device(evidence, facts)
        if wrong:
            bad[name] = wrong
        else:
            good.append(f"{name} {facts.ucx.tls} on {_device_words(facts)}")
    fix = (
        "correct UCX_NET_DEVICES in .env, or leave it empty: then it is the device of the node's own address"
    )
    return _each(
        evidence, bad, "a device that UCX finds, and neither docker0 nor loopback", fix, "; ".join(good)
    )


def _wrong_device(evidence: Evidence, facts: Facts) -> str:
    ucx = facts.ucx
    if ucx.error:
        return ucx.error
    known = {interface.name: interface for interface in facts.interfaces}
    for name in ucx.devices.split(","):
        device = known.get(name)
        if device is not None and device.is_dockers:
            return f"UCX_NET_DEVICES={ucx.devices}: {name} is Docker's own bridge"
        if device is not None and device.kind == "loopback" and len(evidence.stack.contexts) > 1:
            return f"UCX_NET_DEVICES={ucx.devices}: {name} leads to no other machine"
        if device is not None and not device.up:
            return f"UCX_NET_DEVICES={ucx.devices}: {name} is down, or has no cable"
        if not any(found.endswith(f"/{name}") for found in ucx.found):
            return f"UCX_NET_DEVICES={ucx.devices}, and UCX finds only {', '.join(ucx.found) or 'nothing'}"
    return ""


def _device_words(facts: Facts) -> str:
    device = next((i for i in facts.interfaces if i.name == facts.ucx.devices), None)
    if device is None:
        return facts.ucx.devices
    speed = f"{device.speed_mbit / 1000:g} Gbit/s" if device.speed_mbit else "speed not told"
    return f"{device.name} ({speed}, MTU {device.mtu})"


@_check("DOC-NET-02", "network", "each port is reached from where it must be", ("DOC-HOST-02",))
def _ports_reached(evidence: Evidence) -> Outcome:
    tried = [one for one in evidence.dialed if one.source != OPERATOR and not one.free]
    if evidence.unheld:
        said = "; ".join(evidence.unheld)
        names = tuple(m.name for m in evidence.stack.members if f"{m.host}:" in said)
        return Failed("the ports can be listened on", said, names, "ss -ltnp, on that machine")
    if not tried:
        return NotChecked("no machine could be looked at")
    bad = [one for one in tried if one.error]
    if bad:
        found = "; ".join(f"{o.source} to {o.host}:{o.port} ({o.purpose}): {o.error}" for o in bad)
        return Failed(
            f"{len(tried)} connections stand",
            found,
            tuple(dict.fromkeys(one.target for one in bad)),
            "open these ports there for the stack's machines: kvshare ports --format nft, or ufw",
        )
    return _unless_unseen(evidence, f"{len(tried)} connections")


@_check("DOC-NET-03", "network", "so are those that UCX takes for KV", ("DOC-HOST-02",))
def _ucx_ports_reached(evidence: Evidence) -> Outcome:
    tried = [one for one in evidence.dialed if one.free]
    bad = [one for one in tried if one.error]
    if not tried:
        return NotChecked("no machine could be looked at")
    if not bad:
        return _unless_unseen(evidence, f"{len(tried)} connections to ports of {_range(evidence)}")
    return Failed(
        f"ports {_range(evidence)} open between the stack's machines: UCX takes its own out of them",
        "; ".join(f"{one.source} to {one.host}:{one.port}: {one.error}" for one in bad),
        tuple(dict.fromkeys(one.target for one in bad)),
        "kvshare ports --format nft, or ufw, on that machine",
    )


@_check("DOC-NET-04", "network", "no port is reached from where it must not be", warning=True)
def _ports_closed(evidence: Evidence) -> Outcome:
    outside = [o for o in evidence.dialed if o.source == OPERATOR and not o.error]
    everywhere = [
        (member.name, port)
        for context, (_, facts) in _by_context(evidence).items()
        for member in evidence.members_on(context)
        if evidence.runs(member)
        for port in (*ports_of(member), *ranges_of(member))
        if _on_all_addresses(facts, port)
    ]
    if not outside and not everywhere:
        nobody = not any(
            evidence.runs(m) for m in evidence.stack.members if m.context in _by_context(evidence)
        )
        return Passed("as far as can be told before it runs" if nobody else "")
    found = [f"{o.host}:{o.port} ({o.purpose}) answers {OPERATOR}" for o in outside]
    found += [
        f"{p.text} ({p.purpose}) listens on all addresses of {name}'s machine" for name, p in everywhere
    ]
    names = (*(o.target for o in outside), *(name for name, _ in everywhere))
    return Failed(
        "ports without authentication answer the stack's machines alone",
        "; ".join(found),
        tuple(dict.fromkeys(names)),
        "close them to all others: kvshare ports shows who must reach which, --format nft or ufw the rules",
    )


def _on_all_addresses(facts: Facts, port: Port) -> bool:
    return any(port.first <= e.port <= port.last and e.host in ANY_ADDRESS for e in facts.listening)


def _range(evidence: Evidence) -> str:
    return ranges_of(evidence.stack.prefill)[0].text


@_check("DOC-NET-05", "network", "the link carries KV", ("DOC-NET-01",))
def _link_measured(evidence: Evidence) -> Outcome:
    bad = {link.target: link.error for link in evidence.links if link.error}
    measured = [link for link in evidence.links if link.bytes_per_s]
    if bad:
        return Failed(
            "ucx_perftest from prefill to each decode node, with the stack's own UCX_TLS and UCX_NET_DEVICES",
            _listed(bad),
            tuple(bad),
            f"docker --context {evidence.node(next(iter(bad))).context} run --rm --network host "
            f"{_image_name(evidence)} ucx_info -d",
        )
    not_tried = [link for link in evidence.links if link.not_tried]
    if not_tried or not measured:
        return NotChecked(
            "; ".join(dict.fromkeys(li.not_tried for li in not_tried)) or "no link was measured"
        )
    return Passed("; ".join(f"{li.source} to {li.target} {speed_words(li)}" for li in measured))


def speed_words(link: Link) -> str:
    """Return a measured link's speed and latency in words."""
    return f"{(link.bytes_per_s or 0) / 1e9:.2f} GB/s, {(link.latency_s or 0) * 1e6:.0f} µs"


# --- configuration ------------------------------------------------------------------------------------------


def _set(evidence: Evidence, variable: str, controller: bool = False) -> dict[str, str]:
    """Return a variable's value by member, as Compose resolves it for each machine."""
    return {
        member.name: evidence.environments[member.name].get(variable, "")
        for member in evidence.stack.members
        if member.name in evidence.environments and (controller or isinstance(member, Server))
    }


@_check("DOC-CONF-01", "configuration", "PYTHONHASHSEED is the same everywhere")
def _one_seed(evidence: Evidence) -> Outcome:
    seeds = _set(evidence, "PYTHONHASHSEED", controller=True)
    return _same(evidence, "PYTHONHASHSEED", seeds, "set PYTHONHASHSEED once in compose.yaml (shared)")


@_check("DOC-CONF-02", "configuration", "the model is named the same")
def _one_model(evidence: Evidence) -> Outcome:
    return _same(evidence, "model string", _set(evidence, "KVSHARE_MODEL"), "set one MODEL in .env")


@_check("DOC-CONF-03", "configuration", "the dtype is the same")
def _one_dtype(evidence: Evidence) -> Outcome:
    fix = "set KVSHARE_DTYPE once in compose.yaml (server), one KV_CACHE_DTYPE in .env"
    models, kept = _set(evidence, "KVSHARE_DTYPE"), _set(evidence, "KVSHARE_KV_CACHE_DTYPE")
    found = {name: _with_kv(dtype, kept.get(name, "auto")) for name, dtype in models.items()}
    return _same(evidence, "dtype", found, fix)


def _with_kv(dtype: str, kept: str) -> str:
    return dtype if kept in ("", "auto") else f"{dtype} with {kept} KV"


@_check("DOC-CONF-04", "configuration", "the chunk size is the same", ("DOC-IMG-01",))
def _one_chunk_size(evidence: Evidence) -> Outcome:
    found = {name: str(facts.lmcache.get("chunk_size", "")) for name, facts in evidence.seen.items()}
    return _same(evidence, "chunk_size", found, "correct configs/lmcache.yaml, then one image everywhere")


@_check("DOC-CONF-05", "configuration", "LMCache's other settings are the same", ("DOC-IMG-01",))
def _one_lmcache(evidence: Evidence) -> Outcome:
    settings = {name: _shared(facts) for name, facts in evidence.seen.items()}
    names = sorted({key for values in settings.values() for key in values})
    differing = [key for key in names if len({repr(v.get(key)) for v in settings.values()}) > 1]
    found = {
        name: ", ".join(f"{key}={values.get(key)}" for key in differing) for name, values in settings.items()
    }
    fix = "correct configs/lmcache.yaml or the LMCACHE_ variable that overrides it"
    outcome = _same(evidence, "set of LMCache settings", found, fix)
    return Passed(f"{len(names)} settings") if isinstance(outcome, Passed) else outcome


def _shared(facts: Facts) -> Mapping[str, Any]:
    return {key: value for key, value in facts.lmcache.items() if key not in OF_ONE_NODE}


@_check(
    "DOC-CONF-06", "configuration", "LOOKUP_TIMEOUT_MS lets the longest prompt's KV through", ("DOC-NET-05",)
)
def _timeout_suffices(evidence: Evidence) -> Outcome:
    meant = meanings(evidence)
    if not meant:
        return NotChecked("how large the model's KV is cannot be told before the model is there")
    bad = {name: m for name, (_, m) in meant.items() if m.needed_ms > m.timeout_ms}
    slowest, m = max(((name, m) for name, (_, m) in meant.items()), key=lambda item: item[1].needed_ms)
    said = (
        f"{m.longest_tokens} tokens (MAX_MODEL_LEN) of {_size(m.token_bytes)} take {m.longest_s:.2f} s "
        f"from {evidence.stack.prefill.name} to {slowest}"
    )
    advice = f"LOOKUP_TIMEOUT_MS={m.advised_ms}"
    if not bad:
        return Passed(f"{said}; {m.timeout_ms} ms is enough ({advice} would be derived)")
    return Failed(
        f"{advice} or more",
        f"{said}; {m.timeout_ms} ms lets {m.fits_tokens} tokens through, and longer prompts are recomputed",
        tuple(bad),
        f"kvshare doctor --write, or set {advice} in .env",
    )


@_check("DOC-CONF-07", "configuration", "a pull pays for prompts that fit", ("DOC-NET-05",), warning=True)
def _pays(evidence: Evidence) -> Outcome:
    meant, speed = meanings(evidence), evidence.prefill_speed
    if not meant or speed is None:
        return NotChecked("how large the model's KV is cannot be told before the model is there")
    against = f"against prefill at {speed.tokens_per_s:.0f} tokens/s ({speed.how})"
    bad = {n: m for n, (_, m) in meant.items() if m.break_even is None or m.break_even > m.longest_tokens}
    if not bad:
        words = ", ".join(f"to {name} from {m.break_even} tokens on" for name, (_, m) in meant.items())
        return Passed(f"{words}, {against}")
    words = "; ".join(
        f"to {name} {'never' if m.break_even is None else f'from {m.break_even} tokens on'}"
        for name, m in bad.items()
    )
    return Failed(
        f"a pull that is sooner than recomputing, below {next(iter(bad.values())).longest_tokens} tokens",
        f"{words}, {against}",
        tuple(bad),
        "a faster link or longer prompts; kvshare verify measures it, --prefill-speed gives a known figure",
    )


def meanings(evidence: Evidence) -> dict[str, tuple[Link, links.Meaning]]:
    """Return what each measured link means for the model, by the name of the node that asks."""
    speed = evidence.prefill_speed
    found = {}
    for link in evidence.links:
        facts = evidence.seen.get(link.target)
        if link.bytes_per_s and facts is not None and speed is not None:
            meant = links.meaning(link, facts, speed.tokens_per_s)
            if meant is not None:
                found[link.target] = (link, meant)
    return found


# --- what several checks share ------------------------------------------------------------------------------


def _each(evidence: Evidence, bad: Mapping[str, str], expected: str, fix: str, good: str = "") -> Outcome:
    """Return the outcome of looking at every node that could be looked at."""
    if not evidence.seen and not bad:
        return NotChecked("no machine could be looked at")
    if not bad:
        return _unless_unseen(evidence, good or expected)
    return Failed(expected, _listed(bad), tuple(bad), fix)


def _unless_unseen(evidence: Evidence, good: str) -> Passed:
    unseen = [node.name for node in evidence.nodes if node.facts is None]
    return Passed(f"{good} ({', '.join(unseen)} not seen)" if unseen else good)


def _same(evidence: Evidence, what: str, values: Mapping[str, str], fix: str) -> Outcome:
    """Return the outcome of comparing every node with every other."""
    if len(values) < 2:
        return _alone(evidence, values)
    different = [(a, b) for a, b in combinations(values, 2) if values[a] != values[b]]
    if not different:
        return Passed(next(iter(values.values())))
    names = tuple(dict.fromkeys(name for pair in different for name in pair))
    return Failed(f"one {what}", _pairs(values, different), names, fix)


def _alone(evidence: Evidence, known: Iterable[str]) -> Outcome:
    if len(evidence.stack.contexts) == 1:
        return NotNeeded("one machine")
    return NotChecked(f"there is nothing to compare with, only {', '.join(known) or 'nobody'} could be asked")


def _pairs(values: Mapping[str, str], different: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{a} has {values[a] or 'none'} and {b} {values[b] or 'none'}" for a, b in different)


def _listed(values: Mapping[str, str], separator: str = "; ") -> str:
    return separator.join(f"{name}: {value}" for name, value in values.items())


def _by_context(evidence: Evidence) -> dict[str, tuple[str, Facts]]:
    """Return one node's name and facts for each machine."""
    found: dict[str, tuple[str, Facts]] = {}
    for node in evidence.nodes:
        if node.facts is not None:
            found.setdefault(node.context, (node.name, node.facts))
    return found


def _members(evidence: Evidence, contexts: Iterable[str]) -> tuple[str, ...]:
    wanted = set(contexts)
    return tuple(member.name for member in evidence.stack.members if member.context in wanted)


def _contexts(names: Iterable[str]) -> str:
    return ", ".join(f"context {name}" for name in names)


def _host_variable(evidence: Evidence, node: Node) -> str:
    if node.name == evidence.stack.prefill.name:
        return "PREFILL_HOST"
    return "DECODE_HOST" if len(evidence.stack.decodes) == 1 else "DECODE_HOSTS"


def _image_name(evidence: Evidence) -> str:
    return next((engine.image.name for engine in evidence.asked if engine.image is not None), "")


def _versions(facts: Facts) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _size(count: int) -> str:
    return f"{count / 1024:g} KiB"
