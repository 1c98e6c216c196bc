"""What the doctor sees of two machines on which everything is as it should be, on the CPU and with GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvshare.checking.patches import expected_patches
from kvshare.contract import Endpoint, Facts, Interface, Kind, Model, Ucx
from kvshare.doctor.evidence import (
    OPERATOR,
    Behind,
    Clock,
    Dialed,
    Engine,
    Evidence,
    Gpus,
    Link,
    Node,
    Operator,
    PrefillSpeed,
)
from kvshare.doctor.network import private, required
from kvshare.site.disk import GIB
from kvshare.site.images import Image
from kvshare.stack.members import Member, Server, Stack, bound_to
from tests.unit.build import STACK, WITH_GATEWAY
from tests.unit.multiprocess_build import BESIDE

MACHINES = {"default": "machine-a", "gpu-b": "machine-b"}
LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct"
IMAGE = Image("kvshare/engine-cpu:0.1.0", "sha256:0123456789abcdef", 1_820_000_000, "", "amd64", "content")
FREE_PORT = 8700
DATA = "/var/lib/docker"


def interface(name: str, *addresses: str, kind: Kind = "card", speed_mbit: int | None = 10_000) -> Interface:
    mtu = 65536 if kind == "loopback" else 1500
    return Interface(name, addresses, mtu, speed_mbit if kind == "card" else None, True, kind)


def facts(machine: str, server: Server) -> Facts:
    cards = (
        interface("docker0", "172.17.0.1", kind="bridge"),
        interface("eth0", server.host),
        interface("lo", "127.0.0.1", "::1", kind="loopback"),
    )
    return Facts(
        hostname=machine,
        cpus=2,
        interfaces=cards,
        memory_total=24 * GIB,
        memory_available=16 * GIB,
        disk_free=100 * GIB,
        memlock=8 * 1024**2,
        listening=(Endpoint("0.0.0.0", 22),),
        model=Model("demo", False, 10, 5, 64, None),
        hub=None,
        ucx=Ucx("tcp", "eth0", ("tcp/eth0", "tcp/docker0", "tcp/lo", "self/memory")),
        versions={"vllm": "0.32.0", "lmcache": "0.5.6", "nixl": "1.5.1", "torch": "2.13.0+cpu"},
        patches=expected_patches("cpu"),
        python_hash_seed="123",
        dtype="float32",
        max_model_len=1600,
        lmcache={
            "chunk_size": 256,
            "pre_caching_hash_algorithm": "builtin",
            "enable_p2p": True,
            "max_local_cpu_size": 0.5,
            "lookup_timeout_ms": 3000,
            "lmcache_instance_id": server.instance,
            "p2p_host": server.host,
        },
    )


def environment(member: Member) -> dict[str, str]:
    shared = {"PYTHONHASHSEED": "123"}
    if not isinstance(member, Server):
        return shared
    server = {"KVSHARE_MODEL": "demo", "KVSHARE_DTYPE": "float32", "KVSHARE_MAX_MODEL_LEN": "1600"}
    return {**shared, **server, "KVSHARE_TRANSPORT": "tcp"}


def node(server: Server) -> Node:
    found = facts(MACHINES[server.context], server)
    return Node(server.name, server.service, server.context, server.host, "0", found)


def dialed(stack: Stack) -> tuple[Dialed, ...]:
    made = [
        Dialed(
            _server_on(stack, source),
            target.name,
            bound_to(target, port.number),
            port.number,
            port.purpose,
            "",
        )
        for source, target, port in required(stack)
    ]
    for source, target in ((stack.decode, stack.prefill), (stack.prefill, stack.decode)):
        made.append(
            Dialed(
                source.name, target.name, target.host, FREE_PORT, f"{target.service} KV data", "", free=True
            )
        )
    for member, port in private(stack):
        made.append(Dialed(OPERATOR, member.name, member.host, port.number, port.purpose, "refused"))
    return tuple(made)


def _server_on(stack: Stack, context: str) -> str:
    return next(s.name for s in (stack.prefill, *stack.decodes) if s.context == context)


def healthy() -> Evidence:
    """Return two machines on which nothing runs and everything is ready."""
    return Evidence(
        started="2026-11-24T06:00:00+00:00",
        stack=STACK,
        operator=Operator("2.26.1", "0.13.1", ("10.0.0.5",)),
        engines=tuple(
            Engine(context, "", machine, "26.1.5", ("runc",), IMAGE, DATA, (), Clock(0.010, 0.004))
            for context, machine in MACHINES.items()
        ),
        nodes=tuple(node(server) for server in (STACK.prefill, STACK.decode)),
        environments={member.name: environment(member) for member in STACK.members},
        dialed=dialed(STACK),
        links=(Link("prefill", "decode", 1.17e9, 0.000_031),),
        prefill_speed=PrefillSpeed(400, "assumed, as the demo model on one core"),
    )


def with_cache_servers() -> Evidence:
    """Return the same two machines with SHARING=multiprocess."""
    stack = replace(BESIDE, gateway=None)
    environments = {member.name: environment(member) for member in stack.members}
    return replace(healthy(), stack=stack, environments=environments, dialed=dialed(stack))


def with_gpus() -> Evidence:
    """Return the same with an H200 each, a model of the hub's, and memory that may be locked."""
    evidence = replace(healthy(), stack=replace(STACK, device="cuda"))
    gpus = Gpus("580.65.06", (("0", "GPU-5f2d", "NVIDIA H200"), ("1", "GPU-77aa", "NVIDIA H200")))
    files = {"config": "c0" * 16, "weights": "ab" * 16}
    model = Model(LLAMA, True, 32, 8, 128, "bfloat16", files=files)
    evidence = on_each(evidence, memlock=None, model=model, dtype="auto", patches=expected_patches("cuda"))
    evidence = on_each(evidence, ucx=Ucx("tcp,cuda_copy", "eth0", ("tcp/eth0", "cuda_copy/cuda")))
    return replace(
        evidence,
        nodes=tuple(replace(node, gpus=gpus) for node in evidence.nodes),
        engines=tuple(replace(engine, runtimes=("nvidia", "runc")) for engine in evidence.engines),
        links=(Link("prefill", "decode", 23.2e9, 0.000_012, lanes=8),),
        prefill_speed=PrefillSpeed(30_000, "assumed, as Llama-3.1-8B on one H200"),
    )


