"""docs/watching.md: how to watch a stack, every alarm as the rules have it, and by what it was raised."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.results import Result, read
from kvshare.watch.rules import alerts
from kvshare.watch.watched import Watched
from tests.scenarios.under_faults.figures import RESULTS
from tests.unit.test_watch import environment

PAGE = """# Watching

Made by `make generate`; the alarms are those of `tools/kvshare/watch/rules.py`.

    OBSERVE=5               # in .env: minutes between two canaries
    make image              # builds the image with Prometheus as well
    make up NODE=observe    # make up and make up NODE=prefill bring it along

`make top` shows what the servers do, live, and `make status ARGS="--html status.html"` writes it as a page;
neither needs what follows, two services more beside prefill:

- **Prometheus** (port 9090), Debian's own. What it scrapes and what is alarming is made at its start, from
  `x-kvshare`: `make up NODE=observe` after adding a node. It keeps 15 days, 2 GB at most, in the volume
  `metrics`. It notifies nobody itself: its alarms are at `/alerts` and `/api/v1/alerts`, and in Grafana. It
  asks nobody who calls, and the firewall rules let no other machine in: `ssh -L 9090:192.168.110.13:9090
  192.168.110.13`.
- **The canary** (9091). Every few minutes, for each decode node: a fresh prompt is computed on prefill;
  once the controller knows its chunks, decode is asked for the same and must take them from its peer,
  prefill must count a transfer, and the answer's log-probabilities must be those of prefill's own prefix
  cache, within the [tolerance](checks.md#tolerance). Then decode computes another prompt of that length,
  which tells what the pull was worth, and prefill the first prompt with one chunk changed, which tells
  whether wrong KV would have been seen. That is five requests of 522 tokens, longer where `P2P_MIN_TOKENS`
  asks for it. Other requests are counted as its own are: beside traffic a pull that brought too little may
  pass, a wrong answer does not. `make verify` proves more. `make canary` runs one now, without `OBSERVE` as
  well; exit code 0 if it is proven, 1 if not, 3 if it could not tell.

[grafana.json](grafana.json) is a dashboard: in Grafana, *Import*, and choose that Prometheus. Where prompt
tokens' KV came from has four names: *computed*; *own prefix cache*, vLLM's on the GPU; *own LMCache*, the
server's CPU memory; *peer*. vLLM counts the last two as one. The peer's share is what owners sent, their
mean speed times their seconds: near enough for a graph, and no ledger; that is `make verify`'s, by NIXL's own
count (KV-PEER-07). GB/s is by pair, as `make top` tells it too: each server counts the bytes that every
peer has written into it ([pulled-from](patches.md)); to whom it sent, neither LMCache nor NIXL counts.

## Alarms
{alarms}

N is the minutes of `OBSERVE`. No server tells how much memory its processes have: KvshareMemoryGrows
watches the controller alone.

## What was seen
`make test-faults ARGS="-k alarms"` breaks what each watches, on two real Docker engines of one machine, and
waits until Prometheus says that it fires. Its rules are those above, each minute and each hour of them three
seconds long; a canary counts as silent after 75 s (what is left of three turns of a minute: one that hangs is
over in 60).

{seen}

{never}`tests/scenarios/one_engine` raises KvshareDown, KvshareWorkerLost, KvshareAnswersWrong and
KvshareChecksumsDiffer in `make test` too: it stops the controller, turns sharing off, corrupts values and
spoils chunks. promtool raises each alarm on made-up series, in its own time, one thing broken at a time,
and no other may fire (`tests/images/test_observe.py`). That a real stack has every series that rules and
panels ask for is tested against what one said.
"""
N = 1000  # so many minutes between canaries that no alarm is as long for another reason


def page() -> str:
    """The whole page."""
    watched = Watched.of(environment(EVERY_MINUTES=str(N)))
    rows = [
        f"| {alert.name} | {_plain(alert.says)} | {_minutes(alert.minutes)} | {_plain(alert.do)} |"
        for alert in alerts(watched)
    ]
    alarms = "\n".join(["| alarm | says | after | then |", "|---|---|---|---|", *rows])
    seen = {alarm: result for result in read(RESULTS).values() for alarm in _fired(result)}
    unseen = [alert.name for alert in alerts(watched) if alert.name not in seen]
    never = f"Not seen so: {', '.join(unseen)}.\n\n" if unseen else ""
    return PAGE.format(alarms=alarms, seen=_seen(seen), never=never)


def _fired(result: Result) -> list[str]:
    """The alarms that a fault of the scenario was seen to raise."""
    one = result.found
    return one["notes"]["fired"].split(", ") if one["fault"] == "alarms" and one["passed"] else []


def _seen(by_alarm: Mapping[str, Result]) -> str:
    rows = [
        f"| {alarm} | {result.found['variant']} | {result.on.date}, {result.on.commit} |"
        for alarm, result in sorted(by_alarm.items())
    ]
    return "\n".join(["| alarm | fired by | run |", "|---|---|---|", *rows])


def _minutes(minutes: float) -> str:
    if minutes >= N:
        return f"{minutes / N:g} N min"
    return f"{minutes:g} min" if minutes else "at once"


def _plain(text: str) -> str:
    """Return a template with its variables as plain words."""
    return re.sub(r"\{\{ \$(?:labels\.)?(\w+)[^}]*\}\}", lambda found: found[1].upper(), text)
