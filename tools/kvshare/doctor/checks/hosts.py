"""Whether each machine has what its members need."""

from itertools import combinations

from kvshare.checking.registry import Category, Failed, NotChecked, NotNeeded, Outcome, Passed
from kvshare.contract import Facts
from kvshare.doctor.checks.shared import alone, each, listed, members
from kvshare.doctor.evidence import Evidence, Node
from kvshare.refusals import USER
from kvshare.site.disk import GIB
from kvshare.stack.members import Cache, Controller, Member, Server, bound_to
from kvshare.stack.ports import ports_of

CHECKS: Category[Evidence] = Category("hosts")
CLOCK_LIMIT_S = 1.0
# Resident GiB, a little above what was seen on the CPU; a server's LMCache memory comes on top. With a GPU
# that alone is counted: what else a server needs is its model's, not known here.
CONTROLLER_GIB, CACHE_SERVER_GIB, CPU_SERVER_GIB, GATEWAY_GIB = 0.5, 0.6, 2.5, 0.1
# The CPU images while they are built; logs and models once they are.
BUILD_DISK_GIB, RUN_DISK_GIB = 12, 2
UNAUTHORISED, FORBIDDEN = 401, 403


@CHECKS.check("DOC-HOST-01", "a container runs there as a server would", ("DOC-IMG-01",))
def _containers_run(evidence: Evidence) -> Outcome:
    """With its folders, limits and devices: memlock, `/dev/infiniband`, the models volume.

    A refused limit must be allowed to Docker on that machine, a missing folder corrected in MODELS.
    """
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
    """Peers and controller dial exactly this address: on two machines neither loopback nor docker0's.

    Take one of those listed, on the network between the machines. No name: UCX looks for its device.
    """
    nodes = {node.name: node for node in evidence.nodes if node.facts is not None}
    bad = {name: wrong for name, node in nodes.items() if (wrong := _wrong_host(evidence, node))}
    variable = "DECODE_HOST" if len(evidence.stack.decodes) == 1 else "DECODE_HOSTS"
    if evidence.stack.prefill.name in bad:
        variable = "PREFILL_HOST"
    if nodes and not bad:
        return Passed(", ".join(f"{name} {node.host}" for name, node in nodes.items()))
    expected = "an address under which the other machines reach it"
    return each(evidence, bad, expected, f"set {variable} in .env")


def _wrong_host(evidence: Evidence, node: Node) -> str:
    """Return what is wrong with a node's HOST, and which addresses would do; '' if nothing is."""
    facts, host, alone = evidence.seen[node.name], node.host, len(evidence.stack.contexts) == 1
    device = facts.holder(host)
    if device is None:
        owners = [f", {name}'s machine has it" for name, other in evidence.seen.items() if other.holder(host)]
        if host.startswith("127."):
            owners = [", it is a loopback address"]
        elif host.startswith("172.17."):
            owners = [", it is of docker0's network"]
        wrong = f"{host} is no address of it{next(iter(owners), '')}"
    elif device.kind == "loopback" and not alone:
        wrong = f"{host} is a loopback address, which no other machine reaches"
    elif device.is_dockers and not alone:
        wrong = f"{host} is {device.name}'s, which every Docker machine has"
    else:
        return ""
    usable = [i for i in facts.interfaces if i.up and i.kind != "loopback" and not i.is_dockers]
    fitting = [address for i in usable for address in i.addresses if ":" not in address]
    return f"{wrong}; {facts.hostname} has {', '.join(fitting) or 'no other'}"


@CHECKS.check("DOC-HOST-03", "the machines' clocks agree", warning=True)
def _clocks_agree(evidence: Evidence) -> Outcome:
    """As the engines tell the time. KV moves all the same, but merged logs are out of order."""
    clocks = {e.context: e.clock for e in evidence.asked if e.clock is not None}
    if len(clocks) < 2:
        return alone(evidence, clocks)
    apart = {(a, b): abs(clocks[a].ahead_s - clocks[b].ahead_s) for a, b in combinations(clocks, 2)}
    (a, b), worst = max(apart.items(), key=lambda item: item[1])
    doubt = clocks[a].uncertain_s + clocks[b].uncertain_s
    said = f"{worst:.3f} s ± {doubt:.3f} s between {a} and {b}"
    if worst - doubt < CLOCK_LIMIT_S:
        return Passed(said)
    fix = "timedatectl set-ntp true, on both machines"
    return Failed(f"less than {CLOCK_LIMIT_S:.0f} s apart", said, members(evidence, [a, b]), fix)


@CHECKS.check("DOC-HOST-04", "there is memory for LMCache's cache")
def _memory_suffices(evidence: Evidence) -> Outcome:
    """For each rank `max_local_cpu_size` (configs/lmcache.yaml), and without a GPU what it takes itself."""
    bad, good = {}, []
    # What two contexts read alike to the byte is one machine.
    machines: dict[int, list[str]] = {}
    for context, (_, facts) in evidence.machines.items():
        machines.setdefault(facts.memory_available, []).append(context)
    for available, contexts in machines.items():
        starting = [m for c in contexts for m in evidence.members_on(c) if not evidence.runs(m)]
        need, have = sum(_needed_gib(evidence, m) for m in starting), available / GIB
        name, said = evidence.machines[contexts[0]][0], f"{need:.1f} GiB needed, {have:.1f} GiB available"
        if need > have:
            bad[name] = said
        else:
            good.append(f"{name} {said}" if starting else f"{name} runs already")
    fix = "stop something there, or lower max_local_cpu_size (DEVICE=cpu: CPU_CACHE_GIB in .env)"
    return each(evidence, bad, "memory for every member that is still to start", fix, "; ".join(good))


