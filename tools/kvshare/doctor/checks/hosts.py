"""Whether each machine has what its members need."""

from __future__ import annotations

from itertools import combinations

from kvshare.checking.registry import Category, Failed, NotChecked, NotNeeded, Outcome, Passed
from kvshare.contract import Facts, Interface
from kvshare.doctor.checks.shared import alone, by_context, each, listed, members
from kvshare.doctor.evidence import Evidence, Node
from kvshare.doctor.network import is_taken
from kvshare.operate.preflight import CONTROLLER_GIB, CPU_SERVER_GIB, GIB
from kvshare.stack.members import Controller, Member
from kvshare.stack.ports import ports_of

CHECKS: Category[Evidence] = Category("hosts")
CLOCK_LIMIT_S = 1.0
UNAUTHORISED, FORBIDDEN = 401, 403


@CHECKS.check("DOC-HOST-01", "a container runs there as a server would", ("DOC-IMG-01",))
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
        listed(bad),
        tuple(bad),
        "make image, so that image and tool are of one version, then correct what the engine refuses",
    )


@CHECKS.check("DOC-HOST-02", "each node's HOST is an address of its own machine")
def _hosts_are_theirs(evidence: Evidence) -> Outcome:
    bad = {
        node.name: wrong
        for node in evidence.nodes
        if node.facts is not None and (wrong := _wrong_host(evidence, node, node.facts))
    }
    if bad or not evidence.seen:
        first = evidence.node(next(iter(bad))) if bad else None
        fix = f"set {_host_variable(evidence, first)} in .env" if first else ""
        return each(evidence, bad, "an address under which the other machines reach it", fix)
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


@CHECKS.check("DOC-HOST-03", "the machines' clocks agree", warning=True)
def _clocks_agree(evidence: Evidence) -> Outcome:
    clocks = {e.context: e.clock for e in evidence.asked if e.clock is not None}
    if len(clocks) < 2:
        return alone(evidence, clocks)
    apart = {(a, b): abs(clocks[a].ahead_s - clocks[b].ahead_s) for a, b in combinations(clocks, 2)}
    (a, b), worst = max(apart.items(), key=lambda item: item[1])
    doubt = clocks[a].uncertain_s + clocks[b].uncertain_s
    said = f"{worst:.3f} s ± {doubt:.3f} s between {a} and {b}"
    if worst - doubt < CLOCK_LIMIT_S:
        return Passed(said)
    return Failed(
        f"less than {CLOCK_LIMIT_S:.0f} s apart",
        said,
        members(evidence, [a, b]),
        "timedatectl set-ntp true, on both machines",
    )


@CHECKS.check("DOC-HOST-04", "there is memory for LMCache's cache")
def _memory_suffices(evidence: Evidence) -> Outcome:
    bad, good = {}, []
    for context, (name, facts) in by_context(evidence).items():
        starting = [m for m in evidence.members_on(context) if not evidence.runs(m)]
        need = sum(_needed_gib(evidence, member) for member in starting)
        have = facts.memory_available / GIB
        said = f"{need:.1f} GiB needed, {have:.1f} GiB available"
        if need > have:
            bad[name] = said
        else:
            good.append(f"{name} {said}" if starting else f"{name} runs already")
    fix = "stop something there, or lower max_local_cpu_size (DEVICE=cpu: CPU_CACHE_GIB in .env)"
    return each(evidence, bad, "memory for every member that is still to start", fix, "; ".join(good))


def _needed_gib(evidence: Evidence, member: Member) -> float:
    if isinstance(member, Controller):
        return CONTROLLER_GIB
    facts = evidence.seen.get(member.name)
    cache = float(facts.lmcache.get("max_local_cpu_size", 0)) if facts else 0.0
    return cache + (CPU_SERVER_GIB if evidence.stack.device == "cpu" else 0.0)


@CHECKS.check("DOC-HOST-05", "that memory may be locked")
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
    return each(evidence, bad, "memlock unlimited, or above max_local_cpu_size", fix)


@CHECKS.check("DOC-HOST-06", "the ports are free, or this stack's already")
def _ports_free(evidence: Evidence) -> Outcome:
    bad: dict[str, str] = {}
    running = 0
    for context, (_, facts) in by_context(evidence).items():
        for member in evidence.members_on(context):
            if evidence.runs(member):
                running += 1
                continue
            taken = [p for p in ports_of(member) if is_taken(facts.listening, member.host, p.number)]
            if taken:
                bad[member.name] = ", ".join(f"{p.number} ({p.purpose}) is taken" for p in taken)
    fix = "stop what listens there (ss -ltnp shows it), or change the port in x-kvshare of compose.yaml"
    good = f"{running} of {len(evidence.stack.members)} members run already" if running else ""
    return each(evidence, bad, "nothing listens on the stack's ports before it does", fix, good)


@CHECKS.check("DOC-HOST-07", "the model is there, or can be had")
def _model_there(evidence: Evidence) -> Outcome:
    bad = {n: wrong for n, facts in evidence.seen.items() if (wrong := _model_missing(facts))}
    if bad:
        fix = "correct MODEL, MODELS or HF_TOKEN_FILE in .env"
        return each(evidence, bad, "the model in the models volume, or a hub that gives it", fix)
    unknown = {n: f.hub for n, f in evidence.seen.items() if f.hub is not None and f.hub.error}
    if unknown:
        said = "; ".join(f"{hub.address} from {n}: {hub.error}" for n, hub in unknown.items() if hub)
        return NotChecked(f"the model is not in the models volume, and the hub cannot be asked ({said})")
    return each(evidence, {}, "", "", ", ".join(f"{n} {_model_state(f)}" for n, f in evidence.seen.items()))


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


def _host_variable(evidence: Evidence, node: Node) -> str:
    if node.name == evidence.stack.prefill.name:
        return "PREFILL_HOST"
    return "DECODE_HOST" if len(evidence.stack.decodes) == 1 else "DECODE_HOSTS"
