"""The stack of test_two_engines, which is proven behind its own firewall rules: nothing else gets in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openai
import pytest

from kvshare.servers.http import Http, RefusedKeyError
from tests.rig import engines
from tests.rig.doors import scan, unlike
from tests.rig.network import DECODE, OPERATOR, PREFILL, Host
from tests.scenarios.conftest import TwoMachines, letters
from tests.scenarios.two_engines.conftest import KEY
from tests.scenarios.under_faults.traffic import as_operator

# Of the loopback network, and nobody's: what answers there, past every rule, listens on all addresses.
ANOTHER_ADDRESS = "127.0.0.9"
CLIENTS = "clients"
GATEWAY = f"http://{PREFILL.address}:8000"

pytestmark = pytest.mark.timeout(900)


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


@pytest.mark.parametrize(("host", "port"), [(PREFILL, 8010), (DECODE, 8011)], ids=["prefill", "decode"])
def test_beside_v1_too_a_server_asks_for_the_key(guarded: TwoMachines, host: Host, port: int) -> None:
    del guarded
    url = f"http://{host.address}:{port}"

    def ask() -> None:
        for path in ("/docs", "/openapi.json", "/load"):
            with pytest.raises(RefusedKeyError):
                Http(url).get(path)
            assert Http(url, KEY).get(path)
        assert "vllm:prompt_tokens_total" in Http(url).get("/metrics")

    as_operator(ask)


def test_the_gateway_passes_the_clients_key_on_and_computes_with_it_on_prefill_first(
    guarded: TwoMachines,
) -> None:
    del guarded

    def client(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{GATEWAY}/v1", api_key=key, max_retries=0, timeout=60)

    def computed_first() -> str:
        (line,) = re.findall(
            r'^kvshare_gateway_prefills_total{outcome="computed"} .*', Http(GATEWAY).get("/metrics"), re.M
        )
        return str(line)

    def ask() -> None:
        with pytest.raises(openai.AuthenticationError):
            client("wrong").models.list()
        (model, *_) = client(KEY).models.list()
        client(KEY).completions.create(model=model.id, prompt=letters("first", 300), max_tokens=1)
        before = computed_first()
        client(KEY).completions.create(model=model.id, prompt=letters("second", 300), max_tokens=1)
        assert computed_first() != before

    as_operator(ask)


@pytest.mark.parametrize("host", [PREFILL, DECODE], ids=lambda host: host.name)
def test_the_key_is_shown_nowhere(guarded: TwoMachines, host: Host) -> None:
    del guarded
    for container in engines.docker(host, "ps", "--quiet").split():
        assert KEY not in engines.docker(host, "inspect", container)
        assert KEY not in engines.docker(host, "logs", container, both=True)
