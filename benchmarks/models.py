"""Which models share KV: a tiny one of each family, served by the real stack here and judged by verify.

.venv/bin/python -m benchmarks.models             every family, with an engine that runs and the CPU images
.venv/bin/python -m benchmarks.models Llama OPT   these; the others keep what was last seen
.venv/bin/python -m benchmarks.models --sharing multiprocess   those that are tried with cache servers
.venv/bin/python -m benchmarks.models --docs      sees nothing: docs/models.md from benchmarks/models.jsonl
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from benchmarks import ROOT
from benchmarks.families import BESIDE, REFUSED, SHARING
from benchmarks.machine import machine
from benchmarks.results import Result, Results, keep, last, read
from kvshare.config.settings import CONTROLLER, MULTIPROCESS, SHARINGS, Settings, load_settings
from kvshare.errors import KvshareError
from kvshare.operate import down, up
from kvshare.site import images
from kvshare.site.compose import read_stack
from kvshare.verify import checks, ledger, run, tolerance
from kvshare.verify.checks.answers import answer_limit
from kvshare.verify.evidence import CHANGED, JUDGED, PEER, SAME_SPLIT
from kvshare.verify.judgement import Judgement

RESULTS = ROOT / "benchmarks/models.jsonl"
GPU_RESULTS = ROOT / "benchmarks/gpu/results"
DOCUMENT = ROOT / "docs/models.md"
HERE = {
    **{"DEVICE": "cpu", "TRANSPORT": "tcp", "MODELS": "models"},
    **{"PREFILL_HOST": "127.0.0.1", "DECODE_HOST": "127.0.0.1"},
    **{"PREFILL_CONTEXT": "default", "DECODE_CONTEXT": "default"},
}
VOLUME = "kvshare_models"
START_S = 150.0
PAGE = """# Which models share KV

Made by `make generate` from benchmarks/models.jsonl, which `.venv/bin/python -m benchmarks.models` keeps.
Of each family a tiny model of random weights, in float32, is served by the real stack and judged by `make
verify`. Distances are in nats, between the log-probabilities of the right answer and of that from pulled
KV, and of one to the same prompt with one chunk changed: by that much a wrong chunk would be seen.

{on}

{shared}