def _needed_gib(evidence: Evidence, member: Member) -> float:
    if isinstance(member, Controller):
        return CONTROLLER_GIB
    if not isinstance(member, Server | Cache):
        return GATEWAY_GIB
    server = next(one for one in evidence.stack.servers if member in (one, one.cache))
    facts = evidence.seen.get(server.name)
    kept = float(facts.lmcache.get("max_local_cpu_size", 0)) if facts and member is server.keeper else 0.0
    takes = CPU_SERVER_GIB if isinstance(member, Server) and evidence.stack.device == "cpu" else 0.0
    return member.ranks * (kept + takes) + (CACHE_SERVER_GIB if isinstance(member, Cache) else 0.0)


@CHECKS.check("DOC-HOST-05", "that memory may be locked")
def _memory_may_be_locked(evidence: Evidence) -> Outcome:
    """With a GPU or RDMA the cache is locked memory, within the limit of the service's container.

    `systemctl edit docker`: `[Service]` and `LimitMEMLOCK=infinity`; then `systemctl restart docker`.
    """
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
    """At its addresses nothing else listens, nor on this machine's own where NIXL tells what it counts."""
    bad = {}
    seen = evidence.machines
    members_seen = [member for member in evidence.stack.members if member.context in seen]
    running = sum(evidence.runs(member) for member in members_seen)
    for member in members_seen:
        _, facts = seen[member.context]
        taken = [
            f"port {port.number} ({port.purpose}) is taken{found.by and f' by {found.by}'}"
            for port in ports_of(member)
            if (found := facts.listener(bound_to(member, port.number), port.number))
        ]
        if taken and not evidence.runs(member):
            bad[member.name] = ", ".join(taken)
    fix = "stop what listens there (ss -ltnp shows it), or change the port in x-kvshare of compose.yaml"
    good = f"{running} of {len(evidence.stack.members)} members run already" if running else ""
    return each(evidence, bad, "nothing listens on the stack's ports before it does", fix, good)


@CHECKS.check("DOC-HOST-07", "the model is there, or can be had")
def _model_there(evidence: Evidence) -> Outcome:
    """In the models volume, or on the hub, which is asked from that machine with the token of HF_TOKEN_FILE.

    Accept a gated model's licence on the hub. Without a way there, put the model into the models volume and
    set MODEL to its path. A folder that MODELS names is written by user 2000, who the servers are.
    """
    bad = {n: wrong for n, facts in evidence.seen.items() if (wrong := _model_missing(facts))}
    if bad:
        fix = "correct MODEL, MODELS or HF_TOKEN_FILE in .env"
        if not all(evidence.seen[name].model.writable for name in bad):
            fix = f"chown {USER} the folder that MODELS in .env names, there"
        return each(evidence, bad, "the model in the models volume, or a hub that gives it", fix)
    unknown = {n: f.hub for n, f in evidence.seen.items() if f.hub is not None and f.hub.error}
    if unknown:
        said = "; ".join(f"{hub.address} from {n}: {hub.error}" for n, hub in unknown.items() if hub)
        return NotChecked(f"the model is not in the models volume, and the hub cannot be asked ({said})")
    return each(evidence, {}, "", "", ", ".join(f"{n} {_model_state(f)}" for n, f in evidence.seen.items()))


def _model_missing(facts: Facts) -> str:
    model, hub = facts.model, facts.hub
    if model.found:
        return ""
    if model.name.startswith("/"):
        return f"no config.json at {model.name}"
    if not model.writable:
        return f"{model.name} is to go into the models volume, which user {USER} may not write"
    if model.name == "demo":
        return ""
    if hub is None:
        return f"{model.name} is not in the models volume, and HF_HUB_OFFLINE leaves the hub out"
    if hub.status in (UNAUTHORISED, FORBIDDEN):
        token = "the token given is not enough" if hub.token_given else "no token was given"
        return f"{hub.address} keeps {model.name} behind a licence, and {token} (HTTP {hub.status})"
    if hub.status is not None and hub.status >= UNAUTHORISED:
        return f"{hub.address} has no {model.name} to give (HTTP {hub.status})"
    return ""


def _model_state(facts: Facts) -> str:
    if facts.model.found:
        return f"has {facts.model.name}"
    verb = "makes" if facts.model.name == "demo" else "will download"
    return f"{verb} {facts.model.name} at its first start"


@CHECKS.check("DOC-HOST-08", "there is room on the disk")
def _disk_suffices(evidence: Evidence) -> Outcome:
    """Where the engine keeps its data: 2 GiB for logs and models, 12 where images are still to be built."""
    bad, good = {}, []
    for context, (name, facts) in evidence.machines.items():
        engine = evidence.engine(context)
        need, have = RUN_DISK_GIB if engine.image else BUILD_DISK_GIB, facts.disk_free / GIB
        good.append(f"{name} {have:.1f} GiB free")
        if need > have:
            bad[name] = f"{need} GiB needed in {engine.folder}, {have:.1f} GiB free"
    expected = "room for logs and models, and for the images while they are built"
    return each(evidence, bad, expected, "free some there, e.g. with docker system prune", "; ".join(good))
