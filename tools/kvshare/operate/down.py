"""Stop a stack."""

from __future__ import annotations

from collections.abc import Iterable

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.progress import step
from kvshare.site import compose, contexts


def stop(settings: Settings, names: Iterable[str]) -> None:
    """Stop and remove every container of the stack on these contexts; volumes and images stay.

    Raises:
        KvshareError: as ``read_engine`` does, when the other contexts have been served.
    """
    failed: list[KvshareError] = []
    for context in names:
        try:
            contexts.read_engine(context)
            with step(f"Stop the stack on context {context}"):
                compose.run(settings, context, "down", "--remove-orphans", "--timeout", "20")
        except KvshareError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise CouldNotCheckError(" ".join(error.message for error in failed))
