"""The whole chain on one machine: plain processes (kvshare.site.native), kvshare's own legs and checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guard.__main__ import write_record
from guard.apply import commit, plan
from guard.series import load_all

from benchmarks import ROOT
from benchmarks.gpu import PACKED_KV
from kvshare.config.settings import load_settings
from kvshare.records import dumps
from kvshare.site.native import Native
from kvshare.stack.members import Stack
from kvshare.verify import checks, ledger, run
from kvshare.verify.evidence import LEGS
from kvshare.verify.judgement import Judgement, judge
from tests.patches import upstream


def patch_packages(device: str, packed: bool, record: Path) -> None:
    """Put kvshare's patches into the installed packages, ``packed-kv`` only if asked, and record which."""
    every = [series if packed else series.without("packed-kv") for series in load_all()]
    if device == "cuda" and not packed:
        upstream.installed(PACKED_KV).write_text(upstream.original(PACKED_KV) or "")
    changes = plan(every, device)
    commit(changes)
    write_record(record, every, changes)


@contextmanager
def serving(device: str, packed: bool, folder: Path) -> Iterator[Native]:
    """Serve with the patches but ``packed-kv``, or with all of them, while the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "patches.json"
    patch_packages(device, packed, record)
    with Native(load_settings(ROOT), folder, record) as native:
        native.start()
        yield native


def verify(
    native: Native, pair: Stack, prompts: int, tokens: int, save: Path, deep: bool = False
) -> Judgement:
    """Do with a pair what `kvshare verify` or `--deep` does, and keep what was seen for `--from-evidence`."""
    chosen = run.Options(prompts, tokens, deep=deep)
    evidence = run.gather(native.site(pair), chosen, traffic=True, narrate=print)
    save.write_text(dumps(evidence) + "\n")
    return judge(evidence, checks.select((), (), deep))


def summary(judged: Judgement) -> dict[str, Any]:
    """What a judgement comes to, as the document tells it."""
    traffic = judged.evidence.traffic
    decode = judged.evidence.container("decode").fingerprint
    assert traffic is not None, "the legs were sent"
    assert decode is not None, "the processes told their configuration"
    pressure = traffic.deep.pressure if traffic.deep else None
    return {
        "ranks": decode.ranks,
        "max_local_cpu_size": decode.lmcache["max_local_cpu_size"],
        "memory_tokens": pressure.memory_tokens if pressure else None,
        "proven": judged.proven,
        "sentence": judged.sentence,
        "prompts": traffic.spec.prompts,
        "prompt_tokens": traffic.spec.prompt_tokens,
        "failed": [result.check.id for result in judged.errors],
        "checks": {r.check.id: [r.result, r.detail or r.found] for r in judged.results},
        "ttft_median_ms": {leg: ledger.median_ttft_ms(traffic.legs, leg) for leg in LEGS},
    }
