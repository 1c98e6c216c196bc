"""What more GPUs a node are worth: a machine's benches of one arrangement beside those of another."""

from __future__ import annotations

from typing import Any

from benchmarks.results import Results
from benchmarks.tables import table

ONE, TWO = "pair", "apart"
ARMS = ("peer", "recompute")


def beside_one_gpu(results: Results) -> str:
    """Return the page's section: two GPUs a node over one; empty where one run does not hold both."""
    if not _same_run(results, "bench"):
        return ""
    one, two = (_by_length(results[f"{part}/bench"].found) for part in (ONE, TWO))
    rows = []
    for tokens in sorted(one.keys() & two.keys()):
        figures = [_ms(arms[tokens], arm) for arms in (one, two) for arm in ARMS]
        rows.append(
            [tokens, *(f"{ms:.1f}" for ms in figures), *(f"{ratio:.2f}" for ratio in _ratios(figures))]
        )
    header = ["tokens", "one: peer", "one: recompute", "two: peer", "two: recompute"]
    header += ["one: peer/recompute", "two: peer/recompute", "peer: two/one", "recompute: two/one"]
    return f"""## Two GPUs a node beside one

The same benches by arrangement, of one run: prefill and decode on a GPU each, then tensor-parallel over two
each. Median milliseconds to the first token.

{table(header, rows)}
{_clients(results)}"""


def _same_run(results: Results, measure: str) -> bool:
    found = [results.get(f"{part}/{measure}") for part in (ONE, TWO)]
    return all(one is not None and "error" not in one.found for one in found) and (
        len({(one.on.date, one.on.commit) for one in found if one is not None}) == 1
    )


def _by_length(found: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {point["prompt_tokens"]: point["arms"] for point in found["points"]}


def _ms(arms: dict[str, Any], arm: str) -> float:
    return float(arms[arm]["ttft_ms"])


def _ratios(figures: list[float]) -> tuple[float, ...]:
    one_peer, one_recompute, two_peer, two_recompute = figures
    return (
        one_peer / one_recompute,
        two_peer / two_recompute,
        two_peer / one_peer,
        two_recompute / one_recompute,
    )


def _clients(results: Results) -> str:
    if not _same_run(results, "clients"):
        return ""
    told = [
        (words, results[f"{part}/clients"].found) for part, words in ((ONE, "one GPU"), (TWO, "two GPUs"))
    ]
    rows = []
    for words, found in told:
        (point,) = found["points"]
        rates = {arm: point["arms"][arm]["request_throughput"] for arm in ARMS}
        cells = [f"{rates[arm]:.1f}" for arm in ARMS]
        rows.append([words, *cells, f"{rates['peer'] / rates['recompute']:.2f}"])
    return "\n" + table(["16 clients, requests/s", *ARMS, "peer/recompute"], rows) + "\n"
