"""What no server counts, as metrics: how canaries ended, and whom the controller knows, and where."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from prometheus_client import CollectorRegistry, Gauge, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kvshare.config.keys import Keys
from kvshare.servers.controller import ControllerClient
from kvshare.servers.http import Http, RequestFailedError
from kvshare.servers.prompts import DEFAULT_CHUNK_SIZE
from kvshare.watch.watched import Node, Watched


class Neighbours(Collector):
    """The workers as the controller lists them, and the servers' versions; asked at each scrape."""

    def __init__(self, watched: Watched, keys: Keys) -> None:
        self.watched, self.keys = watched, keys

    def collect(self) -> Iterator[Metric]:
        """Yield what they say now; nothing of one that does not answer."""
        servers = self.watched.servers
        with ThreadPoolExecutor(len(servers)) as pool:  # who is silent is waited for once
            versions = [pool.submit(_version, server) for server in servers]
            yield from self._workers()
            yield self._versions([version.result() for version in versions])

    def _workers(self) -> Iterator[Metric]:
        of = ("node", "rank")
        known = GaugeMetricFamily("kvshare_worker_known", "1: listed under its own address", labels=of)
        keys = GaugeMetricFamily("kvshare_worker_keys", "Chunks known to be there", labels=of)
        token = self.keys.controller
        probe = ControllerClient(self.watched.controller, "", DEFAULT_CHUNK_SIZE, token=token).probe()
        listed = {(worker.instance, worker.rank): worker for worker in probe.workers}
        for server in self.watched.servers if probe.answers else ():
            for rank, url in enumerate(server.peer_init_urls):
                worker = listed.get((server.instance, rank))
                labels = (server.name, str(rank))
                known.add_metric(labels, float(worker is not None and worker.peer_init_url == url))
                if worker is not None:
                    keys.add_metric(labels, worker.key_count)
        yield from (known, keys)

    def _versions(self, told: Sequence[str | None]) -> Metric:
        family = GaugeMetricFamily("kvshare_version", "1: vLLM's version", labels=("node", "version"))
        for server, version in zip(self.watched.servers, told, strict=True):
            if version is not None:
                family.add_metric((server.name, version), 1.0)
        return family


class Canaries:
    """The gauges of how canaries ended, a node each."""

    def __init__(self, registry: CollectorRegistry, states: Iterable[str]) -> None:
        self.states = tuple(states)

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"kvshare_canary_{name}", about, ("node", *labels), registry=registry)

        self._state = gauge("state", "1: how the last one ended", "state")
        self._ended = gauge("ended_seconds", "When it ended, in seconds since 1970")
        self._ttft = gauge("ttft_seconds", "Its time to first token on decode", "kv")

    def ended(self, node: str, state: str, times: Mapping[str, float | None]) -> None:
        """Show how a node's canary ended; ``times`` to first token in seconds by where the KV came from."""
        for each in self.states:
            self._state.labels(node, each).set(each == state)
        for kv, seconds in times.items():
            if seconds is not None:
                self._ttft.labels(node, kv).set(seconds)
        self._ended.labels(node).set_to_current_time()


def serve(
    watched: Watched, states: Iterable[str], sing: Callable[[Node, Canaries], None], keys: Keys
) -> NoReturn:
    """Serve metrics on the canary's port for ever; let ``sing`` ask each decode node every few minutes."""
    registry = CollectorRegistry()
    canaries = Canaries(registry, states)
    registry.register(Neighbours(watched, keys))
    start_http_server(watched.canary_port, watched.host, registry)
    while True:
        began = time.monotonic()
        for node in watched.decodes:
            sing(node, canaries)
        time.sleep(max(0.0, watched.every_minutes * 60 - (time.monotonic() - began)))


def _version(server: Node) -> str | None:
    """Return the version that a server tells, or None."""
    try:
        return str(json.loads(Http(server.url).get("/version"))["version"])
    except (RequestFailedError, ValueError, LookupError, TypeError):
        return None
