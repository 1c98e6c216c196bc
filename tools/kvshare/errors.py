"""What the tool says when it cannot go on: one sentence and an exit code, never a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import click

PROVEN, FAILED, USAGE, COULD_NOT_CHECK, INTERRUPTED = 0, 1, 2, 3, 130


class KvshareError(click.ClickException):
    """The request cannot be met as it was made (exit code 2)."""

    exit_code = USAGE


class CouldNotCheckError(KvshareError):
    """The world did not let us look, e.g. a Docker engine that does not answer (exit code 3)."""

    exit_code = COULD_NOT_CHECK


class InterruptedByUserError(KvshareError):
    """Ctrl-C (exit code 130, as shells have it)."""

    exit_code = INTERRUPTED


class Group(click.Group):
    """A command group that ends on Ctrl-C with a sentence and exit code 130; click's own would be 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedByUserError("interrupted by Ctrl-C, nothing was concluded.") from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``, did you mean X?`` for the nearest of ``known``, whatever its case, else a list of them."""
    folded = {candidate.lower(): candidate for candidate in sorted(known)}
    near = get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f", did you mean {folded[near[0]]}?" if near else f", known are {', '.join(folded.values())}."
