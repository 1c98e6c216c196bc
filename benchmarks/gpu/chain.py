"""The whole chain on one GPU: three plain processes (kvshare.site.native), kvshare's own legs and checks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guard.__main__ import write_record
from guard.apply import commit, plan
from guard.series import load_all

from benchmarks import ROOT
from benchmarks.gpu import PACKED_KV
from kvshare.config.settings import load_settings
from kvshare.contract import Fingerprint
from kvshare.records import dumps, loads
from kvshare.site.engines import _ANSI, Engines
from kvshare.site.native import Native
from kvshare.stack.members import Stack, parse_stack
from kvshare.verify import checks, ledger
from kvshare.verify.evidence import LEGS, Container, EngineProbe, Evidence, Spec, Traffic
from kvshare.verify.judgement import Judgement, judge
from tests.patches import upstream

LEGS_TIMEOUT_S = 400


class Processes(Engines):
    """A stack's containers, where they are plain processes: their state, fingerprints and logs."""

    def __init__(self, stack: Stack, native: Native) -> None:
        super().__init__(stack)
        self._native = native
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> Processes:
        self._sizes = {name: p.log.stat().st_size for name, p in self._native.processes.items()}
        return self

    def probes(self) -> tuple[EngineProbe, ...]:
        return (EngineProbe("none: plain processes"),)

    def containers(self) -> tuple[Container, ...]:
        return tuple(
            Container(
                service=service,
                name=service,
                state="running" if process.ended() is None else "exited",
                health="healthy" if process.is_healthy() else "unhealthy",
                exit_code=process.ended() or 0,
                fingerprint=loads(Fingerprint, process.fingerprint.read_text(), ignore_unknown=True),
            )
            for service, process in self._native.processes.items()
        )

    def _log(self, service: str, since_connection: bool) -> str | None:
        raw = self._native.processes[service].log.read_bytes()
        text = raw[self._sizes[service] if since_connection else 0 :].decode(errors="replace")
        return uncoloured(text)


def uncoloured(text: str) -> str:
    """The text without the escape sequences that colour LMCache's log."""
    return _ANSI.sub("", text)


def patch_packages(device: str, packed: bool, record: Path) -> None:
    """Put kvshare's patches into the installed packages, ``packed-kv`` only if asked, and record which."""
    every = [series if packed else series.without("packed-kv") for series in load_all()]
    if device == "cuda" and not packed:
        upstream.installed(PACKED_KV).write_text(upstream.original(PACKED_KV) or "")
    changes = plan(every, device)
    commit(changes)
    write_record(record, every, changes)


@contextmanager
def serving(device: str, packed: bool, folder: Path) -> Iterator[tuple[Native, Stack]]:
    """Serve with the patches but ``packed-kv``, or with all of them, while the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "patches.json"
    patch_packages(device, packed, record)
    with Native(load_settings(ROOT), folder, record) as native:
        native.start()
        yield native, parse_stack([native.config], native.settings)


def verify(native: Native, stack: Stack, prompts: int, tokens: int, save: Path) -> Judgement:
    """Do what `kvshare verify` does, and keep what was seen for `kvshare verify --from-evidence`."""
    with Processes(stack, native) as processes:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        traffic = send_legs(make_spec(stack, prompts, tokens))
        evidence = Evidence(
            started, stack, processes.probes(), processes.containers(), processes.logs(), traffic
        )
    save.write_text(dumps(evidence) + "\n")
    return judge(evidence, checks.select((), ()))


def make_spec(stack: Stack, prompts: int, tokens: int) -> Spec:
    return Spec(
        prefill=stack.prefill.url,
        decode=stack.decode.url,
        controller=stack.controller.url,
        prefill_instance=stack.prefill.instance,
        decode_instance=stack.decode.instance,
        prompts=prompts,
        prompt_tokens=tokens,
        chunk_size=256,
        seed=random.SystemRandom().randrange(2**31),
    )


def send_legs(spec: Spec) -> Traffic:
    """Send a verification's traffic as the client container does: with the tool's own command."""
    command = [sys.executable, "-m", "kvshare", "legs", "--spec", json.dumps(asdict(spec))]
    environment = {"PYTHONPATH": f"{ROOT / 'tools'}:{':'.join(sys.path)}"}
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=LEGS_TIMEOUT_S, check=True
    )
    return loads(Traffic, result.stdout)


def summary(judged: Judgement) -> dict[str, Any]:
    """What a judgement comes to, as the document tells it."""
    traffic = judged.evidence.traffic
    decode = judged.evidence.container("decode").fingerprint
    assert traffic is not None, "the legs were sent"
    assert decode is not None, "the processes told their configuration"
    return {
        "max_local_cpu_size": decode.lmcache["max_local_cpu_size"],
        "proven": judged.proven,
        "sentence": judged.sentence,
        "prompts": traffic.spec.prompts,
        "prompt_tokens": traffic.spec.prompt_tokens,
        "failed": [result.check.id for result in judged.errors],
        "checks": {r.check.id: [r.result, r.detail or r.found] for r in judged.results},
        "ttft_median_ms": {leg: ledger.median_ttft_ms(traffic.legs, leg) for leg in LEGS},
    }
