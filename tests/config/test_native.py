"""configs/native.json: the environments of the three services as Compose resolves them on this machine alone.

A value that somebody decides stands as the decision's name and its default, as compose.yaml has them.
Regenerate it with `pytest tests/config --update-golden`, and read the difference.
"""

from __future__ import annotations

import json
import re

from kvshare.site.native import RENDERED, SERVICES
from tests.config.test_rendered import DEVICES, services
from tests.conftest import ROOT

FIXED = {"PREFILL_HOST", "DECODE_HOST", "DECODE_INSTANCE"}  # one machine, one decode node
NO_NAME = {"MODELS"}  # of a volume, which such a value cannot be


def rendered(device: str) -> dict[str, dict[str, str | tuple[str, str]]]:
    """Render twice: as it is by default, and with every decision's name in its place."""
    default = services(device)
    text = "".join((ROOT / name).read_text() for name in DEVICES[device].split(":"))
    decisions = set(re.findall(r"\$\{(\w+)", text)) - FIXED - NO_NAME
    named = services(device, **{name: f"@{name}@" for name in decisions})
    found: dict[str, dict[str, str | tuple[str, str]]] = {}
    for service in SERVICES:
        found[service] = {}
        for name, value in default[service]["environment"].items():
            decision = re.fullmatch(r"@(\w+)@", named[service]["environment"][name])
            found[service][name] = value if decision is None else (decision.group(1), value)
    return found


def test_what_plain_processes_are_given_is_what_compose_gives_containers(update_golden: bool) -> None:
    text = json.dumps({device: rendered(device) for device in ("cpu", "cuda")}, indent=1) + "\n"
    text = re.sub(r"\[\s+(.+),\s+(.+)\s+\]", r"[\1, \2]", text)  # a decision on a line
    if update_golden:
        (ROOT / RENDERED).write_text(text)
    assert text == (ROOT / RENDERED).read_text()
