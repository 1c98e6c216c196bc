"""The whole stack with an API key, behind its own firewall rules: it works, and nothing else gets in."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import engines, network
from tests.rig.doors import scan, unlike
from tests.rig.network import DECODE, OPERATOR, PREFILL, Host
from tests.scenarios.conftest import TwoMachines

KEY = "sk-not-a-real-key"
# Of the loopback network, and nobody's: what answers there, past every rule, listens on all addresses.
ANOTHER_ADDRESS = "127.0.0.9"
CLIENTS = "clients"

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


@pytest.fixture(scope="module")
def table(guarded: TwoMachines) -> list[dict[str, Any]]:
    """The ports table, as `kvshare ports` prints it."""
    listed = guarded.kvshare("ports", "--format", "json")
    assert listed.code == 0, listed.err
    rows: list[dict[str, Any]] = listed.report  # type: ignore[assignment]
    return rows


def open_to(source: Host, target: Host, table: list[dict[str, Any]]) -> list[range]:
    """The rows of a host's ports that another host is to reach."""
    return [
        range(row["first"], row["last"] + 1)
        for row in table
        if row["host"] == target.address and (source.address in row["from"] or CLIENTS in row["callers"])
    ]


def test_reuse_is_proven(guarded: TwoMachines) -> None:
    outcome = guarded.verify(prompts=2)
    assert outcome.code == 0, outcome.said


@pytest.mark.parametrize(
    ("source", "target"),
    [(PREFILL, DECODE), (DECODE, PREFILL), (OPERATOR, PREFILL), (OPERATOR, DECODE)],
    ids=lambda host: host.name,
)
def test_a_node_and_a_stranger_reach_what_the_table_says_and_no_other_port(
    table: list[dict[str, Any]], source: Host, target: Host
) -> None:
    assert unlike(open_to(source, target, table), scan(source.command(), target.address)) == []


@pytest.mark.parametrize("host", [PREFILL, DECODE], ids=lambda host: host.name)
def test_nothing_listens_on_all_addresses(guarded: TwoMachines, host: Host) -> None:
    del guarded
    assert scan(host.command(), ANOTHER_ADDRESS) == set()


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
        assert KEY not in engines.docker(host, "logs", container, both=True)