Refused from their config.json before any weights load, by `make doctor`
([DOC-CONF-11](checks.md#doc-conf-11)), `make up` and the servers:

| family | why |
|---|---|
{refused}

With `SHARING=multiprocess` ([multiprocess.md](multiprocess.md)), layers of several kinds, and what the other
way refuses:

{beside}

On a GPU, in bfloat16 and with `KV_CACHE_DTYPE=fp8`, by `python -m benchmarks.gpu models`. "Cannot tell": what
was pulled made no difference, but a wrong chunk would move this random model's answer by less than ten
limits.

{on_gpu}
"""
GPU_PART = re.compile(r"models/(.+)/(\w+)")
NOTHING_SEEN = "(not seen yet)"
HEADER = "| family | judged | off by | limit | a wrong chunk |\n|---|---|---|---|---|"
GPU_HEADER = "| family | KV | judged | off by | limit | a wrong chunk |\n|---|---|---|---|---|---|"
SAID = re.compile(r"kvshare: expected a model whose KV can be shared and found \S+: ([^;]+);")


@dataclass(frozen=True)
class Seen:
    """How a family was judged; distances between answers in nats, None of one that was refused."""

    judgement: str
    off_by: float | None = None
    limit: float | None = None
    moved: float | None = None


def see(family: str, sharing: str) -> Seen:
    """Make a family's model, start the stack on it, and verify; the stack is down afterwards."""
    folder = f"/models/family-{re.sub(r'[^a-z0-9]+', '-', family.lower())}"
    settings = load_settings(ROOT, {**HERE, "MODEL": folder, "SHARING": sharing})
    _make(settings, family, folder, *(["--weights"] if sharing == MULTIPROCESS else []))
    stack = read_stack(settings)
    try:
        up.start(settings, stack, "all", START_S)
        (judged,) = run.verify(settings, run.Options(), checks.select((), ()), lambda _: None)
        return seen(judged)
    except KvshareError as error:
        return Seen(why(error.message))
    finally:
        down.stop(settings, stack.contexts)


def _make(settings: Settings, family: str, folder: str, *options: str) -> None:
    (image,) = images.names(settings, ["prefill"])
    command = ("docker", "run", "--rm", "--interactive", "--network=none", f"--volume={VOLUME}:/models")
    script = (ROOT / "benchmarks/families.py").read_text()
    run_it = (*command, "--entrypoint=python", image, "-", family, folder, *options)
    made = subprocess.run(run_it, input=script, text=True, capture_output=True)
    if made.returncode != 0:
        sys.exit(f"{family} was not made:\n{made.stderr}")


def seen(judged: Judgement) -> Seen:
    legs = judged.evidence.traffic.legs if judged.evidence.traffic else ()
    right = {leg.prompt: leg.output for leg in ledger.of(legs, SAME_SPLIT)}
    if not right:
        return Seen(judged.sentence)
    pulled = [tolerance.distance(right[leg.prompt], leg.output) for leg in ledger.of(legs, PEER)]
    moved = [tolerance.distance(right[JUDGED], leg.output) for leg in ledger.of(legs, CHANGED)]
    limit = answer_limit(judged.evidence).value
    return Seen(judged.sentence, max(pulled, default=None), limit, max(moved, default=None))


def why(said: str) -> str:
    """Return why a server refused a model, or else the last that it said."""
    found = SAID.search(said)
    return f"refused: {found.group(1)}" if found else said.strip().splitlines()[-1]


def part(family: str, sharing: str) -> str:
    """Return under what name it is kept what was seen of a family."""
    return family if sharing == CONTROLLER else f"{family}, {sharing}"


def document(results: Results) -> str:
    """Return docs/models.md."""
    on = last(results)
    found = {name: Seen(**result.found) for name, result in results.items()}
    return PAGE.format(
        on=f"On {on.date}, commit {on.commit}: {on.hardware}.",
        shared="\n".join([HEADER, *(_row(name, found[name]) for name in SHARING if name in found)]),
        refused="\n".join(
            f"| {name} | {found[name].judgement.partition(': ')[2]} |" for name in REFUSED if name in found
        ),
        beside=_beside(found),
        on_gpu=_on_gpus(),
    )


def _beside(found: Mapping[str, Seen]) -> str:
    """Return what cache servers have shown, as a table."""
    rows = [_row(family, found[name]) for family in BESIDE if (name := part(family, MULTIPROCESS)) in found]
    return "\n".join([HEADER, *rows]) if rows else NOTHING_SEEN


def _on_gpus() -> str:
    """Return what GPUs have shown, a table a machine."""
    tables = []
    for path in sorted(GPU_RESULTS.glob("*.jsonl")):
        models = {name: one for name, one in read(path).items() if GPU_PART.fullmatch(name)}
        if not models:
            continue
        on = last(models)
        rows = [_row(GPU_PART.sub(r"\1 | \2", name), Seen(**one.found)) for name, one in models.items()]
        tables += [f"{on.date}, commit {on.commit}: {on.hardware}.", "", GPU_HEADER, *rows, ""]
    return "\n".join(tables).strip() or NOTHING_SEEN


def _row(family: str, seen: Seen) -> str:
    figures = ("–" if one is None else f"{one:.2g}" for one in (seen.off_by, seen.limit, seen.moved))
    verdict = "cannot tell" if "cannot tell" in seen.judgement else seen.judgement.partition(":")[0]
    return f"| {family} | {verdict} | {' | '.join(figures)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", nargs="*", choices=[[], *SHARING, *REFUSED], help="default: every one")
    parser.add_argument("--docs", action="store_true", help="see nothing")
    parser.add_argument("--sharing", choices=SHARINGS, default=CONTROLLER)
    options = parser.parse_args()
    on = machine()
    every = BESIDE if options.sharing == MULTIPROCESS else (*SHARING, *REFUSED)
    for family in () if options.docs else options.family or every:
        found = see(family, options.sharing)
        print(f"{family}: {found}", flush=True)
        keep(RESULTS, [Result(part(family, options.sharing), on, asdict(found))])
    DOCUMENT.write_text(document(read(RESULTS)))


if __name__ == "__main__":
    main()
