"""Evidence of a pair with SHARING=multiprocess: the same legs, and what the cache servers tell of them."""

from __future__ import annotations

from dataclasses import replace

from kvshare.servers.readings import CacheProbe, ControllerProbe, Counters, Worker
from kvshare.servers.sharing import address_of, caches_of
from kvshare.stack.members import COORDINATOR, Cache, Controller, Server
from kvshare.verify.evidence import Container, Evidence, Logs
from tests.unit.build import KV_BYTES, PROMPTS, REUSABLE, STACK, WITH_GATEWAY, container, edit, proven

PULLED = REUSABLE * (PROMPTS + 1)
CHUNKS = PULLED // 256


def _with_cache(server: Server, first: int) -> Server:
    where = (f"{server.service}-cache", f"{server.name}-cache", server.context, server.host)
    ports = (8500 + first // 2, 8201 + first, 8200 + first, server.nixl_port)
    return replace(server, cache=Cache(*where, *ports, ranks=1, data_ports=server.data_ports))


BESIDE = replace(
    WITH_GATEWAY,
    controller=Controller(COORDINATOR, COORDINATOR, STACK.controller.context, STACK.controller.host, 9000),
    prefill=_with_cache(STACK.prefill, 0),
    decodes=(_with_cache(STACK.decode, 2),),
)
OWNER, PULLER = address_of(BESIDE.prefill), address_of(BESIDE.decode)


def beside() -> Evidence:
    """Return the evidence of such a run in which every check holds."""
    evidence = replace(proven(), stack=BESIDE, containers=_containers(), logs=Logs((), (), ()))
    for path, value in {
        "spec.prefill_instance": OWNER,
        "spec.decode_instance": PULLER,
        "spec.nixl": BESIDE.decode.nixl_url,
        "spec.caches": caches_of(BESIDE),
        "controller": ControllerProbe(
            answers=True,
            workers=(Worker(OWNER, OWNER, 0), Worker(PULLER, PULLER, 0)),
            caches={
                "prefill": CacheProbe(True, None, "registered", (PULLER,), 24, 24 * 256 * KV_BYTES),
                "decode": CacheProbe(True, None, "registered", (OWNER,)),
            },
        ),
        "owner_start": Counters(transfers=18),
        "owner_after_control": Counters(transfers=18),
        "owner_end": Counters(transfers=18 + CHUNKS),
        "decode_end": Counters(100 + PULLED, 100 + PULLED),
        "pulled": {OWNER: float(PULLED * KV_BYTES)},
    }.items():
        evidence = edit(evidence, f"traffic.{path}", value)
    return edit(
        evidence,
        "traffic.admissions",
        lambda made: tuple(replace(one, how="stored") for one in made),
    )


def _containers() -> tuple[Container, ...]:
    kept = {container.service: container for container in proven().containers}
    kv = {"kv_connector": "LMCacheMPConnector", "kv_load_failure_policy": "recompute"}
    servers = tuple(
        edit(kept[service], "fingerprint", lambda one: replace(one, kv_transfer_config=kv))
        for service in ("prefill", "decode")
    )
    coordinator = edit(kept["controller"], "fingerprint.role", COORDINATOR)
    caches = tuple(
        edit(container(f"{service}-cache"), "fingerprint", lambda one: replace(one, **_NO_MODEL))
        for service in ("prefill", "decode")
    )
    named = replace(coordinator, service=COORDINATOR, name=f"kvshare-{COORDINATOR}-1")
    return (named, *caches, *servers)


_NO_MODEL = {
    "model": None,
    "dtype": None,
    "max_model_len": None,
    "kv_transfer_config": None,
    "identity": {},
    "lmcache": {"chunk_size": 256},
}
