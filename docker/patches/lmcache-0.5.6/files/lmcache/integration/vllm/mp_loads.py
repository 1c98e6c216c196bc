# SPDX-License-Identifier: Apache-2.0
"""Requests that end while their KV is loaded: vLLM hears of each once, at the end.

The worker says of such a request that it was loaded, and that it was saved,
since it has ended. vLLM frees its blocks at the first word, into which the
load still writes, and ends the engine at the second.
"""

# Standard
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Third Party
    from vllm.v1.outputs import KVConnectorOutput


class LoadsLeft:
    """What the scheduler's side knows of loads, to be told of each that begins."""

    def __init__(self) -> None:
        self._loading: set[str] = set()
        # Requests that have ended since, and whether each word of them was heard.
        self._left: dict[str, dict[str, bool]] = {}

    def begin(self, request_id: str) -> None:
        self._loading.add(request_id)

    def leave(self, request_id: str) -> None:
        """A request has ended, with its load or without."""
        if request_id in self._loading:
            self._left[request_id] = {"loaded": False, "saved": False}

    def settle(self, output: "KVConnectorOutput") -> None:
        """Take out of the workers' words what vLLM must not hear, or not yet."""
        loaded: Any = output.finished_recving or set()
        saved: Any = output.finished_sending or set()
        self._loading -= set(loaded)
        for request_id, heard in list(self._left.items()):
            heard["loaded"] |= request_id in loaded
            heard["saved"] |= request_id in saved
            loaded.discard(request_id)
            saved.discard(request_id)
            if all(heard.values()):
                del self._left[request_id]
                saved.add(request_id)
        output.finished_sending = saved or output.finished_sending
