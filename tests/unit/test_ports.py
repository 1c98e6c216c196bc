"""The one registry of ports, and what is made from it: table, JSON, firewall rules, docs."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kvshare import cli
from kvshare.errors import KvshareError
from kvshare.site import compose
from kvshare.stack import firewall, ports
from kvshare.stack.members import Gateway, Server, Stack
from tests.unit.build import WATCHED as STACK

GOLDEN = Path(__file__).parent / "golden"
PREFILL, DECODE = STACK.prefill.host, STACK.decode.host


def on_one_machine() -> Stack:
    def here(member: Server) -> Server:
        return replace(member, host="127.0.0.1")

    controller = replace(STACK.controller, host="127.0.0.1")
    gateway = Gateway("gateway", "gateway", "default", "127.0.0.1", 8000)
    decodes = tuple(map(here, STACK.decodes))
    prefill, watchers = here(STACK.prefill), tuple(replace(w, host="127.0.0.1") for w in STACK.watchers)
    return replace(
        STACK, controller=controller, prefill=prefill, decodes=decodes, gateway=gateway, watchers=watchers
    )


def with_two_decode_nodes() -> Stack:
    second = replace(STACK.decode, name="decode-2", host="192.168.110.98")
    return replace(STACK, decodes=(replace(STACK.decode, name="decode-1"), second))


def port(purpose: str, of: Stack = STACK) -> ports.Port:
    return next(found for found in ports.registry(of) if found.purpose == purpose)


def test_every_port_of_compose_yaml_is_in_the_registry(root: Path) -> None:
    facts = yaml.safe_load((root / "compose.yaml").read_text())["x-kvshare"]
    stated = {v for group in facts.values() for k, v in group.items() if k.endswith("_PORT")}
    assert {p.first for p in ports.registry(STACK) if p.first == p.last} == stated
    ranges = {p.text for p in ports.registry(STACK) if p.first != p.last}
    assert ranges == {facts["server"]["UCX_TCP_PORT_RANGE"]}


def test_no_port_lies_in_another_range_nor_where_the_kernel_takes_its_own() -> None:
    for host in (PREFILL, DECODE):
        spans = sorted((p.first, p.last) for p in ports.of_machine(ports.registry(STACK), host))
        assert all(last < first for (_, last), (first, _) in pairwise(spans))
        assert spans[-1][1] < 32768, "net.ipv4.ip_local_port_range begins there"


def test_who_must_reach_a_port_is_every_node_but_its_own() -> None:
    assert ports.callers_of(port("controller pull"), STACK) == (DECODE,)
    assert ports.callers_of(port("prefill LMCache worker"), STACK) == ()
    assert ports.callers_of(port("decode LMCache worker"), STACK) == (PREFILL,)
    assert ports.callers_of(port("decode KV data"), STACK) == (PREFILL,)


def test_decode_nodes_reach_each_other() -> None:
    two = with_two_decode_nodes()
    first = port("decode P2P init", two)
    assert first.node == "decode-1"
    assert ports.callers_of(first, two) == (PREFILL, "192.168.110.98")
    assert ports.callers_of(port("controller HTTP", two), two) == (DECODE, "192.168.110.98")


@pytest.mark.parametrize("node", ["prefill", "decode"])
@pytest.mark.parametrize("form", ["nft", "ufw"])
def test_rules_are_the_golden_ones(form: str, node: str, update_golden: bool) -> None:
    machine = firewall.machine_of(STACK, node, ("10.0.0.0/8", "10.1.2.3", "fd00::/64"))
    text = firewall.nft(machine) if form == "nft" else firewall.ufw(machine)
    golden = GOLDEN / f"ports-{node}.{form}"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text()


def test_without_clients_anyone_may_use_the_api_and_nothing_else() -> None:
    machine = firewall.machine_of(STACK, "decode", ())
    assert [o.port.purpose for o in machine.openings if o.sources is None] == ["decode API"]
    assert 'tcp dport 8011 accept comment "decode API"' in firewall.nft(machine)


def test_one_machine_needs_no_node_and_lets_nobody_in_but_clients() -> None:
    machine = firewall.machine_of(on_one_machine(), None, ())
    assert machine.names == ("controller", "prefill", "decode", "gateway", "prometheus", "canary")
    assert "saddr" not in firewall.nft(machine)
    # ufw takes 15 ports a rule.
    denied = [line for line in firewall.ufw(machine).splitlines() if line.startswith("ufw deny")]
    assert len(denied) == 2


def test_several_machines_need_a_node() -> None:
    with pytest.raises(KvshareError, match="add --node, one of controller, prefill, decode"):
        firewall.machine_of(STACK, None, ())
    with pytest.raises(KvshareError, match=r"there is no node decod, did you mean decode\?"):
        firewall.machine_of(STACK, "decod", ())


@pytest.mark.parametrize(("client", "what"), [("gpu-c", "gpu-c"), ("10.0.0.5/8", "10.0.0.5/8")])
def test_a_client_that_is_no_address_is_refused(client: str, what: str) -> None:
    with pytest.raises(KvshareError, match=f"CLIENTS is {what}, which is no address or network"):
        firewall.machine_of(STACK, "prefill", (client,))


def test_a_host_that_is_a_name_is_refused_where_rules_would_need_its_address() -> None:
    named = replace(STACK, decodes=(replace(STACK.decode, host="gpu-b"),))
    with pytest.raises(KvshareError, match=r"a host in \.env is gpu-b, which is no address"):
        firewall.machine_of(named, "prefill", ())


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(compose, "read_stack", lambda _: STACK)
    result = CliRunner().invoke(cli.main, ["ports", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_and_json_show_all_or_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke(monkeypatch).count("\n") == 1 + len(ports.registry(STACK))
    found = json.loads(invoke(monkeypatch, "--format", "json", "--node", "decode"))
    assert {record["host"] for record in found} == {DECODE}
    assert found[0] == {
        "node": "decode",
        "host": DECODE,
        "first": 8011,
        "last": 8011,
        "purpose": "decode API",
        "process": "vllm serve",
        "protocol": "HTTP",
        "authenticated": "/v1 only, with API_KEY_FILE",
        "callers": ["clients", "prefill node"],
        "from": [PREFILL],
    }


def test_rules_come_through_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENTS", "10.0.0.0/8")
    rules = invoke(monkeypatch, "--format", "nft", "--node", "decode")
    assert "tcp dport 8011 ip saddr { 10.0.0.0/8, 192.168.110.13 } accept" in rules
    assert "ufw deny" in invoke(monkeypatch, "--format", "ufw", "--node", "decode")


def test_the_page_names_every_port(root: Path) -> None:
    page = (root / "docs/ports.md").read_text()
    assert all(f"| {found.text} |" in page for found in ports.registry(STACK))
