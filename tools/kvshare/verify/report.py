"""A judgement for people (table, short); for programs (json) it is a document."""

from collections.abc import Sequence
from functools import partial
from typing import TextIO

from rich.console import Console
from rich.text import Text

from kvshare.checking.rendering import plain_console, print_verdict, table, write_json
from kvshare.verify import ledger
from kvshare.verify.document import document, first_pull_ms
from kvshare.verify.evidence import CONTROL, LEGS, PEER, REFERENCE, Traffic
from kvshare.verify.judgement import Judgement


def render(judgements: Sequence[Judgement], form: str, stream: TextIO) -> None:
    """Write the judgement of each decode node to ``stream`` as ``table``, ``short`` or ``json``.

    Colour only on a terminal. JSON is one report, or an object with one for each of several nodes.
    """
    if form == "json":
        write_json(document(judgements), stream)
        return
    console = plain_console(stream)
    for judgement in judgements:
        if len(judgements) > 1:
            node = judgement.evidence.stack.decode
            console.print(Text(f"=== {node.name} on {node.host} (context {node.context}) ===", "bold"))
        print_verdict(console, judgement, form, partial(_print_times, judgement.evidence.traffic))


def _print_times(traffic: Traffic | None, console: Console) -> None:
    if traffic is None:
        return
    cold = ledger.median_ttft_ms(traffic.legs, REFERENCE)
    shown = table(("time to first token", "on"), ("requests", "median ms", "vs cold"), gap=3)
    for name in LEGS:
        legs = ledger.counted(ledger.of(traffic.legs, name))
        median = ledger.median_ttft_ms(traffic.legs, name)
        if median is not None:
            ratio = f"{median / cold:.2f}" if cold else ""
            shown.add_row(_LEG_WORDS[name], legs[0].node, str(len(legs)), f"{median:.0f}", ratio)
    if shown.row_count:
        console.print(shown)
        if (first := first_pull_ms(traffic)) is not None:
            console.print(f"first pull of the pair, not counted: {first:.0f} ms")
        console.print(f"ledger: {ledger_sentence(traffic)}")
        console.print()


_LEG_WORDS = {
    "reference": "reference (cold)",
    "same split": "same split (own prefix cache)",
    "peer": "peer (pulled)",
    "control": "control (cold)",
}


def ledger_sentence(traffic: Traffic) -> str:
    """Return where the prompt tokens of the peer and control legs came from, in one line."""
    return "; ".join(
        f"{name} {s.total} tokens = {s.local_compute} computed + {s.local_cache_hit} own cache "
        f"+ {s.external_kv_transfer} from the peer"
        for name, s in (
            (name, ledger.total_sources(ledger.of(traffic.legs, name))) for name in (PEER, CONTROL)
        )
    )
