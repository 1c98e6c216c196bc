"""What Prometheus says of the stack, on this machine where no other address is given."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

from kvshare.servers.http import Http
from kvshare.servers.wait import poll
from tests.scenarios.conftest import Rig
from tests.scenarios.keys import controllers_token

EVERY_MINUTES = "1"  # the shortest time between two canaries
PROMETHEUS, CANARY = "http://127.0.0.1:9090", "http://127.0.0.1:9091"
DEADLINE_S = 120.0
Alarm = tuple[str, str]  # its name, and the node that it names


def start(rig: Rig) -> None:
    """Prometheus, and once it has looked at the servers the canary, whose transfer is then a rise."""
    up(rig, "prometheus")
    assert poll(lambda: len(query('up{job="server"} == 1')) == 2, bool, DEADLINE_S)
    up(rig, "canary")


def up(rig: Rig, node: str) -> None:
    outcome = rig.kvshare("up", node, OBSERVE=EVERY_MINUTES)
    assert outcome.code == 0, outcome.err


def stop_canary(rig: Rig) -> None:
    """So that nothing is asked beside a verification; Prometheus goes on."""
    rig.compose("rm", "--stop", "--force", "canary")


def query(expression: str, prometheus: str = PROMETHEUS) -> list[dict[str, Any]]:
    """The series that answer a query, each with its labels as ``metric``."""
    with urllib.request.urlopen(
        f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    ) as said:
        found: list[dict[str, Any]] = json.load(said)["data"]["result"]
    return found


def firing(prometheus: str = PROMETHEUS) -> set[Alarm]:
    series = (one["metric"] for one in query('ALERTS{alertstate="firing"}', prometheus))
    return {(labels["alertname"], labels.get("node", "")) for labels in series}


def await_firing(*alarms: Alarm) -> None:
    """Wait until all of these fire."""
    found = poll(firing, lambda found: found >= set(alarms), DEADLINE_S)
    assert found >= set(alarms), found


def await_canary(state: str) -> None:
    """Wait until a canary of decode has ended so."""
    expression = f'kvshare_canary_state{{node="decode",state="{state}"}} == 1'
    assert poll(lambda: query(expression), bool, DEADLINE_S), query("kvshare_canary_state == 1")


def scraped(url: str) -> str:
    """What a member exports; those that ask for nothing do not look at what the controller asks for."""
    return Http(url, controllers_token()).get("/metrics")
