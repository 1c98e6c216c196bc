"""Stop a stack."""

from collections.abc import Iterable

from kvshare.config.settings import Settings
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.progress import step
from kvshare.site import compose
from kvshare.site.engine import engine


def stop(settings: Settings, names: Iterable[str]) -> None:
    """Stop and remove every container of the stack on these contexts; volumes and images stay.

    Raises:
        KvshareError: as ``Engine.supported`` does, when the other contexts have been served.
    """
    failed: list[KvshareError] = []
    for context in names:
        try:
            engine(context).supported()
            with step(f"Stop the stack on context {context}"):
                compose.run(settings, context, "down", "--remove-orphans", "--timeout", "20")
        except KvshareError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise CouldNotCheckError(" ".join(error.message for error in failed))
