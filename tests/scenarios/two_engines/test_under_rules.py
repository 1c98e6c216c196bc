"""The whole stack with an API key, behind its own firewall rules: it works, and nothing else gets in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import engines, network
from tests.rig.network import DECODE, OPERATOR, PREFILL, Host
from tests.scenarios.conftest import TwoMachines

KEY = "sk-not-a-real-key"
DATA = range(8700, 8800)
API = {PREFILL: 8010, DECODE: 8011}
# The ports of each host that the other must reach; who else listens there has no business on the network.
FROM_PEER = {PREFILL: {8010, 8200, 8201, 8300, 8400, 8600, 9000}, DECODE: {8011, 8202, 8203, 8501}}
# Dials every port of a host, a thousand at a time, and prints those that answer.
SCAN = """
import asyncio, sys
async def main(host):
    gate = asyncio.Semaphore(1000)
    async def dial(port):
        async with gate:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 3)
            except (OSError, TimeoutError, asyncio.TimeoutError):
                return None
            writer.close()
            return port
    found = await asyncio.gather(*map(dial, range(1, 65536)))
    print(*(port for port in found if port))
asyncio.run(main(sys.argv[1]))
"""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def guarded(rig: TwoMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoMachines]:
    """The stack started behind the rules, and with a key; both are taken away again."""
    network.require("nft")
    key = tmp_path_factory.mktemp("secrets") / "key"
    key.write_text(f"{KEY}\n")
    rig.settings["API_KEY_FILE"] = str(key)
    rig.kvshare("down")
    hosts = {"prefill": PREFILL, "decode": DECODE}
    try:
        for node, host in hosts.items():
            rules = rig.kvshare("ports", "--format", "nft", "--node", node)
            assert rules.code == 0, rules.err
            subprocess.run(host.command("nft", "-f", "-"), input=rules.out, text=True, check=True, timeout=60)
        started = rig.up()
        assert started.code == 0, started.err
        yield rig
    finally:
        del rig.settings["API_KEY_FILE"]
        for host in hosts.values():
            subprocess.run(host.command("nft", "delete", "table", "inet", "kvshare"), timeout=60)
        rig.kvshare("down")


def scan(source: Host, target: Host) -> set[int]:
    return {
        int(port)
        for port in network.run(source.command(sys.executable, "-c", SCAN, target.address), 120).split()
    }


def test_reuse_is_proven(guarded: TwoMachines) -> None:
    outcome = guarded.verify(prompts=2)
    assert outcome.code == 0, outcome.out + outcome.err


@pytest.mark.parametrize("target", [PREFILL, DECODE], ids=lambda host: host.name)
def test_a_stranger_reaches_the_api_and_no_other_port(guarded: TwoMachines, target: Host) -> None:
    del guarded
    assert scan(OPERATOR, target) == {API[target]}


@pytest.mark.parametrize(("source", "target"), [(PREFILL, DECODE), (DECODE, PREFILL)])
def test_the_other_node_reaches_what_the_table_says(guarded: TwoMachines, source: Host, target: Host) -> None:
    del guarded
    found = scan(source, target)
    assert found - set(DATA) == FROM_PEER[target]
    assert len(found & set(DATA)) == 1, "UCX takes one port a server"


@pytest.mark.parametrize(
    ("text", "sentence"), [("wrong\n", "refuses the API key"), (None, "wants an API key: set API_KEY_FILE")]
)
def test_a_wrong_or_missing_key_is_named(
    guarded: TwoMachines, tmp_path: Path, text: str | None, sentence: str
) -> None:
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text)
    outcome = guarded.kvshare(
        "verify", "--output", "json", "--prompts", "1", API_KEY_FILE=str(path) if text else ""
    )
    assert outcome.code == 1, outcome.err
    assert sentence in outcome.out


@pytest.mark.parametrize("host", [PREFILL, DECODE], ids=lambda host: host.name)
def test_the_key_is_shown_nowhere(guarded: TwoMachines, host: Host) -> None:
    del guarded
    for container in engines.docker(host, "ps", "--quiet").split():
        assert KEY not in engines.docker(host, "inspect", container)
        said = subprocess.run(
            ["docker", "--host", f"unix://{engines.socket_of(host)}", "logs", container],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert KEY not in said.stdout + said.stderr
