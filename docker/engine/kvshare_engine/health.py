"""Health checks that look at what matters, not only at whether a port answers.

Only the standard library and pyzmq, both quick to import: this runs every few seconds beside the engine.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from kvshare_engine import cluster_key
from kvshare_engine.environment import Cache, Controller, Coordinator, Server

HTTP_TIMEOUT_S = 3.0
PULL_LOOP_TIMEOUT_S = 3.0
# Docker gives each container its client's proxy, which knows the way to the hub and none to these nodes.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
CACHES = ("prefill-cache", "decode-cache")
PULL_COUNT = "lmcache:cache_controller_pull_socket_message_count"
# The controller accepts JSON on its pull port; a batch without operations is decoded, counted and dropped.
EMPTY_BATCH = {
    "type": "BatchedKVOperationMsg",
    "instance_id": "kvshare-health",
    "worker_id": 0,
    "location": "",
    "operations": [],
}


class UnhealthyError(Exception):
    """One sentence that says what is wrong."""


def check_controller(controller: Controller) -> None:
    """The controller lists its workers, and its pull loop takes a message.

    HTTP answers 200 for a controller whose pull loop stands still, too.

    Raises:
        UnhealthyError: if either is not so.
    """
    list(registered_workers(controller))
    before = pull_count(controller)
    send_empty_batch(controller)
    deadline = time.monotonic() + PULL_LOOP_TIMEOUT_S
    while pull_count(controller) <= before:
        if time.monotonic() > deadline:
            raise UnhealthyError(
                f"the pull loop on port {controller.pull_port} takes no message; no key is admitted any more"
            )
        time.sleep(0.05)


def check_coordinator(coordinator: Coordinator) -> None:
    """It lists cache servers; UnhealthyError if it does not."""
    list(json.loads(ask(coordinator.url, "/instances"))["instances"])


def check_cache(cache: Cache, coordinator: Coordinator) -> None:
    """The cache server answers, and the coordinator has it on its list.

    Raises:
        UnhealthyError: if one is not so.
    """
    told = json.loads(ask(cache.url, "/status"))
    if not told["is_healthy"]:
        raise UnhealthyError(f"{cache.url}/status says that the cache server is not healthy")
    # It goes on calling itself registered when the coordinator is another one by now.
    if is_refused(f"{coordinator.url}/instances"):
        raise UnhealthyError(f"the coordinator at {coordinator.url} has another cluster key than {cache.url}")
    if told["p2p_state"] != "registered":
        raise UnhealthyError(f"the cache server at {cache.url} is {told['p2p_state']} with the coordinator")


def check_server(server: Server, keeper: Controller | Coordinator) -> None:
    """The engine answers and, where sharing is on, its LMCache is where others find it.

    Where a coordinator is the ``keeper`` of who is there, that is its cache server.

    Raises:
        UnhealthyError: if one is not so.
    """
    fetch(f"{server.url}/health")
    if not server.kv_transfer_config:
        return
    if isinstance(keeper, Controller):
        check_workers(server, keeper)
    elif server.cache is not None:
        check_cache(server.cache, keeper)


def check_workers(server: Server, controller: Controller) -> None:
    """The controller knows a server's LMCache workers, and all that they hold.

    Raises:
        UnhealthyError: if one is not so.
    """
    # One of its name may be registered still, from before it was started with another key.
    if cluster_key.is_turned_away(replies := f"{controller.host}:{controller.reply_port}"):
        raise UnhealthyError(f"the controller at {replies} has another cluster key than {server.instance}")
    mine = [w for w in registered_workers(controller) if w["instance_id"] == server.instance]
    if missing := sorted(set(range(server.ranks)) - {worker["worker_id"] for worker in mine}):
        ranks = f"rank {', '.join(map(str, missing))} of " if server.ranks > 1 else ""
        raise UnhealthyError(
            f"{ranks}{server.instance} is not registered with the controller at {controller.url}"
        )
    # A controller without the patch full-sync does not say.
    if not all(worker.get("synced", True) for worker in mine):
        raise UnhealthyError(f"{server.instance} is still telling the controller what it holds")


def registered_workers(controller: Controller) -> Iterator[dict[str, Any]]:
    yield from json.loads(ask(controller.url, "/controller/workers"))["workers"]


def pull_count(controller: Controller) -> float:
    for line in ask(controller.url, "/metrics").splitlines():
        if line.startswith(PULL_COUNT):
            return float(line.rsplit(" ", 1)[1])
    raise UnhealthyError(f"{controller.url}/metrics has no {PULL_COUNT}")


def send_empty_batch(controller: Controller) -> None:
    import zmq

    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    try:
        socket.setsockopt(zmq.LINGER, int(PULL_LOOP_TIMEOUT_S * 1000))
        cluster_key.let_in(socket)
        socket.connect(f"tcp://{controller.host}:{controller.pull_port}")
        socket.send_json(EMPTY_BATCH)
    finally:
        socket.close()
        context.term()


def is_refused(url: str) -> bool:
    """Whether who answers there over HTTP wants another cluster key than this container's."""
    try:
        fetch(url, cluster_key.headers())
    except UnhealthyError as error:
        return isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 401
    return False


def ask(url: str, path: str) -> str:
    """What the controller, the coordinator or a cache server answers to who has the cluster's key."""
    return fetch(f"{url}{path}", cluster_key.headers())


def fetch(url: str, headers: Mapping[str, str] = NO_HEADERS) -> str:
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with DIRECT.open(request, timeout=HTTP_TIMEOUT_S) as response:
            body: bytes = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise UnhealthyError(f"{url} does not answer: {error}") from error
    return body.decode()


def own_url(role: str) -> str:
    """Where what runs in this container answers to who has the cluster's key."""
    if role == "controller":
        return Controller.from_environment().url
    return Coordinator.from_environment().url if role == "coordinator" else Cache.from_environment().url


def run_ask(role: str, path: str) -> int:
    """Print what this container answers to a GET of that path; exit code 1 where it does not."""
    try:
        print(ask(own_url(role), path))
    except UnhealthyError as sentence:
        print(f"kvshare: {sentence}", file=sys.stderr)
        return 1
    return 0


def check(role: str) -> None:
    """UnhealthyError if what runs in a container of that role is not as it should be."""
    if role == "controller":
        check_controller(Controller.from_environment())
    elif role == "coordinator":
        check_coordinator(Coordinator.from_environment())
    elif role in CACHES:
        check_cache(Cache.from_environment(), Coordinator.from_environment())
    else:
        server = Server.from_environment()
        check_server(server, (Coordinator if server.cache else Controller).from_environment())


def run(role: str) -> int:
    """Exit code for Docker: 0 healthy, 1 not; the sentence ends up in `docker inspect`."""
    try:
        check(role)
    except UnhealthyError as sentence:
        print(sentence)
        return 1
    print("healthy")
    return 0
