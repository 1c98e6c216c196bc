"""Prometheus's own configuration, made where it runs, from what compose.yaml tells its service."""

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from kvshare.config.keys import Keys
from kvshare.watch.rules import rules
from kvshare.watch.watched import Watched

FOLDER = Path("/tmp/prometheus")
TOKEN = "controller.token"  # a file, because Prometheus shows its configuration
DATA = "/var/lib/kvshare"
KEPT = ("15d", "2GB")
SCRAPE_S = 10


def configuration(watched: Watched, keyed: bool = False) -> dict[str, Any]:
    """Return what is scraped, as plain data; each target's label ``node`` is its name in `kvshare status`.

    Args:
        keyed: whether the controller asks for the token in the file TOKEN.
    """
    jobs = {
        "server": {node.name: node.place for node in watched.servers},
        "controller": {"controller": f"{watched.host}:{watched.controller_port}"},
        "gateway": {"gateway": f"{watched.host}:{watched.gateway_port}"},
        "canary": {"canary": f"{watched.host}:{watched.canary_port}"},
    }
    authorization = {"authorization": {"credentials_file": TOKEN}} if keyed else {}
    return {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": ["rules.json"],
        "scrape_configs": [
            {
                "job_name": job,
                **(authorization if job == "controller" else {}),
                # What a canary says of a node is about that node, not about the canary.
                "honor_labels": job in ("canary", "gateway"),
                "static_configs": [
                    {"targets": [place], "labels": {"node": name}} for name, place in targets.items()
                ],
            }
            for job, targets in jobs.items()
        ],
    }


def become(watched: Watched, keys: Keys) -> NoReturn:
    """Write the configuration, the rules and the controller's token, and go on as Prometheus."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    (FOLDER / TOKEN).write_text(keys.controller or "")
    keyed = keys.controller is not None
    # JSON is YAML.
    (FOLDER / "prometheus.json").write_text(json.dumps(configuration(watched, keyed), indent=2))
    (FOLDER / "rules.json").write_text(json.dumps(rules(watched), indent=2))
    age, size = KEPT
    os.execvp(
        "prometheus",
        [
            "prometheus",
            f"--config.file={FOLDER / 'prometheus.json'}",
            f"--storage.tsdb.path={DATA}",
            f"--storage.tsdb.retention.time={age}",
            f"--storage.tsdb.retention.size={size}",
            f"--web.listen-address={watched.host}:{watched.port}",
        ],
    )
