"""Evidence for tests: a proven run in which everything holds, and the means to break one thing of it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from kvshare.checking.patches import expected_patches
from kvshare.contract import Fingerprint, Patch
from kvshare.servers.readings import (
    Admission,
    ControllerProbe,
    Counters,
    Held,
    Position,
    PullSample,
    ServerProbe,
    Sources,
    Wire,
    Worker,
)
from kvshare.stack.members import Controller, Gateway, Server, Stack, Watcher
from kvshare.verify.evidence import (
    ADAPTERS,
    AT_ONCE,
    CHANGED,
    CONTROL,
    EDGES,
    HONEST,
    HUNG_UP,
    JUDGED,
    PEER,
    PREEMPTED,
    REFERENCE,
    SALTS,
    SAME_SPLIT,
    THROUGH,
    Container,
    Deep,
    EngineProbe,
    Evidence,
    HangUps,
    Hit,
    Leg,
    Logs,
    Pressure,
    Spec,
    Through,
    Traffic,
    Trial,
)

T = TypeVar("T")
TOKENS, REUSABLE, PROMPTS, SEED = 1546, 1536, 3, 7
KV_BYTES = 25600  # a token

STACK = Stack(
    project="kvshare",
    device="cpu",
    controller=Controller("controller", "controller", "default", "192.168.110.13", 9000, 8300, 8400, 8600),
    prefill=Server(
        *("prefill", "prefill", "default", "192.168.110.13", "lmcache_instance_1"),
        *(8010, (8500,), (8200,), (8201,), 8204),
        data_ports=(8700, 8799),
    ),
    decodes=(
        Server(
            *("decode", "decode", "gpu-b", "192.168.110.97", "lmcache_instance_2"),
            *(8011, (8501,), (8202,), (8203,), 8205),
            data_ports=(8700, 8799),
        ),
    ),
)

WITH_GATEWAY = replace(STACK, gateway=Gateway("gateway", "gateway", "default", STACK.prefill.host, 8000))
WATCHED = replace(
    WITH_GATEWAY,
    watchers=tuple(
        Watcher(name, name, "default", STACK.prefill.host, port)
        for name, port in (("prometheus", 9090), ("canary", 9091))
    ),
)

SPEC = Spec(
    prefill=STACK.prefill.url,
    nixl=STACK.prefill.nixl_url,
    decode=STACK.decode.url,
    controller=STACK.controller.url,
    prefill_instance=STACK.prefill.instance,
    decode_instance=STACK.decode.instance,
    prompts=PROMPTS,
    prompt_tokens=TOKENS,
    chunk_size=256,
    seed=SEED,
    gateway="http://192.168.110.13:8000",
)


def fingerprint(role: str, instance: str | None = None) -> Fingerprint:
    server = role != "controller"
    return Fingerprint(
        role=role,
        instance=instance,
        versions={"vllm": "0.32.0", "lmcache": "0.5.6", "nixl": "1.5.1", "torch": "2.13.0+cpu"},
        python_hash_seed="123",
        model="/models/kvshare-demo" if server else None,
        dtype="float32" if server else None,
        max_model_len=1600 if server else None,
        lmcache={
            "chunk_size": 256,
            "pre_caching_hash_algorithm": "builtin",
            "local_cpu": True,
            "enable_async_loading": True,
            "enable_p2p": True,
            "enable_controller": True,
        }
        if server
        else {},
        kv_transfer_config={"kv_connector": "LMCacheConnectorV1", "kv_load_failure_policy": "recompute"}
        if server
        else None,
        patches=tuple(Patch(name) for name in expected_patches("cpu")),
        identity={"config": "c0" * 16, "dtype": "torch.float32", "weights": "ab" * 16, "identity": "1d" * 16}
        if server
        else {},
    )


def container(service: str, instance: str | None = None) -> Container:
    return Container(
        service=service,
        name=f"kvshare-{service}-1",
        state="running",
        health="healthy",
        image_id="sha256:0123456789abcdef",
        fingerprint=fingerprint(service, instance),
    )


def output(prompt: int, noise: float = 0.0, tokens: int = 16) -> tuple[Position, ...]:
    """Return a plausible answer to a prompt: distinct top tokens, log-probabilities moved by ``noise``."""
    draw = random.Random(prompt)
    positions = []
    for _ in range(tokens):
        ids = draw.sample(range(3, 259), 5)
        top = tuple((token, -0.5 - 0.7 * rank + noise) for rank, token in enumerate(ids))
        positions.append(Position(ids[0], top))
    return tuple(positions)


def leg(kind: str, prompt: int) -> Leg:
    node, ttft, sources, noise = {
        REFERENCE: ("prefill", 3500.0, Sources(TOKENS, 0, 0), 1e-5),
        SAME_SPLIT: ("prefill", 150.0, Sources(TOKENS - REUSABLE, REUSABLE, 0), 0.0),
        PEER: ("decode", 700.0, Sources(TOKENS - REUSABLE, 0, REUSABLE), 2e-6),
        CONTROL: ("decode", 3600.0, Sources(TOKENS, 0, 0), 0.0),
        CHANGED: ("prefill", 3500.0, Sources(TOKENS, 0, 0), 0.5),
    }[kind]
    return Leg(
        prompt=prompt,
        leg=kind,
        node=node,
        request_id=f"kvshare-{SEED}-{prompt}-{kind.replace(' ', '-')}",
        tokens=TOKENS,
        ttft_ms=ttft + 10 * prompt,
        e2e_ms=ttft + 10 * prompt + 900,
        sources=sources,
        output=output(prompt, noise),
    )


def legs() -> tuple[Leg, ...]:
    made = [leg(CONTROL, PROMPTS + 1)]
    for prompt in range(PROMPTS + 1):
        made += [leg(REFERENCE, prompt), leg(SAME_SPLIT, prompt), leg(PEER, prompt)]
    made.append(leg(CHANGED, JUDGED))
    return tuple(made)


def through() -> Through:
    """Return what is seen of a fresh prompt through the gateway."""
    leg = Leg(
        prompt=PROMPTS + 2,
        leg=THROUGH,
        node="gateway",
        request_id=f"kvshare-{SEED}-{PROMPTS + 2}-through",
        tokens=TOKENS,
        ttft_ms=3700.0,
        e2e_ms=4600.0,
        output=output(PROMPTS + 2, 2e-6),
    )
    honest = replace(leg, leg=HONEST, node="prefill", ttft_ms=150.0, output=output(PROMPTS + 2))
    return Through(leg, Sources(TOKENS, 0, 0), Sources(TOKENS - REUSABLE, 0, REUSABLE), honest)


def proven_admissions() -> tuple[Admission, ...]:
    return tuple(Admission(prompt, 6, 6, 0.2, "key count") for prompt in range(PROMPTS + 1))


def proven() -> Evidence:
    """Return the evidence of a run in which every check holds."""
    peers = [one for one in legs() if one.leg == PEER]
    pulled = REUSABLE * len(peers)
    return Evidence(
        started="2026-11-24T06:00:00+00:00",
        stack=WITH_GATEWAY,
        engines=(EngineProbe("default"), EngineProbe("gpu-b")),
        containers=(
            container("controller"),
            container("prefill", STACK.prefill.instance),
            container("decode", STACK.decode.instance),
        ),
        logs=Logs(
            decode_hits=tuple(Hit(f"cmpl-{one.request_id}-0-1a2b3c4d", REUSABLE) for one in peers),
            owner_lookups=tuple(f"cmpl-{one.request_id}-0-1a2b3c4d" for one in peers),
            controller_errors=(),
        ),
        traffic=Traffic(
            spec=SPEC,
            prefill=ServerProbe(True, None, "/models/kvshare-demo", 1600),
            decode=ServerProbe(True, None, "/models/kvshare-demo", 1600),
            controller=ControllerProbe(
                answers=True,
                workers=(
                    Worker(STACK.prefill.instance, STACK.prefill.peer_init_urls[0], 12),
                    Worker(STACK.decode.instance, STACK.decode.peer_init_urls[0], 6),
                ),
                pull=(PullSample(10, False), PullSample(12, False), PullSample(20, False)),
            ),
            admissions=proven_admissions(),
            legs=legs(),
            owner_start=Counters(transfers=3),
            owner_after_control=Counters(transfers=3),
            owner_end=Counters(transfers=3 + len(peers), transfer_seconds=0.2),
            decode_start=Counters(hit_tokens=100, requested_tokens=100),
            decode_end=Counters(100 + pulled, 100 + pulled, 1.0),
            wire=Wire(bytes=KV_BYTES * pulled),
            chunk_bytes=256.0 * KV_BYTES,
            gateway=through(),
            seconds=41.0,
        ),
    )


def trial(kind: str, what: str, tokens: int, pulled: int, requests: int = 1, exact: bool = True) -> Trial:
    """Return one thing tried, with answers that are right within the noise."""

    def sent(name: str, node: str, noise: float = 0.0, sources: Sources | None = None) -> tuple[Leg, ...]:
        ids = [f"kvshare-{SEED}-deep-{number}" for number in range(requests)]
        return tuple(
            Leg(n, name, node, request_id, tokens, 100.0, 300.0, sources, output(n, noise, tokens=8))
            for n, request_id in enumerate(ids)
        )

    return Trial(
        kind=kind,
        what=what,
        due=requests * pulled if exact else None,
        held=sent("held", "prefill"),
        asked=sent("asked", "decode", 2e-6),
        honest=sent("anew", "decode", 0.0, Sources(local_compute=tokens)),
        sources=Sources(requests * (tokens - pulled), 0, requests * pulled),
    )


def deep() -> Evidence:
    """Return the evidence of a proven run with --deep, of servers with two adapters."""
    models = ("/models/kvshare-demo", "a", "b")
    nothing: dict[str, Held | None] = {node: Held() for node in ("prefill", "decode")}
    trials = (
        *(
            trial(EDGES, f"a prompt of {n} tokens", n, pulled)
            for n, pulled in ((255, 0), (256, 255), (257, 256))
        ),
        trial(SALTS, "KV of one salt for another", 266, 0),
        trial(SALTS, "KV of a salt for none", 266, 0),
        trial(SALTS, "KV of a salt for itself", 266, 256),
        *(
            trial(ADAPTERS, f"KV of {owner} for {model}", 266, 256 if model == owner else 0)
            for owner in models
            for model in models
        ),
        trial(AT_ONCE, "8 prompts at once", 266, 256, requests=8),
        trial(PREEMPTED, "25 prompts beyond memory", 864, 768, requests=25, exact=False),
        trial(HUNG_UP, "the same prompt afterwards", TOKENS, REUSABLE),
    )
    seen = Deep(models[1:], trials, Pressure(20864, 25, 864, 3), HangUps(5, 5, nothing, nothing, ()))
    return edit(proven(), "traffic.deep", seen)


def edit_trials(evidence: Evidence, kind: str, change: Callable[[Trial], Trial]) -> Evidence:
    """Return a copy with the trials of one kind changed."""
    return edit(
        evidence,
        "traffic.deep.trials",
        lambda made: tuple(change(one) if one.kind == kind else one for one in made),
    )


def two_ranks() -> Evidence:
    """Return the evidence of such a run of servers with two GPUs."""
    evidence = proven()

    def second(server: Server) -> Server:
        def both(ports: tuple[int, ...]) -> tuple[int, ...]:
            return (ports[0], ports[0] + 10)

        return replace(
            server,
            worker_ports=both(server.worker_ports),
            p2p_init_ports=both(server.p2p_init_ports),
            p2p_lookup_ports=both(server.p2p_lookup_ports),
        )

    stack = replace(STACK, prefill=second(STACK.prefill), decodes=(second(STACK.decode),))
    workers = tuple(
        Worker(server.instance, url, 12, rank)
        for server in (stack.prefill, stack.decode)
        for rank, url in enumerate(server.peer_init_urls)
    )
    evidence = edit(replace(evidence, stack=stack), "traffic.controller.workers", workers)
    admissions = tuple(
        replace(one, expected_keys=12, new_keys=12, by_rank=(6, 6)) for one in proven_admissions()
    )
    evidence = edit(evidence, "traffic.admissions", admissions)
    for service in ("prefill", "decode"):
        evidence = edit(evidence, f"{service}.fingerprint.ranks", 2)
    return edit(evidence, "traffic.owner_end.transfers", 3 + 2 * (PROMPTS + 1))


def edit(record: T, path: str, change: Callable[[Any], Any] | Any) -> T:
    """Return a copy of a record with one field changed, e.g. ``traffic.spec.seed`` or ``decode.state``."""
    head, _, rest = path.partition(".")
    if isinstance(record, Evidence) and head in {c.service for c in record.containers}:
        found = tuple(edit(c, rest, change) if c.service == head else c for c in record.containers)
        return replace(record, containers=found)
    if isinstance(record, dict):
        return {**record, head: _changed(record.get(head), rest, change)}  # type: ignore[return-value]
    assert dataclasses.is_dataclass(record)
    return replace(record, **{head: _changed(getattr(record, head), rest, change)})  # type: ignore[type-var]


def _changed(value: Any, rest: str, change: Any) -> Any:
    if rest:
        return edit(value, rest, change)
    return change(value) if callable(change) else change


def edit_legs(
    evidence: Evidence, kind: str, change: Callable[[Leg], Leg], prompts: range | None = None
) -> Evidence:
    """Return a copy with the legs of one kind changed, on all prompts or on some."""
    return edit(
        evidence,
        "traffic.legs",
        lambda made: tuple(
            change(one) if one.leg == kind and (prompts is None or one.prompt in prompts) else one
            for one in made
        ),
    )
