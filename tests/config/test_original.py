"""Where our settings differ from the original's, on its two machines: each difference has its reason.

Ours are computed from the golden configuration, by the entrypoint's own code; docs/original.md is made here.
"""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvshare.site import native
from tests.config import original
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docker/engine"))
from kvshare_engine import controller, fingerprint, server, transport
from kvshare_engine.environment import Controller, Server

PAGE = ROOT / "docs/original.md"
GOLDEN = Path(__file__).parent / "golden"
ABSENT = "not set"
# What the entrypoint turns into arguments and settings, and what the image sets for Python.
OURS_ALONE = ("KVSHARE_", "LMCACHE_", "PYTHONUNBUFFERED")
HEADER = """# What differs from the original

kvshare does what two machines did that were set up by hand: 192.168.110.13 (controller and prefill) and
192.168.110.97 (decode), `meta-llama/Meta-Llama-3.1-8B-Instruct` on vLLM and LMCache. With `DEVICE=cuda` and
those two hosts in .env it starts the same programs with the same settings, but for the ones below.
tests/config/test_original.py computes the list from the rendered configuration, and fails where a difference
has no reason here or a reason no difference.

| of | setting | original | kvshare | why |
|---|---|---|---|---|
"""
FOOTER = """
Everything else is equal: model, ports, instance ids, hash seed, chunk size, memory, lengths, connector, role.
`RegisterMsg.peer_init_url`, which the original patched on both machines, is patched in the image
([patches.md](patches.md)).

NVLink plays no part: LMCache copies KV to CPU memory, and moves it from one node's CPU memory to the
other's. Never seen on hardware of its own: RDMA (`TRANSPORT=rdma`), and a GPU inside a container
([gpu.md](gpu.md) says what was).
"""


def environment_of(service: str) -> dict[str, str]:
    profile = "decode" if service == "decode" else "prefill"
    rendered = yaml.safe_load((GOLDEN / f"cuda-{profile}.yaml").read_text())
    return {**native.IMAGE, **rendered["services"][service]["environment"]}


def arguments_of(command: list[str]) -> dict[str, Any]:
    """The options of a command line; JSON options by their keys, of one that is repeated all values."""
    found: dict[str, Any] = {}
    words = iter(command)
    for word in words:
        if not word.startswith("--"):
            continue
        name, _, value = word.partition("=")
        value = value or next(words)
        if value.startswith("{"):
            found |= {f"{name} {key}": inner for key, inner in json.loads(value).items()}
        else:
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def rest_of(environment: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if not name.startswith(OURS_ALONE)}
    return {**kept, "LMCACHE_TRACK_USAGE": environment["LMCACHE_TRACK_USAGE"]}


def server_settings(service: str) -> dict[str, Any]:
    environment = environment_of(service)
    node, at = Server.from_environment(environment), Controller.from_environment(environment)
    lmcache = fingerprint.lmcache_settings(
        ROOT / "configs/lmcache.yaml", {**environment, **server.lmcache_environment(node, at)}
    )
    lmcache.pop("track_usage")  # no setting: LMCache reads it from the environment, where it is compared
    ucx = {
        "UCX_TLS": transport.UCX_TLS[node.transport, node.device],
        "UCX_NET_DEVICES": "the device of the node's address",
    }
    arguments = arguments_of(server.command(node, node.model))
    return {"model": node.model, **arguments, **rest_of(environment), **ucx, **lmcache}


def controller_settings() -> dict[str, Any]:
    environment = environment_of("controller")
    command = controller.command(Controller.from_environment(environment))
    return {**arguments_of(command), **rest_of(environment)}


def ours(node: str) -> dict[str, Any]:
    return controller_settings() if node == "controller" else server_settings(node)


def differences(nodes: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Setting to the original's value and ours; where two nodes differ, both values."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for node in nodes:
        was, is_ = original.NODES[node], ours(node)
        for name in chain(was, (name for name in is_ if name not in was)):
            if was.get(name) != is_.get(name):
                pairs.setdefault(name, []).append((str(was.get(name, ABSENT)), str(is_.get(name, ABSENT))))
    return {
        name: (_joined(was for was, _ in values), _joined(is_ for _, is_ in values))
        for name, values in pairs.items()
    }


def _joined(values: Any) -> str:
    return ", ".join(dict.fromkeys(values))


def found() -> dict[tuple[str, str], tuple[str, str]]:
    """Every difference, by whose it is and its name."""
    groups = {original.SERVERS: ("prefill", "decode"), original.CONTROLLER: ("controller",)}
    return {
        (group, name): values
        for group, nodes in groups.items()
        for name, values in differences(nodes).items()
    }


def test_every_difference_has_its_reason_and_every_reason_its_difference() -> None:
    assert set(found()) == set(original.REASONS)


def test_a_changed_setting_without_a_reason_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**original.NODES["decode"], "chunk_size": 128}
    monkeypatch.setitem(original.NODES, "decode", changed)
    assert found()[original.SERVERS, "chunk_size"] == ("128", "256")


def test_what_nobody_wanted_to_change_is_as_it_was() -> None:
    for node in ("prefill", "decode"):
        settings = server_settings(node)
        for name in ("model", "--max-model-len", "--port", "chunk_size", "max_local_cpu_size", "p2p_host"):
            assert settings[name] == original.NODES[node][name]


def test_the_page_lists_every_difference(update_golden: bool) -> None:
    values = found()
    rows = [
        f"| {group} | `{name}` | {values[group, name][0]} | {values[group, name][1]} | {why} |"
        for (group, name), why in original.REASONS.items()
    ]
    text = HEADER + "\n".join(rows) + "\n" + FOOTER
    if update_golden:
        PAGE.write_text(text)
    assert text == PAGE.read_text()