def on(evidence: Evidence, name: str, **changes: Any) -> Evidence:
    """Return a copy in which one node's facts differ."""
    nodes = tuple(
        replace(n, facts=replace(n.facts, **changes)) if n.name == name and n.facts else n
        for n in evidence.nodes
    )
    return replace(evidence, nodes=nodes)


def on_each(evidence: Evidence, **changes: Any) -> Evidence:
    for each in evidence.nodes:
        evidence = on(evidence, each.name, **changes)
    return evidence


def lmcache(evidence: Evidence, name: str, **settings: Any) -> Evidence:
    """Return a copy in which one node's LMCache settings differ."""
    found = evidence.seen[name].lmcache
    return on(evidence, name, lmcache={**found, **settings})


def of_node(evidence: Evidence, name: str, **changes: Any) -> Evidence:
    """Return a copy in which one node differs, its facts aside."""
    return replace(
        evidence, nodes=tuple(replace(n, **changes) if n.name == name else n for n in evidence.nodes)
    )


def of_engine(evidence: Evidence, context: str, **changes: Any) -> Evidence:
    """Return a copy in which one engine differs."""
    engines = tuple(replace(e, **changes) if e.context == context else e for e in evidence.engines)
    return replace(evidence, engines=engines)


def moved(evidence: Evidence, name: str, host: str) -> Evidence:
    """Return a copy in which a node's HOST in .env is another address."""
    stack = evidence.stack
    if name == "prefill":
        stack = replace(
            stack, prefill=replace(stack.prefill, host=host), controller=replace(stack.controller, host=host)
        )
    else:
        stack = replace(stack, decodes=(replace(stack.decode, host=host),))
    return of_node(replace(evidence, stack=stack, dialed=(), links=()), name, host=host)


def with_environment(evidence: Evidence, name: str, **values: str) -> Evidence:
    """Return a copy in which Compose resolves one member's environment otherwise."""
    changed = {**evidence.environments[name], **values}
    return replace(evidence, environments={**evidence.environments, name: changed})


def dialled(evidence: Evidence, error: str, **where: Any) -> Evidence:
    """Return a copy in which some connections end otherwise."""
    return replace(
        evidence,
        dialed=tuple(
            replace(one, error=error) if all(getattr(one, k) == v for k, v in where.items()) else one
            for one in evidence.dialed
        ),
    )


def behind_gateway(answers: Mapping[str, bool] | None = None, error: str = "") -> Evidence:
    """Return the machines with the whole stack up, and what its gateway says of the servers behind it."""
    stack = WITH_GATEWAY
    found = (
        {f"{s.host}:{s.api_port}": True for s in (stack.prefill, stack.decode)}
        if answers is None
        else answers
    )
    return running(replace(healthy(), stack=stack, dialed=dialed(stack), behind=Behind(found, error)))


def running(evidence: Evidence) -> Evidence:
    """Return the same machines with this stack up on both, as LMCache really listens."""
    for context, name in (("default", "prefill"), ("gpu-b", "decode")):
        members = evidence.members_on(context)
        services = tuple(member.service for member in members)
        ports = [(member, port) for member in members for port in member.ports]
        listening = tuple(Endpoint(bound_to(member, port), port) for member, port in ports)
        evidence = of_engine(on(evidence, name, listening=listening), context, running=services)
    return evidence
