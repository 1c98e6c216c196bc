"""One-off containers of the engine image: each bounded in time, none of which outlives the tool."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from kvshare.errors import CouldNotCheckError
from kvshare.site.attached import Attached, EngineError
from kvshare.site.engine import Place, engine

LABEL = "kvshare.doctor"


class OneOffs:
    """Runs containers of one image; what is left behind is removed with ``remove_leftovers``."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._mark = f"{os.getpid()}"
        self._number = itertools.count(1)

    def remove_leftovers(self, contexts: Sequence[str]) -> None:
        """Remove whatever of this run's containers is still there."""
        for context in contexts:
            with suppress(CouldNotCheckError):
                for left in engine(context).labelled(f"{LABEL}={self._mark}"):
                    engine(context).remove(left)

    @contextmanager
    def start(self, context: str, place: Place, *arguments: str) -> Iterator[Attached]:
        """Run a container for as long as the block lasts; CouldNotCheckError if it fails."""
        name, label = f"kvshare-doctor-{self._mark}-{next(self._number)}", {LABEL: self._mark}
        try:
            with engine(context).once(self._image, arguments, place, name, label) as container:
                yield container
        except EngineError as error:
            raise CouldNotCheckError(error.reason) from None  # its context stands beside it
