"""Where a machine's runs disagree whether a pull pays: each said which run it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.results import Results
from benchmarks.tables import table

HEADER = ("run", "computed by", "verdict")


@dataclass(frozen=True)
class Run:
    """One run's word: time to first token of a peer hit over computing, by prompt tokens."""

    name: str
    computed_by: str
    ratios: dict[int, float]
    verdict: str = "–"


def near_break_even(results: Results) -> str:
    """Return the page's section, a row a run and a column a length; empty where the runs agree."""
    runs = list(_runs(results))
    lengths = _disputed([ratio for run in runs for ratio in run.ratios.items()])
    if not lengths:
        return ""
    rows = []
    for run in runs:
        cells = [f"{run.ratios[tokens]:.2f}" if tokens in run.ratios else "–" for tokens in lengths]
        rows.append([run.name, run.computed_by, run.verdict, *cells])
    return f"""## Near the break-even, by run

The first token of a peer hit over that of computing: below 1 the pull pays. Each run measured for itself, and
at these lengths they disagree; at shorter ones no run's pull pays, at longer ones every run's does.

{table([*HEADER, *(f"{tokens:,} tokens" for tokens in lengths)], rows)}
"""


def _disputed(ratios: list[tuple[int, float]]) -> list[int]:
    """Every length from the shortest that paid in a run to the longest that did not in another."""
    shortest = min((tokens for tokens, ratio in ratios if ratio < 1), default=0)
    return sorted({tokens for tokens, _ in ratios if shortest <= tokens <= _longest_unpaid(ratios)})


def _longest_unpaid(ratios: list[tuple[int, float]]) -> int:
    return max((tokens for tokens, ratio in ratios if ratio >= 1), default=0)


def _runs(results: Results) -> Iterator[Run]:
    if "with" in results:
        found = results["with"].found
        median = found["ttft_median_ms"]
        ratios = {found["prompt_tokens"]: median["peer"] / median["reference"]}
        yield Run(f"`kvshare verify`, {found['prompts']} prompts", "prefill", ratios)
    if "with/ttft" in results:
        ratios = {row["tokens"]: row["peer_over_cold"] for row in results["with/ttft"].found}
        yield Run("time to first token", "prefill", ratios)
    if "with/bench" in results:
        found = results["with/bench"].found
        arms = {point["prompt_tokens"]: point["arms"] for point in found["points"]}
        ratios = {n: arm["peer"]["ttft_ms"] / arm["recompute"]["ttft_ms"] for n, arm in arms.items()}
        yield Run("`kvshare bench`", "decode", ratios, found["verdict"])
    if "with/never-slower" in results:
        found = results["with/never-slower"].found
        ratios = {point["tokens"]: point["ratio"] for point in found["before"]}
        yield Run("calibration of never slower", "decode", ratios, found["line"].rpartition("; ")[2])
