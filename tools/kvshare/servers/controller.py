"""LMCache's controller: the workers that it lists, and what it knows to be at one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence

from kvshare.servers import metrics
from kvshare.servers.http import Http, RequestFailedError
from kvshare.servers.prompts import DEFAULT_CHUNK_SIZE, Prompt, reusable
from kvshare.servers.readings import Admission, ControllerProbe, PullSample, Worker
from kvshare.servers.wait import poll


class ControllerClient:
    """The controller, to be asked about the keys of one instance, the owner of KV."""

    def __init__(self, base: str, owner: str, chunk_size: int) -> None:
        self.http, self.owner, self.chunk_size = Http(base), owner, chunk_size

    def await_workers(self, instances: Collection[str], wait_s: float) -> ControllerProbe:
        """Return what it lists as soon as these instances are among it, or what it lists at the deadline."""
        return poll(
            self.probe,
            lambda probe: probe.answers and set(instances) <= {w.instance for w in probe.workers},
            wait_s,
        )

    def probe(self) -> ControllerProbe:
        """Return whether it answers, and the workers that it lists."""
        try:
            listed = json.loads(self.http.get("/controller/workers"))["workers"]
            workers = tuple(
                Worker(w["instance_id"], w.get("peer_init_url"), int(w["key_count"])) for w in listed
            )
        except RequestFailedError as error:
            return ControllerProbe(answers=False, error=str(error))
        except (ValueError, LookupError, TypeError):
            return ControllerProbe(
                answers=False, error=f"{self.http.base}/controller/workers lists no workers"
            )
        return ControllerProbe(answers=True, workers=workers)

    def keys(self) -> int:
        """Return the number of keys that it knows at the owner; 0 if it does not say."""
        return sum(self._key_counts())

    def pull_sample(self) -> PullSample | None:
        """Return the state of its PULL socket, or None if it does not show it."""
        try:
            return metrics.pull_sample(metrics.parse(self.http.get("/metrics", timeout=10.0)))
        except (RequestFailedError, ValueError):
            return None

    def await_admission(
        self, prompts: Sequence[Prompt], keys_before: int, deadline_s: float, number: int = 0
    ) -> Admission:
        """Wait until it knows the prompts' chunks at the owner; ``number`` is what to call them.

        Args:
            keys_before: the owner's keys from before the prompts were computed.
        """
        start = time.monotonic()
        workers = max(len(self._key_counts()), 1)
        expected = workers * sum(len(prompt) // self.chunk_size for prompt in prompts)
        how, new = poll(
            lambda: self._admitted(prompts, self.keys() - keys_before, expected),
            lambda seen: bool(seen[0]),
            deadline_s,
        )
        return Admission(number, expected, new, time.monotonic() - start, how)

    def _admitted(self, prompts: Sequence[Prompt], new: int, expected: int) -> tuple[str, int]:
        """Return how it knows the prompts' chunks, '' if not, and how the owner's keys grew.

        A full cache evicts as many keys as it admits, and the count stands still: then it is asked for the
        prompts themselves. It only knows the default chunk size there.
        """
        if new >= expected:
            return "key count", new
        if self.chunk_size == DEFAULT_CHUNK_SIZE and all(
            self._found(prompt) >= reusable(len(prompt), self.chunk_size) for prompt in prompts
        ):
            return "lookup", new
        return "", new

    def _key_counts(self) -> tuple[int, ...]:
        return tuple(w.key_count for w in self.probe().workers if w.instance == self.owner)

    def _found(self, prompt: Prompt) -> int:
        """Return how many leading tokens of a prompt it finds at the owner; 0 if it does not say."""
        try:
            layout = json.loads(self.http.post("/lookup", {"tokens": list(prompt)}, timeout=5.0))[
                "layout_info"
            ]
            return int(layout.get(self.owner, ("", 0))[1])
        except (RequestFailedError, ValueError, LookupError):
            return 0
