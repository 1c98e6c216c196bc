"""Cures taken out of the two servers that share, one at a time: what the oracle is there to see."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.scenarios.conftest import other_weights
from tests.scenarios.under_traffic.oracle import Problem
from tests.scenarios.under_traffic.requests import NODES

sys.path.insert(0, str(ROOT / "docker"))

from guard.hunks import unpatched
from guard.series import load_all

SITE = "/opt/venv/lib/python3.11/site-packages"
IDENTITY = f"{SITE}/lmcache/integration/vllm/identity.py"
ADAPTER = f"{SITE}/lmcache/integration/vllm/vllm_v1_adapter.py"
ENTRANCE = "/opt/kvshare/kvshare_engine/requests.py"
WEIGHTS = "/models/kvshare-demo/model.safetensors"
FOLDER = ROOT / ".kvshare/scenarios/cures"


@dataclass(frozen=True)
class Cure:
    """A cure, how it is taken out, and what must be seen then.

    Attributes:
        patches: ids, left out of their series with whatever needs them.
        lines: by file, a line of it and what stands there instead.
        said: what is said of an answer, or stands in a server's log; a regular expression.
        nodes: whose answers are judged.
        other_weights: whether prefill serves other weights under the same path.
    """

    name: str
    said: str
    patches: tuple[str, ...] = ()
    lines: Mapping[str, tuple[str, str]] | None = None
    nodes: tuple[str, ...] = NODES
    other_weights: bool = False

    def is_seen_by(self, problem: Problem) -> bool:
        return problem.request.node in self.nodes and bool(re.search(self.said, problem.sentence))


REUSED, WRONG = "tokens reused, of which its kind has sent", "^wrong: "
CURES = (
    Cure(
        "the adapter in a request's identity",
        WRONG,
        lines={IDENTITY: ('apart["lora"] = [adapter.lora_name, _adapter_digest(adapter)]', "pass")},
    ),
    Cure("the salt in a request's identity", REUSED, lines={IDENTITY: ('apart["salt"] = salt', "pass")}),
    Cure(
        "the weights in a model's identity",
        WRONG,
        lines={IDENTITY: ("_weights(vllm_config),", '"",')},
        nodes=("decode",),
        other_weights=True,
    ),
    Cure(
        "request-fields, and the check where requests enter",
        "(KeyError: 'receiver_host'|TypeError: unhashable|IndexError)",
        patches=("request-fields",),
        lines={ENTRANCE: ("if reason is not None:", "if False:")},
    ),
    Cure(
        "unread-lookup",
        "AssertionError",
        lines={ADAPTER: ('if getattr(request, "skip_reading_prefix_cache", False):', "if False:")},
    ),
    Cure("base-model", WRONG, patches=("base-model",)),
    Cure("prompt-adapter", "RuntimeError: The size of tensor a", patches=("prompt-adapter",)),
    Cure("seed-in-pieces", "RuntimeError: CPU Generator does not use offset", patches=("seed-in-pieces",)),
)


def overlay_without(image: str, cure: Cure) -> Path:
    """Write what differs without a cure from the image; return the overlay that puts it into both servers."""
    folder = FOLDER / re.sub("[^a-z]+", "-", cure.name)
    folder.mkdir(parents=True, exist_ok=True)
    volumes = []
    for number, (target, text) in enumerate(_broken(image, cure)):
        (folder / f"{number}.py").write_text(text)
        volumes.append(_volume(folder / f"{number}.py", target))
    services = {name: {"volumes": list(volumes)} for name in NODES}
    if cure.other_weights:
        other_weights(folder / "model.safetensors")
        services["prefill"]["volumes"].append(_volume(folder / "model.safetensors", WEIGHTS))
    overlay = folder / "overlay.yaml"
    overlay.write_text(json.dumps({"services": services}))  # which is YAML
    return overlay


def _volume(source: Path, target: str) -> dict[str, object]:
    return {
        "type": "bind",
        "source": f"./{source.relative_to(ROOT)}",
        "target": target,
        "read_only": True,
    }


def _broken(image: str, cure: Cure) -> Iterator[tuple[str, str]]:
    """Each file of the image that differs without the cure: its path and its text then."""
    for patch in cure.patches:
        yield from _without(image, patch)
    for path, (line, instead) in (cure.lines or {}).items():
        text = _read(image, path)
        assert text.count(line) == 1, f"{path} has not one {line}"
        yield path, text.replace(line, instead)


def _without(image: str, patch_id: str) -> Iterator[tuple[str, str]]:
    """Each file that a patch of the CPU's changes, and what needs it: its path and its text without these."""
    every = [series.of("cpu") for series in load_all()]
    series = next(one for one in every if patch_id in {patch.id for patch in one.patches})
    less = series.without(patch_id)
    gone = [patch for patch in series.patches if patch not in less.patches]
    for name in dict.fromkeys(name for patch in gone for name in patch.hunks):
        text = _read(image, f"{SITE}/{name}")
        for patch in reversed(series.patches):
            text = unpatched(text, patch.hunks.get(name, ()))
        yield f"{SITE}/{name}", less.applied(name, text.encode()).decode()


def _read(image: str, path: str) -> str:
    command = ("docker", "run", "--rm", "--network=none", "--entrypoint=cat", image, path)
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
