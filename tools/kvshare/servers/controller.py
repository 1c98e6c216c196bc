"""LMCache's controller: the workers that it lists, and what it knows to be at one of them."""

import json
import time
from collections.abc import Collection, Sequence

from kvshare.servers import metrics
from kvshare.servers.http import Http, RequestFailedError
from kvshare.servers.prompts import Prompt
from kvshare.servers.readings import Admission, ControllerProbe, Mark, PullSample, Reading, Told, Worker
from kvshare.servers.wait import poll

TOLD = Told(
    transfers="lmcache:p2p_time_to_transfer_count",
    hits="lmcache:num_hit_tokens",
    logged=("P2P transfer finished", "Retrieved"),
    mover="prefill",
    wire="agent_tx_bytes_total",
)
QUIET_S = 2.0  # LMCache sends what it stored within a second


class Guarded(Http):
    """What asks for the cluster's key: the controller, or what stands in its place."""

    @property
    def refusal(self) -> str:
        """Why it answers 401, and what to do."""
        found = "refuses" if self._key else "asks for"
        return (
            f"{found} the cluster's key: this checkout, or CLUSTER_KEY_FILE in .env, must have the one that "
            "it was started with; after a change, down and up"
        )


class ControllerClient:
    """The controller, to be asked about the keys of one instance, the owner of KV with its ranks.

    Args:
        token: what its HTTP asks for where the cluster has a key.
    """

    unheard = "the controller did not hear of what prefill has just computed."

    def __init__(
        self, base: str, owner: str, chunk_size: int, ranks: int = 1, token: str | None = None
    ) -> None:
        self.http = Guarded(base, token)
        self.owner, self.chunk_size, self.ranks = owner, chunk_size, ranks

    def await_workers(self, instances: Collection[str], wait_s: float) -> ControllerProbe:
        """Return what it lists as soon as all ranks of these are there, or what it lists at the deadline."""
        wanted = {(instance, rank) for instance in instances for rank in range(self.ranks)}
        return poll(
            self.probe,
            lambda probe: probe.answers and wanted <= {(w.instance, w.rank) for w in probe.workers},
            wait_s,
        )

    def probe(self) -> ControllerProbe:
        """Return whether it answers, and the workers that it lists."""
        try:
            listed = json.loads(self.http.get("/controller/workers"))["workers"]
            workers = tuple(
                Worker(
                    w["instance_id"], w.get("peer_init_url"), int(w["key_count"]), int(w.get("worker_id", 0))
                )
                for w in listed
            )
        except RequestFailedError as error:
            return ControllerProbe(answers=False, error=str(error))
        except (ValueError, LookupError, TypeError):
            return ControllerProbe(
                answers=False, error=f"{self.http.base}/controller/workers lists no workers"
            )
        return ControllerProbe(answers=True, workers=workers)

    def keys(self) -> tuple[int, ...]:
        """Return the number of keys that it knows at each rank of the owner; 0 if it does not say."""
        counted = {w.rank: w.key_count for w in self.probe().workers if w.instance == self.owner}
        return tuple(counted.get(rank, 0) for rank in range(self.ranks))

    def mark(self) -> Mark:
        """Return how far it is, for a later ``await_admission``."""
        return Mark(self.keys(), self._messages())

    def pull_sample(self) -> PullSample | None:
        """Return the state of its PULL socket, or None if it does not show it."""
        try:
            return metrics.pull_sample(metrics.parse(self.http.get("/metrics", timeout=10.0)))
        except (RequestFailedError, ValueError):
            return None

    def await_admission(
        self, prompts: Sequence[Prompt], before: Mark, deadline_s: float, number: int = 0
    ) -> Admission:
        """Wait until it knows the prompts' chunks at the owner; ``number`` is what to call them.

        A full cache evicts as many keys as it admits, and the count stands still: then it has heard of the
        prompts once the messages that came since ``before`` have ended.
        """
        start = time.monotonic()
        chunks = sum(len(prompt) // self.chunk_size for prompt in prompts)
        heard, since = before.messages, start

        def admitted() -> tuple[str, tuple[int, ...]]:
            nonlocal heard, since
            new = tuple(now - then for now, then in zip(self.keys(), before.keys, strict=True))
            if min(new) >= chunks:
                return "key count", new
            if (messages := self._messages()) != heard:
                heard, since = messages, time.monotonic()
            ended = heard > before.messages and time.monotonic() - since >= QUIET_S
            return "messages" if ended else "", new

        how, new = poll(admitted, lambda seen: bool(seen[0]), deadline_s)
        return Admission(number, self.ranks * chunks, sum(new), time.monotonic() - start, how, new)

    def pulled(self) -> dict[str, float] | None:
        """Return None: decode tells it, and nobody asks."""
        return None

    def told(self, owner: Reading, puller: Reading, pulls: int, tokens: int) -> bool:
        """Whether LMCache has exported what decode pulled, by how prefill's and decode's counters rose.

        Each rank transfers and copies its own share of a pull, and exports its counters in its own time.
        """
        shares = self.ranks * pulls
        return (
            owner.counters.transfers >= shares
            and puller.copies >= shares
            and puller.counters.hit_tokens >= tokens
        )

    def _messages(self) -> float:
        """Return how many messages of workers it has read; 0 if it does not say."""
        sample = self.pull_sample()
        return 0.0 if sample is None else sample.messages
