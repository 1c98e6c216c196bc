"""One line of figures a fault, and docs/reliability.md made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results import Result, Results, last
from kvshare.config.settings import CONTROLLER, MULTIPROCESS
from tests.scenarios.under_faults.traffic import Sent

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
HEADINGS = (
    *("fault", "passed", "injected", "requests", "failed", "wrong"),
    *("longest wait", "reuse back after", "also", "run"),
)
COLUMNS = f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}"
WITHOUT = "without"  # the fault of a line about a cure that was taken out, which the oracle has to see


@dataclass(frozen=True)
class Figures:
    """What one scenario saw; times in seconds, None where there is nothing to measure.

    ``longest_wait_s`` is the longest time to first token of any request that met the fault.
    """

    fault: str  # its folder
    variant: str
    injected: int
    requests: int
    failures: int
    wrong: int
    longest_wait_s: float | None = None
    recovery_s: float | None = None
    notes: dict[str, str] = field(default_factory=dict)
    passed: bool = True
    sharing: str = CONTROLLER

    @property
    def name(self) -> str:
        """What tells it apart from all others."""
        beside = "" if self.sharing == CONTROLLER else f", {self.sharing}"
        return f"{self.fault}: {self.variant}{beside}"

    @property
    def line(self) -> str:
        """The line that a scenario prints."""
        parts = [
            f"{self.injected} injected, {self.requests} requests, {self.failures} failed, {self.wrong} wrong",
            f"longest wait {_seconds(self.longest_wait_s)}, reuse back after {_seconds(self.recovery_s)}",
            *(f"{name} {value}" for name, value in self.notes.items()),
        ]
        return f"{self.fault}, {self.variant}: {', '.join(parts)}"


def of(
    folder: Path,
    variant: str,
    injected: int,
    sent: Iterable[Sent],
    recovery_s: float | None = None,
    notes: Mapping[str, str] | None = None,
) -> Figures:
    """Return the figures of a scenario's requests; ``notes`` are what this fault has beside them."""
    sent = list(sent)
    return Figures(
        fault=folder.name,
        variant=variant,
        injected=injected,
        requests=len(sent),
        failures=sum(one.error is not None for one in sent),
        wrong=sum(one.wrong is not None for one in sent),
        longest_wait_s=round(max((one.waited_s for one in sent), default=0.0), 2) if sent else None,
        recovery_s=None if recovery_s is None else round(recovery_s, 1),
        notes=dict(notes or {}),
    )


def render(results: Results) -> str:
    """Return docs/reliability.md."""
    on = last(results)
    ordered = sorted(results.values(), key=lambda one: one.part)
    rows = "\n".join(_row(one) for one in ordered if _is_of(one, CONTROLLER))
    beside = "\n".join([COLUMNS, *(_row(one) for one in ordered if _is_of(one, MULTIPROCESS))])
    if beside == COLUMNS:
        beside = "(not run yet)"
    seen = "\n".join(_seen(one) for one in ordered if one.found["fault"] == WITHOUT)
    return f"""# Reliability

Made by `make test-faults`: the long form of each scenario in `tests/scenarios/under_faults`, on two Docker
engines of one machine (`make rig`), real vLLM, LMCache, controller and NIXL on the CPU. Run last on
{on.date}: {on.hardware}, shared by all of it.

A line vouches for the commit that it names. What came after it has been through the short form of the same
scenarios, which `make test` runs.

Every answer was compared with one that was computed before the fault, by the distribution of each token. The
longest wait is the longest time to first token of a request that met the fault; a lookup may take
`LOOKUP_TIMEOUT_MS` (3 s here), then the prompt is recomputed. Reuse is back when a fresh prompt of one node
is served from that node's cache on the other; where a server was restarted, counted from its first answer.

{COLUMNS}
{rows}

What each scenario demands stands in its folder. That a rank pulls from the same rank (tensor parallelism)
is shown by the probe of the patch `same-rank` ([patches.md](patches.md)), with two ranks a node at the
controller.

## With SHARING=multiprocess

The same scenarios with cache servers beside vLLM (`make test-faults ARGS="--sharing multiprocess"`). A node
that is killed loses both; the controller is the coordinator.

{beside}

## What the oracle says without a cure

[`tests/scenarios/under_traffic`](../tests/scenarios/under_traffic) draws requests as users send them, and
holds each answer of the pair against that of a server which shares nothing. Here one cure at a time was taken
out of both servers, and the first thing that it said is the fault that the cure is for.

| taken out | seen | requests until then | it said | run |
| --- | --- | --- | --- | --- |
{seen}

`packed-kv`, `resumed-request` and `whole-graph` cure what is wrong on a GPU alone: [gpu.md](gpu.md). Draft
models, windows on every layer, and compressed KV on a CPU are refused before a server is healthy. Not drawn:
streams with `echo`, `n` and `logprobs`, which vLLM 0.32.0 itself may end with an error on a busy server.

## Remarks

- 2026-11-28, `load beyond memory` with cache servers: memory came to 1.053 times that after 5 minutes where
  steps of every number of tokens were not computed first; vLLM on a CPU keeps kernels for each.
- 2026-11-24, `load beyond memory`: with glibc's malloc memory came to 1.11 times that after 5 minutes; the
  CPU image has tcmalloc since.
- 2026-11-24, `lookup timeout`: in one of four long runs decode's engine ended during a lookup, after decode
  had been killed, moved to another address and back, beside other work on the machine; Docker started it
  again. Its log was not kept, and it was not seen in some 100 more lookups that timed out. A failed scenario
  shows every container's log now.
"""


def _is_of(result: Result, sharing: str) -> bool:
    one = Figures(**result.found)
    return one.fault != WITHOUT and one.sharing == sharing


def _row(result: Result) -> str:
    one, on = Figures(**result.found), result.on
    notes = ", ".join(f"{name} {value}" for name, value in one.notes.items()) or "–"
    cells = [
        f"[{one.fault.replace('_', ' ')}]({_folder(one.fault)}): {one.variant}",
        "yes" if one.passed else "**no**",
        one.injected,
        one.requests,
        one.failures,
        one.wrong,
        _seconds(one.longest_wait_s),
        _seconds(one.recovery_s),
        notes,
        f"{on.date}, {on.commit}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _seen(result: Result) -> str:
    one, on = Figures(**result.found), result.on
    said = one.notes["said"].replace("|", "\\|")
    cells = [one.variant, "yes" if one.passed else "**no**", one.requests, said, f"{on.date}, {on.commit}"]
    return f"| {' | '.join(map(str, cells))} |"


def _folder(fault: str) -> str:
    """Where a scenario lies, as a page in docs links it; the oracle lies beside the faults."""
    scenarios = "../tests/scenarios"
    return f"{scenarios}/{fault}" if fault == "under_traffic" else f"{scenarios}/under_faults/{fault}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:g} s"
