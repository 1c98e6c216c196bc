"""One thing wrong with the machines at a time: what the doctor sees then, and the check that must name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvshare.contract import Endpoint, Hub, Model, Ucx
from kvshare.doctor.evidence import OPERATOR, Clock, Evidence, Gpus, Link, Operator
from kvshare.refusals import unshareable
from kvshare.site.disk import GIB
from tests.unit.doctor_build import (
    IMAGE,
    LLAMA,
    behind_gateway,
    dialled,
    healthy,
    lmcache,
    moved,
    of_engine,
    of_node,
    on,
    on_each,
    running,
    with_environment,
    with_gpus,
)


@dataclass(frozen=True)
class Fault:
    """What is wrong, the id that must name it, words of its finding, and the exit code (of a warning 0)."""

    cause: str
    evidence: Evidence
    says: str
    exit_code: int = 1


def _unreachable() -> Evidence:
    reason = "no Docker engine answers at ssh://192.168.110.97 (connection timed out)"
    evidence = of_engine(healthy(), "gpu-b", error=reason, machine="", version="", image=None, clock=None)
    evidence = of_node(evidence, "decode", facts=None, error=reason)
    local = {("prefill", "controller"), ("prefill", "prefill")}
    seen = tuple(one for one in evidence.dialed if (one.source, one.target) in local)
    link = Link("prefill", "decode", not_tried="decode could not be looked at")
    return replace(evidence, dialed=seen, links=(link,))


def _probe_fails() -> Evidence:
    reason = "its image's probe is of another version (Facts: ucx is missing)"
    evidence = of_node(healthy(), "decode", facts=None, error=reason)
    link = Link("prefill", "decode", not_tried="decode could not be looked at")
    return replace(evidence, links=(link,))


def _without_image() -> Evidence:
    evidence = of_engine(healthy(), "gpu-b", image=None)
    return of_node(evidence, "decode", facts=None, error="there is no image kvshare/engine-cpu:0.1.0")


def _firewall() -> Evidence:
    """Everything into decode's machine is dropped but ssh."""
    evidence = dialled(healthy(), "no answer in 3 s", target="decode")
    return replace(evidence, links=(Link("prefill", "decode", not_tried="decode's ports cannot be reached"),))


def _no_cable() -> Evidence:
    cards = healthy().seen["decode"].interfaces
    cut = tuple(replace(card, up=card.name != "eth0") for card in cards)
    return on(healthy(), "decode", interfaces=cut, ucx=Ucx("tcp", "eth0", ("tcp/lo",)))


def _ucx_ports_closed() -> Evidence:
    evidence = dialled(healthy(), "no answer in 3 s", target="decode", free=True)
    return replace(evidence, links=(Link("prefill", "decode", not_tried="decode's ports cannot be reached"),))


def _worker_everywhere() -> Evidence:
    evidence = running(healthy())
    found = evidence.seen["decode"].listening
    return on(evidence, "decode", listening=(*found, Endpoint("0.0.0.0", 8501)))


def _gated(hub: Hub) -> Evidence:
    return on(with_gpus(), "decode", model=Model(LLAMA, False), hub=hub)


def _with_files(of_prefill: dict[str, str], of_decode: dict[str, str]) -> Evidence:
    files = {"prefill": of_prefill, "decode": of_decode}
    evidence = healthy()
    for name, digests in files.items():
        model = Model("/models/llama", True, 32, 8, 128, "bfloat16", files=digests)
        evidence = on(evidence, name, model=model)
    return evidence


def _model_at(path: str) -> Evidence:
    evidence = with_environment(healthy(), "prefill", KVSHARE_MODEL=path)
    return with_environment(evidence, "decode", KVSHARE_MODEL=path)


def _shares_nothing() -> Evidence:
    why = unshareable({"layer_types": ["linear_attention"]}, "cpu")
    return on_each(healthy(), model=Model("/models/next", True, 10, 5, 64, unshareable=why))


def _with_keys(**keys: str) -> Evidence:
    return replace(running(healthy()), keys=keys)


def _slow_link() -> Evidence:
    """A gigabit for a model of 128 KiB a token and prompts of 32K tokens."""
    evidence = replace(with_gpus(), links=(Link("prefill", "decode", 0.117e9, 0.000_2),))
    return on_each(evidence, max_model_len=32768)


