"""The multiprocess mode's own servers for probes: a coordinator, and cache servers."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.error
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from probes import ProbeError, happens
from probes.controller import START_TIMEOUT_S, free_ports, get
from probes.forks import Fork

PAGE = 65536  # bytes
CHUNK = 256  # tokens


@contextlib.contextmanager
def running(port: int, health: str, key_file: str, *arguments: str) -> Iterator[Fork]:
    """A server that answers under its path of health, ended on leaving; raises ProbeError if it ends."""
    process = Fork(_serve, key_file, arguments)
    try:
        happens(lambda: _answers(port, health) or not process.process.is_alive(), START_TIMEOUT_S)
        if not process.process.is_alive():
            raise ProbeError(
                f"{arguments[0]} should answer {health}; its last lines:\n{process.last_lines()}"
            )
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def running_coordinator(port: int, key_file: str = "") -> Iterator[Fork]:
    arguments = ("coordinator", "--host=127.0.0.1", f"--port={port}")
    with running(port, "/healthz", key_file, *arguments) as process:
        yield process


@contextlib.contextmanager
def running_server(port: int, coordinator: int, key_file: str = "") -> Iterator[int]:
    """A cache server that is asked over HTTP on that port, and by engines on the one that it yields."""
    ports = free_ports()
    arguments = (
        "server",
        "--host=127.0.0.1",
        f"--port={ports.pull}",
        "--http-host=127.0.0.1",
        f"--http-port={port}",
        "--l1-size-gb=0.0625",
        f"--l1-align-bytes={PAGE}",
        "--no-l1-use-lazy",
        "--eviction-policy=LRU",
        f"--coordinator-url=http://127.0.0.1:{coordinator}",
        "--coordinator-advertise-ip=127.0.0.1",
        "--coordinator-heartbeat-interval=1",
        f"--p2p-advertise-url=127.0.0.1:{ports.reply}",
        "--supported-transfer-mode=auto",
        f"--shm-name=probe{port}",
    )
    with running(port, "/healthcheck", key_file, *arguments):
        yield ports.pull


@contextlib.contextmanager
def engine_of_a_server() -> Iterator[Any]:
    """What an engine speaks to a cache server of its own with."""
    import zmq
    from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

    ports = free_ports()
    with running_server(ports.http, ports.reply) as requests:
        client = RequestClientFactory.create(f"tcp://127.0.0.1:{requests}", context=zmq.Context.instance())
        yield client
        client.close()


def registration(instance: int) -> Any:
    """What a worker says of its KV."""
    from lmcache.v1.multiprocess.custom_types import RegisterEngineDrivenContextPayload

    return RegisterEngineDrivenContextPayload(
        instance_id=instance,
        model_name="probe",
        world_size=1,
        block_size=16,
        num_layers=1,
        hidden_dim_size=8,
        dtype_str="float32",
        use_mla=False,
        num_physical_slots=CHUNK,
    )


def ask(port: int, path: str, key_file: str = "") -> Any:
    """What a server answers to who has that cluster's key, or none."""
    with get(port, path, key_file) as answer:
        return json.load(answer)


def _serve(_: Connection, key_file: str, arguments: tuple[str, ...]) -> None:
    from lmcache.cli.main import main

    os.environ["KVSHARE_CLUSTER_KEY_FILE"] = key_file
    sys.argv = ["lmcache", *arguments]
    main()


def _answers(port: int, path: str) -> bool:
    try:
        get(port, path).close()
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False
    return True
