"""Prometheus and the canary beside the stack of two machines, with the rules' times shortened."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kvshare.servers.http import Http
from kvshare.servers.wait import poll
from tests.rig import engines
from tests.rig.network import PREFILL
from tests.scenarios import watching
from tests.scenarios.conftest import CPU_FILES, TwoMachines
from tests.scenarios.under_faults.machines import container
from tests.scenarios.under_faults.traffic import as_operator
from tests.scenarios.watching import Alarm

WATCHERS = ("prometheus", "canary")
BASE = f"http://{PREFILL.address}:9090"
SCRAPED = "1s"
SHORT_S = 3  # what each minute of a rule is here, and each hour
# A canary's turn is a minute still, so three are too: one and a quarter, longer than a canary that ends.
SILENT, SILENT_SHORT = "> 180", "> 75"
DEADLINE_S = 100.0
TELLS = "import sys; print(open(sys.argv[1]).read())"
WRITES = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"


def start(machines: TwoMachines) -> None:
    """Prometheus, and once it has looked at the servers the canary."""
    engines.load_images([PREFILL], [*engines.IMAGES, engines.OBSERVE])
    _up(machines, "prometheus")
    _hurry()
    assert poll(lambda: len(query('up{job="server"} == 1')) == 2, bool, DEADLINE_S)
    sing(machines)


def stop() -> None:
    engines.docker(PREFILL, "rm", "--force", *map(container, WATCHERS))


def sing(machines: TwoMachines, *overlays: Path) -> None:
    """A new canary, which asks at once."""
    engines.docker(PREFILL, "rm", "--force", container("canary"))
    _up(machines, "canary", *overlays)


def await_canary(state: str) -> None:
    """Wait until a canary of decode has ended so."""
    ended = f'kvshare_canary_state{{node="decode",state="{state}"}} == 1'
    seen = poll(lambda: query(ended), bool, DEADLINE_S)
    assert seen, engines.docker(PREFILL, "logs", "--tail=5", container("canary"), both=True)


def query(expression: str) -> list[dict[str, Any]]:
    return as_operator(lambda: watching.query(expression, BASE))


def firing() -> set[Alarm]:
    return as_operator(lambda: watching.firing(BASE))


def shortened(rules: str) -> str:
    """The file of rules as Prometheus runs it, each time in it shortened and nothing else changed."""
    rules = re.sub(r"(\[|offset )(\d+)[mh]", lambda span: f"{span[1]}{int(span[2]) * SHORT_S}s", rules)
    rules = re.sub(r'("for": )"(\d+)s"', lambda wait: f'{wait[1]}"{int(wait[2]) * SHORT_S / 60:.0f}s"', rules)
    assert rules.count(SILENT) == 1
    return rules.replace(SILENT, SILENT_SHORT)


def _hurry() -> None:
    """Let it scrape and judge every second, by shortened rules."""
    _write("/tmp/prometheus/rules.json", shortened(_read("/tmp/prometheus/rules.json")))
    asked = json.loads(_read("/tmp/prometheus/prometheus.json"))
    asked["global"] = dict.fromkeys(asked["global"], SCRAPED)
    _write("/tmp/prometheus/prometheus.json", json.dumps(asked))
    engines.docker(PREFILL, "kill", "--signal=HUP", container("prometheus"))
    runs = Http(BASE)
    taken = poll(
        lambda: as_operator(lambda: runs.get("/api/v1/status/config")),
        lambda said: f"scrape_interval: {SCRAPED}" in said,
        DEADLINE_S,
    )
    assert f"scrape_interval: {SCRAPED}" in taken, engines.docker(
        PREFILL, "logs", "--tail=9", container("prometheus"), both=True
    )


def _read(path: str) -> str:
    return engines.docker(PREFILL, "exec", container("prometheus"), "python", "-c", TELLS, path)


def _write(path: str, text: str) -> None:
    engines.docker(PREFILL, "exec", container("prometheus"), "python", "-c", WRITES, path, text)


def _up(machines: TwoMachines, node: str, *overlays: Path) -> None:
    files = ":".join([CPU_FILES, *map(str, overlays)])
    outcome = machines.run("up", node, OBSERVE=watching.EVERY_MINUTES, COMPOSE_FILE=files)
    assert outcome.code == 0, outcome.err