HUB = "https://huggingface.co"
FAULTS: Mapping[str, Fault] = {
    "engine-unreachable": Fault("DOC-ENG-01", _unreachable(), "context gpu-b: no Docker engine answers", 3),
    "engine-old": Fault(
        "DOC-ENG-02", of_engine(healthy(), "gpu-b", version="20.10.24"), "20.10.24 on machine-b"
    ),
    "compose-old": Fault("DOC-ENG-03", replace(healthy(), operator=Operator("1.29.2", "0.13.1")), "1.29.2"),
    "no-compose": Fault("DOC-ENG-03", replace(healthy(), operator=Operator("", "0.13.1")), "none"),
    "no-buildx": Fault("DOC-ENG-04", replace(healthy(), operator=Operator("2.26.1", "")), "none", 0),
    "userns-remap": Fault("DOC-ENG-05", of_engine(healthy(), "gpu-b", apart="userns"), "(userns-remap)"),
    "rootless": Fault("DOC-ENG-05", of_engine(healthy(), "gpu-b", apart="rootless"), "engine is rootless"),
    "no-image": Fault("DOC-IMG-01", _without_image(), "none on context gpu-b"),
    "two-images": Fault(
        "DOC-IMG-02",
        of_engine(healthy(), "gpu-b", image=replace(IMAGE, id="sha256:fedcba9876543210", content="other")),
        "default has 0123456789ab and gpu-b fedcba987654",
        0,
    ),
    "version-skew": Fault(
        "DOC-IMG-03",
        on(healthy(), "decode", versions={**healthy().seen["decode"].versions, "lmcache": "0.5.5"}),
        "and decode lmcache 0.5.5",
    ),
    "unpatched": Fault("DOC-IMG-04", on(healthy(), "decode", patches=()), "decode: "),
    "probe-fails": Fault("DOC-HOST-01", _probe_fails(), "another version"),
    "limits-refused": Fault(
        "DOC-HOST-01",
        of_node(with_gpus(), "decode", refused="error setting rlimit type 8: operation not permitted"),
        "rlimit",
    ),
    "host-is-loopback": Fault(
        "DOC-HOST-02", moved(healthy(), "prefill", "127.0.0.1"), "127.0.0.1 is a loopback address"
    ),
    "host-is-other-loopback": Fault(
        "DOC-HOST-02", moved(healthy(), "prefill", "127.0.1.1"), "no address of it, it is a loopback address"
    ),
    "host-is-docker0": Fault(
        "DOC-HOST-02", moved(healthy(), "prefill", "172.17.0.1"), "172.17.0.1 is docker0's"
    ),
    "host-is-anothers": Fault(
        "DOC-HOST-02", moved(healthy(), "prefill", "192.168.110.97"), "decode's machine has it"
    ),
    "host-is-nobodys": Fault("DOC-HOST-02", moved(healthy(), "decode", "192.168.110.98"), "no address of it"),
    "clocks-apart": Fault(
        "DOC-HOST-03", of_engine(healthy(), "gpu-b", clock=Clock(-4.2, 0.01)), "4.210 s", 0
    ),
    "no-memory": Fault(
        "DOC-HOST-04", on(healthy(), "prefill", memory_available=2 * GIB), "3.5 GiB needed, 2.0 GiB available"
    ),
    "memlock-low": Fault(
        "DOC-HOST-05",
        on(lmcache(with_gpus(), "decode", max_local_cpu_size=5), "decode", memlock=64 * 1024**2),
        "memlock is limited to 0.06 GiB of 5.0 GiB",
    ),
    "port-taken": Fault(
        "DOC-HOST-06",
        on(healthy(), "decode", listening=(Endpoint("0.0.0.0", 8501),)),
        "decode: port 8501 (decode LMCache worker) is taken",
    ),
    "nixl-port-taken": Fault(
        "DOC-HOST-06",
        on(healthy(), "decode", listening=(Endpoint("127.0.0.1", 8205),)),
        "decode: port 8205 (decode NIXL metrics) is taken",
    ),
    "no-model": Fault(
        "DOC-HOST-07",
        on(healthy(), "decode", model=Model("/models/llama", False)),
        "no config.json at /models/llama",
    ),
    "models-not-ours": Fault(
        "DOC-HOST-07",
        on(healthy(), "decode", model=Model("demo", False, writable=False)),
        "demo is to go into the models volume, which user 2000 may not write",
    ),
    "gated-without-token": Fault("DOC-HOST-07", _gated(Hub(HUB, False, 401)), "no token was given"),
    "gated-with-token": Fault("DOC-HOST-07", _gated(Hub(HUB, True, 403)), "the token given is not enough"),
    "misspelt-model": Fault("DOC-HOST-07", _gated(Hub(HUB, True, 404)), "has no meta-llama"),
    "no-disk": Fault(
        "DOC-HOST-08", on(healthy(), "decode", disk_free=GIB), "2 GiB needed in /var/lib/docker"
    ),
    "no-toolkit": Fault(
        "DOC-GPU-01",
        of_engine(
            of_node(
                with_gpus(),
                "decode",
                gpus=Gpus(error="could not select device driver with capabilities: [[gpu]]"),
            ),
            "gpu-b",
            runtimes=("runc",),
        ),
        "not among the engine's runtimes",
    ),
    "driver-old": Fault(
        "DOC-GPU-02",
        of_node(with_gpus(), "decode", gpus=Gpus("550.54.15", (("0", "GPU-5f2d", "NVIDIA H200"),))),
        "550.54.15",
    ),
    "no-such-gpu": Fault(
        "DOC-GPU-03", of_node(with_gpus(), "decode", pinned_gpus="GPU-0000"), "no GPU GPU-0000"
    ),
    "no-such-second-gpu": Fault(
        "DOC-GPU-03", of_node(with_gpus(), "decode", pinned_gpus="0,7"), "no GPU 7, there is 0 (GPU-5f2d"
    ),
    "ucx-on-docker0": Fault(
        "DOC-NET-01",
        on(healthy(), "decode", ucx=Ucx("tcp", "docker0", ("tcp/docker0", "tcp/eth0"))),
        "docker0 is Docker's own bridge",
    ),
    "ucx-device-missing": Fault(
        "DOC-NET-01",
        on(healthy(), "decode", ucx=Ucx("tcp", "eth7", ("tcp/eth0",))),
        "UCX finds only tcp/eth0",
    ),
    "no-cable": Fault("DOC-NET-01", _no_cable(), "eth0 is down, or has no cable"),
    "ucx-refuses": Fault(
        "DOC-NET-01",
        on(healthy(), "decode", ucx=Ucx("", "", (), "expected an RDMA card behind eth0 and found none")),
        "RDMA card",
    ),
    "ucx-on-loopback": Fault(
        "DOC-NET-01",
        on(healthy(), "decode", ucx=Ucx("tcp", "lo", ("tcp/lo",))),
        "lo leads to no other machine",
    ),
    "firewall": Fault(
        "DOC-NET-02", _firewall(), "prefill to 192.168.110.97:8011 (decode API): no answer in 3 s"
    ),
    "nixl-tells-nothing": Fault(
        "DOC-NET-02",
        dialled(healthy(), "connection refused", port=8204),
        "prefill to 127.0.0.1:8204 (prefill NIXL metrics): connection refused",
    ),
    "nixl-cannot-listen": Fault(
        "DOC-NET-02",
        replace(healthy(), unheld=("127.0.0.1:8205: address already in use",)),
        "127.0.0.1:8205: address already in use",
    ),
    "cannot-listen": Fault(
        "DOC-NET-02",
        replace(healthy(), unheld=("192.168.110.97:8011: address already in use",)),
        "address already in use",
    ),
    "ucx-ports-closed": Fault("DOC-NET-03", _ucx_ports_closed(), "192.168.110.97:8700"),
    "port-everywhere": Fault(
        "DOC-NET-04", _worker_everywhere(), "8501 (decode LMCache worker) listens on all", 0
    ),
    "port-open-outside": Fault(
        "DOC-NET-04",
        dialled(healthy(), "", source=OPERATOR, port=9000),
        "192.168.110.13:9000 (controller HTTP) answers the operator's machine",
        0,
    ),
    "link-fails": Fault(
        "DOC-NET-05",
        replace(healthy(), links=(Link("prefill", "decode", error="no usable transports/devices"),)),
        "no usable transports",
    ),
    "gateway-does-not-know": Fault(
        "DOC-NET-06",
        behind_gateway({"192.168.110.13:8010": True}),
        "decode: 192.168.110.97:8011 is not there",
        0,
    ),
    "gateway-does-not-reach": Fault(
        "DOC-NET-06",
        behind_gateway({"192.168.110.13:8010": True, "192.168.110.97:8011": False}),
        "decode: 192.168.110.97:8011 runs, and does not answer the gateway",
        0,
    ),
    "gateway-does-not-answer": Fault(
        "DOC-NET-06", behind_gateway(error="no answer in 30 s"), "no answer in 30 s", 0
    ),
    "hash-seed": Fault(
        "DOC-CONF-01",
        with_environment(healthy(), "decode", PYTHONHASHSEED="7"),
        "prefill has 123 and decode 7",
    ),
    "other-model": Fault(
        "DOC-CONF-02",
        with_environment(healthy(), "decode", KVSHARE_MODEL="/models/b"),
        "prefill has demo and decode /models/b",
    ),
    "other-dtype": Fault(
        "DOC-CONF-03", with_environment(healthy(), "decode", KVSHARE_DTYPE="bfloat16"), "and decode bfloat16"
    ),
    "other-kv-cache-dtype": Fault(
        "DOC-CONF-03",
        with_environment(healthy(), "decode", KVSHARE_KV_CACHE_DTYPE="fp8"),
        "and decode float32 with fp8 KV",
    ),
    "chunk-size": Fault(
        "DOC-CONF-04", lmcache(healthy(), "decode", chunk_size=128), "prefill has 256 and decode 128"
    ),
    "hash-algorithm": Fault(
        "DOC-CONF-05",
        lmcache(healthy(), "decode", pre_caching_hash_algorithm="sha256_cbor"),
        "pre_caching_hash_algorithm=sha256_cbor",
    ),
    "model-out-of-reach": Fault("DOC-CONF-08", _model_at("/srv/mine"), "MODEL=/srv/mine is outside /models"),
    "length-of-a-chunk": Fault(
        "DOC-CONF-09", with_environment(healthy(), "decode", KVSHARE_MAX_MODEL_LEN="256"), "MAX_MODEL_LEN=256"
    ),
    "other-revision": Fault(
        "DOC-CONF-02",
        with_environment(healthy(), "decode", KVSHARE_MODEL_REVISION="v2"),
        "prefill has demo and decode demo at v2",
    ),
    "other-vllm-args": Fault(
        "DOC-CONF-10",
        with_environment(healthy(), "decode", KVSHARE_USER_VLLM_ARGS="--quantization fp8"),
        "prefill has none and decode --quantization fp8",
    ),
    "hybrid-model": Fault(
        "DOC-CONF-11", _shares_nothing(), "/models/next: layers of it keep a running state (linear_attention)"
    ),
    "other-files-of-one-name": Fault(
        "DOC-CONF-12",
        _with_files({"config": "aa" * 16, "weights": "bb" * 16}, {"config": "aa" * 16, "weights": "cc" * 16}),
        "weights bbbbbbbbbbbb and decode config aaaaaaaaaaaa, weights cccccccccccc",
    ),
    "another-cluster-key": Fault(
        "DOC-CONF-13",
        _with_keys(controller="0badcafe", prefill="0badcafe", decode="12345678"),
        "decode=12345678",
    ),
    "no-cluster-key-on-one": Fault(
        "DOC-CONF-13", _with_keys(controller="0badcafe", prefill="0badcafe", decode=""), "decode=none"
    ),
    "another-cluster-key-next": Fault(
        "DOC-CONF-13", replace(_with_keys(prefill="0badcafe"), next_key="12345678"), "the next start=12345678"
    ),
    "timeout-too-small": Fault("DOC-CONF-06", _slow_link(), "3000 ms lets 1792 tokens through"),
    "never-pays": Fault(
        "DOC-CONF-07",
        replace(with_gpus(), links=(Link("prefill", "decode", 1.17e9, 0.000_05),)),
        "to decode never",
        0,
    ),
}
