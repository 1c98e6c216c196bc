"""A diagnosis for people (table, short); for programs (json) it is a document."""

from functools import partial
from typing import TextIO

from rich.console import Console

from kvshare.checking.rendering import plain_console, print_verdict, table, write_json
from kvshare.doctor.document import report
from kvshare.doctor.evidence import Evidence
from kvshare.doctor.judgement import Diagnosis
from kvshare.doctor.meaning import meanings


def render(diagnosis: Diagnosis, form: str, stream: TextIO) -> None:
    """Write the diagnosis to ``stream`` as ``table``, ``short`` or ``json``; colour only on a terminal."""
    if form == "json":
        write_json(report(diagnosis), stream)
        return
    print_verdict(plain_console(stream), diagnosis, form, partial(_print_links, diagnosis.evidence))


def _print_links(evidence: Evidence, console: Console) -> None:
    meant = meanings(evidence)
    if not meant:
        return
    numbers = ("GB/s", "µs", "KiB/token", "longest prompt", "in the timeout", "pays from")
    shown = table(("KV's way",), numbers)
    for name, (link, m) in meant.items():
        shown.add_row(
            name,
            f"{(link.bytes_per_s or 0) / 1e9:.2f}",
            f"{(link.latency_s or 0) * 1e6:.0f}",
            f"{m.token_bytes / 1024:g}",
            f"{m.longest_s:.2f} s",
            f"{m.fits_tokens} tokens",
            "never" if m.break_even is None else f"{m.break_even} tokens",
        )
    console.print(shown)
    console.print()
