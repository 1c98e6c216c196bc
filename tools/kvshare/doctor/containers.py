"""One-off containers of the engine image: each bounded in time, none of which outlives the tool."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

from kvshare.errors import CouldNotCheckError
from kvshare.site.attached import Attached, EngineError
from kvshare.site.base import answered, held
from kvshare.site.engine import Place, engine

RUN_TIMEOUT_S = 60.0
LABEL = "kvshare.doctor"


class OneOffs:
    """Runs containers of one image; what a run leaves behind is removed with ``remove_leftovers``."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._mark = f"{os.getpid()}"
        self._number = itertools.count(1)

    def run(
        self,
        context: str,
        place: Place,
        arguments: Sequence[str],
        stdin: str = "",
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> str:
        """Return what a container prints; CouldNotCheckError if it fails or is not done in time."""
        return answered(self._container(context, place, arguments), stdin, timeout_s)

    def hold(self, context: str, place: Place, arguments: Sequence[str]) -> AbstractContextManager[str]:
        """Run a container until the block ends; yield the first line that it prints.

        Raises:
            CouldNotCheckError: if it prints none in time.
        """
        return held(self._container(context, place, arguments))

    def remove_leftovers(self, contexts: Sequence[str]) -> None:
        """Remove whatever of this run's containers is still there."""
        for context in contexts:
            with suppress(CouldNotCheckError):
                for left in engine(context).labelled(f"{LABEL}={self._mark}"):
                    engine(context).remove(left)

    @contextmanager
    def _container(self, context: str, place: Place, arguments: Sequence[str]) -> Iterator[Attached]:
        name, label = f"kvshare-doctor-{self._mark}-{next(self._number)}", {LABEL: self._mark}
        try:
            with engine(context).once(self._image, arguments, place, name, label) as container:
                yield container
        except EngineError as error:
            raise CouldNotCheckError(error.reason) from None  # its context stands beside it
