"""Whether containers get the GPUs that are pinned."""

from kvshare.checking.registry import Category, NotChecked, NotNeeded, Outcome
from kvshare.contract import gpus_of
from kvshare.doctor.checks.shared import dotted, each, listed
from kvshare.doctor.evidence import Evidence, Gpus
from kvshare.site.contexts import version_of

CHECKS: Category[Evidence] = Category("gpu")
MINIMUM_DRIVER = (580,)  # CUDA 13, which the locked packages are built for


def _gpus(evidence: Evidence) -> dict[str, Gpus]:
    return {node.name: node.gpus for node in evidence.nodes if node.gpus is not None}


@CHECKS.check("DOC-GPU-01", "containers get GPUs (NVIDIA's container toolkit)")
def _toolkit(evidence: Evidence) -> Outcome:
    """With `--gpus all`. Install NVIDIA's container toolkit there first."""
    if evidence.stack.device != "cuda":
        return NotNeeded(f"DEVICE={evidence.stack.device}")
    if not _gpus(evidence):
        return NotChecked("no machine could be looked at")
    bad = {}
    for name, gpus in _gpus(evidence).items():
        if gpus.error:
            runtimes = evidence.engine(evidence.node(name).context).runtimes
            there = "there" if "nvidia" in runtimes else "not among the engine's runtimes"
            bad[name] = f"nvidia-smi in a container: {gpus.error}; the nvidia runtime is {there}"
    fix = "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker, on that machine"
    return each(evidence, bad, "nvidia-smi runs in a container", fix)


@CHECKS.check("DOC-GPU-02", "the driver is new enough", ("DOC-GPU-01",))
def _driver(evidence: Evidence) -> Outcome:
    """The image brings CUDA 13, and needs nothing else of it there."""
    drivers = {name: gpus.driver for name, gpus in _gpus(evidence).items()}
    bad = {name: driver for name, driver in drivers.items() if version_of(driver) < MINIMUM_DRIVER}
    expected = f"NVIDIA driver {dotted(MINIMUM_DRIVER)} or newer, for CUDA 13"
    return each(evidence, bad, expected, "install a newer driver there", listed(drivers, ", "))


@CHECKS.check("DOC-GPU-03", "the pinned GPUs are there", ("DOC-GPU-01",))
def _pinned(evidence: Evidence) -> Outcome:
    """`nvidia-smi -L` lists them there; a UUID stays with its card when another is added."""
    bad, good = {}, []
    for name, gpus in _gpus(evidence).items():
        pinned = gpus_of(evidence.node(name).pinned_gpus)
        matches = {wanted: gpu for wanted in pinned for gpu in gpus.found if wanted in gpu[:2]}
        if missing := [wanted for wanted in pinned if wanted not in matches]:
            there = ", ".join(f"{index} ({uuid}, {model})" for index, uuid, model in gpus.found) or "none"
            bad[name] = f"no GPU {' or '.join(missing)}, there is {there}"
        else:
            good.append(f"{name} {' and '.join(f'{gpu[0]}, {gpu[2]}' for gpu in matches.values())}")
    fix = "correct PREFILL_GPU, DECODE_GPU or DECODE_GPUS in .env"
    return each(evidence, bad, "each pinned index or UUID", fix, "; ".join(good))
