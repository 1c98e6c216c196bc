"""One vLLM server with LMCache inside: whether it is healthy, what it serves, and what it has counted."""

import json
from dataclasses import replace

from prometheus_client.samples import Sample

from kvshare.servers import metrics
from kvshare.servers.http import Http, RefusedKeyError, RequestFailedError
from kvshare.servers.multiprocess import CacheClient
from kvshare.servers.readings import Held, Memory, Reading, ServerProbe, Wire
from kvshare.servers.wait import poll

COUNTED_DEADLINE_S = 5.0
FLUSH_S = 3.0  # LMCache exports its counters every 2 s (configs/lmcache.yaml)
WIRE_DEADLINE_S = 5.0  # NIXL exports what it counts several times a second


class ServerClient:
    """A server to be asked; for one thread at a time.

    Args:
        cache: its cache server, whose counts are taken for its own; None where LMCache is within it.
    """

    def __init__(self, base: str, api_key: str | None = None, cache: CacheClient | None = None) -> None:
        self.http, self.cache = Http(base, api_key), cache
        self._refused = False

    def await_healthy(self, wait_s: float) -> ServerProbe:
        """Return what it serves as soon as it is healthy, or why it is not; waiting makes no key right."""
        return poll(self._probe, lambda probe: probe.healthy or self._refused, wait_s)

    def read(self) -> Reading | None:
        """Return its counters, or None if it does not tell them."""
        samples = self._samples()
        return metrics.reading(samples) if samples else None

    def held(self) -> Held | None:
        """Return what it holds for requests, or None if it does not tell."""
        samples = self._samples()
        held = metrics.held(samples) if samples else None
        if held is None or self.cache is None:
            return held
        probe = self.cache.probe()
        return replace(held, pinned=float(probe.locked)) if probe.answers else None

    def object_bytes(self) -> float | None:
        """Return the bytes of one of LMCache's objects, or None if it holds none or does not tell."""
        if self.cache is None:
            return metrics.object_bytes(self._samples())
        probe = self.cache.probe()
        return probe.used_bytes / probe.objects if probe.objects else None

    def memory(self) -> Memory | None:
        """Return the engine's own KV memory, or None if it does not tell."""
        return metrics.memory(self._samples())

    def await_counted(self, since: Reading | None, tokens: int, requests: int = 1) -> Reading | None:
        """Return how its counters rose since, once it has counted that many prompt tokens and requests.

        None, or sources of None, where it does not tell where tokens came from.
        """
        if since is None or since.sources is None:
            return None
        return poll(
            lambda: None if (now := self.read()) is None else now - since,
            lambda rise: (
                rise is None
                or rise.sources is None
                or (rise.sources.total >= tokens and rise.engine.requests >= requests)
            ),
            COUNTED_DEADLINE_S,
        )

    def _samples(self) -> tuple[Sample, ...]:
        try:
            own = metrics.parse(self.http.get("/metrics", timeout=10.0))
        except (RequestFailedError, ValueError):
            return ()
        return own + self.cache.samples() if self.cache else own

    def _probe(self) -> ServerProbe:
        try:
            self.http.get("/health")
            card, *others = json.loads(self.http.get("/v1/models"))["data"]
            adapters = tuple(str(other["id"]) for other in others if other.get("parent"))
            return ServerProbe(True, None, str(card["id"]), card.get("max_model_len"), adapters)
        except RequestFailedError as error:
            self._refused = isinstance(error, RefusedKeyError)
            return ServerProbe(False, str(error))
        except (ValueError, LookupError):
            return ServerProbe(False, f"{self.http.base}/v1/models lists no model")


def read_wire(http: Http) -> Wire | None:
    """Return what NIXL has counted at its own port, or None if nobody answers there."""
    try:
        return metrics.wire(metrics.parse(http.get("/metrics")))
    except (RequestFailedError, ValueError):
        return None


def await_wire(http: Http, since: Wire | None, due: float) -> Wire | None:
    """Return how NIXL's counters rose since, once they have risen by ``due`` bytes, or for a deadline."""
    if since is None:
        return None
    return poll(
        lambda: None if (now := read_wire(http)) is None else now - since,
        lambda rise: rise is None or rise.bytes >= due,
        WIRE_DEADLINE_S,
    )
