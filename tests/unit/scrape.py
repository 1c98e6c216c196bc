"""What a real stack's members said on /metrics, as kept in `scrape/`: each series once, of buckets a few.

`pytest --update-golden tests/scenarios/one_engine/test_scenarios.py` takes it anew.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kvshare.servers import metrics

FOLDER = Path(__file__).parent / "scrape"
BUCKETS = ("2.5", "5.0", "+Inf")


def keep(member: str, text: str) -> None:
    """Keep what a member says, a line a series, without what tells only when or how often it was asked."""
    kept = [
        line
        for line in text.splitlines()
        if line.startswith(("vllm:", "lmcache:", "kvshare_", "process_"))
        and "_created" not in line
        and (sample := _sample(line)).labels.get("le", "+Inf") in BUCKETS
        and sample.name != "vllm:cache_config_info"
    ]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{member}.prom").write_text("\n".join(kept) + "\n")


def by_member() -> dict[str, tuple[Sample, ...]]:
    """Every series, by the member that says it."""
    return {path.stem: metrics.parse(path.read_text()) for path in sorted(FOLDER.glob("*.prom"))}


def _sample(line: str) -> Sample:
    (family,) = text_string_to_metric_families(line)
    return family.samples[0]
