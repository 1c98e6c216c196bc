"""`kvshare bench` where no container engine runs: its client, counters, fits and files on plain processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import ROOT
from benchmarks.gpu.chain import uncoloured
from kvshare.bench import gather, outputs, run
from kvshare.bench.observed import Observed
from kvshare.bench.results import Document, Link
from kvshare.bench.spec import BenchSpec
from kvshare.config import threshold
from kvshare.site.native import Native
from kvshare.stack.members import Controller, Server, Stack
from kvshare_engine import link as engine_link


class Processes(gather.Containers):
    """The stack's plain processes, to be asked what containers are."""

    def __init__(self, stack: Stack, native: Native) -> None:
        self.stack = stack
        self._processes = native.processes
        self._sizes = {name: process.log.stat().st_size for name, process in native.processes.items()}

    def ask(self, member: Controller | Server, *command: str) -> str | None:
        program = sys.executable if command[0] == "python" else command[0]
        environment = dict(self._processes[member.name].environment)
        done = subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def image_id(self, member: Controller | Server) -> str:  # noqa: ARG002
        return ""

    def log(self, member: Controller | Server) -> str:
        raw = self._processes[member.name].log.read_bytes()[self._sizes[member.name] :]
        return uncoloured(raw.decode(errors="replace"))

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        return {name: json.loads(p.fingerprint.read_text()) for name, p in self._processes.items()}


def bench(native: Native, stack: Stack, options: run.Options, folder: Path) -> Document:
    """Measure, and write what `kvshare bench` writes but for the page; return its document."""
    started, begun = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    processes = Processes(stack, native)
    prints = processes.fingerprints()
    running = threshold.of_server(prints["decode"].get("lmcache", {}))
    spec = run.make_spec(stack, prints["prefill"], options, running)
    lanes = native.processes["decode"].environment.get("KVSHARE_LANES", "")
    link = measure_link(stack, {**prints["prefill"]["ucx"], "KVSHARE_LANES": lanes})
    architecture = gather.architecture(processes, prints["decode"])
    kv_bytes = None if architecture is None else architecture.kv_bytes_per_token
    fingerprint = gather.run_fingerprint(processes, prints, native.settings)
    observed = observe(spec)
    ended = run.COMPLETE if observed.closing is not None else "the client ended early"
    seconds, moments = time.monotonic() - begun, gather.moments(processes)
    facts = run.Facts(started, ended, seconds, kv_bytes, moments, link, fingerprint)
    document = run.make_document(observed, spec, options.goodput, facts)
    outputs.write(folder, document, observed)
    return document


def observe(spec: BenchSpec) -> Observed:
    """Run the client's own command; return all that it said."""
    command = [sys.executable, "-m", "kvshare", "bench-client", "--spec", json.dumps(asdict(spec))]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tools'}:{':'.join(sys.path)}"}
    seen = Observed()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        for line in client.stdout:
            seen = seen.add(gather._line(line))
    return seen


def measure_link(stack: Stack, ucx: Mapping[str, str]) -> Link:
    """Measure with the engine's own probe, with the UCX settings that the servers run with."""
    with patch.dict(os.environ, ucx), engine_link.serving() as ports:
        found = engine_link.measure(stack.decode.host, ports)
    if not found.bytes_per_s:
        return Link(None, "", found.error or "the probe gave no figure")
    return Link(found.bytes_per_s / 1e9, f"ucx_perftest, {ucx.get('UCX_TLS')}")
