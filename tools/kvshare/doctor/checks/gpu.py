"""Whether containers get the GPUs that are pinned."""

from __future__ import annotations

from kvshare.checking.registry import Category, NotChecked, NotNeeded, Outcome
from kvshare.doctor.checks.shared import dotted, each, listed
from kvshare.doctor.evidence import Evidence, Node
from kvshare.site.contexts import version_of

CHECKS: Category[Evidence] = Category("gpu")
MINIMUM_DRIVER = (580,)  # CUDA 13, which the locked packages are built for


def _gpu_nodes(evidence: Evidence) -> Outcome | list[Node]:
    if evidence.stack.device != "cuda":
        return NotNeeded(f"DEVICE={evidence.stack.device}")
    nodes = [node for node in evidence.nodes if node.gpus is not None]
    return nodes or NotChecked("no machine could be looked at")


@CHECKS.check("DOC-GPU-01", "containers get GPUs (NVIDIA's container toolkit)")
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
    return each(evidence, bad, "nvidia-smi runs in a container", fix)


@CHECKS.check("DOC-GPU-02", "the driver is new enough", ("DOC-GPU-01",))
def _driver(evidence: Evidence) -> Outcome:
    nodes = _gpu_nodes(evidence)
    if not isinstance(nodes, list):
        return nodes
    drivers = {node.name: node.gpus.driver for node in nodes if node.gpus is not None}
    bad = {name: driver for name, driver in drivers.items() if version_of(driver) < MINIMUM_DRIVER}
    return each(
        evidence,
        bad,
        f"NVIDIA driver {dotted(MINIMUM_DRIVER)} or newer, for CUDA 13",
        "install a newer driver there",
        listed(drivers, ", "),
    )


@CHECKS.check("DOC-GPU-03", "the pinned GPU is there", ("DOC-GPU-01",))
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
    return each(evidence, bad, "each pinned index or UUID", f"correct {variable} in .env", "; ".join(good))
