"""The link between two machines, measured as KV travels on it: UCX's own test with this stack's transports.

The owner of KV writes it into the memory of the peer that asks, so the near end puts, and on as many
connections at once as a pull uses between the two.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from kvshare.contract import Measurement, Ports
from kvshare_engine import reach, transport
from kvshare_engine.environment import refuse

PROGRAM = "ucx_perftest"
MESSAGE_BYTES = 32 * 1024 * 1024
START_TIMEOUT_S, END_TIMEOUT_S, POLL_S = 15.0, 5.0, 0.05
TEST_TIMEOUT_S = 50.0
AGAIN_S, RETRY_S = 10.0, 0.2  # the far end starts anew after each test, and refuses until it listens again
MIB, MICROSECOND = 1024 * 1024, 1e-6
# Message size in bytes, messages counted, messages before them.
LATENCY_TEST = ("ucp_put_lat", 8, 1000, 100)
SHORT_TEST = ("ucp_put_bw", MESSAGE_BYTES, 3, 1)
LONG_TEST = ("ucp_put_bw", MESSAGE_BYTES, 30, 1)
LONG_TEST_FROM = 500e6  # bytes a second; below, three messages take long enough to be exact


@contextmanager
def serving() -> Iterator[Ports]:
    """Wait for the near end: one server for latency; for bandwidth some that start again after each test.

    Its ports are free again when it is left.
    """
    latency, *bandwidth = _free_ports(1 + _lanes())
    ports = Ports(tuple(bandwidth), latency)
    again = (f"while {PROGRAM} -p {port}; do :; done" for port in ports.bandwidth)
    commands = [*(["sh", "-c", one] for one in again), [PROGRAM, "-p", str(ports.latency)]]
    with ExitStack() as servers:
        servers.callback(_wait_until_free, {*ports.bandwidth, ports.latency})
        for command in commands:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
            servers.callback(_kill, process)
        _wait_until_listening({*ports.bandwidth, ports.latency})
        yield ports


def measure(host: str, ports: Ports) -> Measurement:
    """Measure towards a far end; what the program says when it fails is the error."""
    try:
        latency = _test(host, ports.latency, *LATENCY_TEST)["overall_lat"]
        lanes = ports.bandwidth[: _lanes()]
        speed = _speed(host, lanes, *SHORT_TEST)
        if speed * MIB >= LONG_TEST_FROM:
            speed = _speed(host, lanes, *LONG_TEST, patience_s=AGAIN_S)
    except subprocess.TimeoutExpired:
        return Measurement(error=f"{PROGRAM} did not end in {TEST_TIMEOUT_S:.0f} s")
    except (subprocess.CalledProcessError, ValueError) as failure:
        said = getattr(failure, "stderr", "") or str(failure)
        return Measurement(error=" ".join(said.split())[-300:])
    return Measurement(speed * MIB, latency * MICROSECOND)


def _lanes() -> int:
    return transport.lanes_of(os.environ.get("KVSHARE_TRANSPORT") or "tcp")


def _speed(
    host: str, lanes: Sequence[int], test: str, size: int, count: int, before: int, patience_s: float = 0.0
) -> float:
    """The MiB a second of all connections together."""
    with ThreadPoolExecutor(len(lanes)) as threads:
        found = threads.map(lambda port: _test(host, port, test, size, count, before, patience_s), lanes)
        return sum(one["overall_bw"] for one in found)


def _test(
    host: str, port: int, test: str, size: int, count: int, before: int, patience_s: float = 0.0
) -> Mapping[str, float]:
    """One test's figures; one that fails is tried again for ``patience_s`` seconds."""
    command = [PROGRAM, host, "-p", str(port), "-t", test, "-s", str(size)]
    command += ["-n", str(count), "-w", str(before), "-f", "-v"]
    deadline = time.monotonic() + patience_s
    while True:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TEST_TIMEOUT_S)
        if result.returncode == 0:
            return figures(result.stdout)
        if time.monotonic() >= deadline:
            result.check_returncode()
        time.sleep(RETRY_S)


def figures(output: str) -> Mapping[str, float]:
    """The figures of a CSV report (``-f -v``): latencies in microseconds, speeds in MiB a second.

    Raises:
        ValueError: if the output is no such report.
    """
    lines = [line.split(",") for line in output.splitlines() if line.count(",") >= 5]
    if len(lines) < 2 or lines[0][0].strip() != "iterations":
        raise ValueError(f"{PROGRAM} printed no report")
    return dict(zip((name.strip() for name in lines[0]), map(float, lines[-1]), strict=False))


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the shell's child too
    process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports out of the range that UCX is given, from its end, so that the same firewall lets them through."""
    first, _, last = os.environ.get("UCX_TCP_PORT_RANGE", "").partition("-")
    wanted = range(int(last), int(first) - 1, -1) if first and last else [0] * count
    found: list[int] = []
    with contextlib.ExitStack() as sockets:
        for port in wanted:
            with contextlib.suppress(OSError):
                held = sockets.enter_context(socket.create_server(("", port)))
                found.append(held.getsockname()[1])
            if len(found) == count:
                break
    if len(found) < count:
        refuse(f"expected {count} free ports in UCX_TCP_PORT_RANGE={first}-{last} and found {len(found)}")
    return found


def _wait_until_listening(ports: set[int]) -> None:
    if not _comes(lambda: ports <= _taken(), START_TIMEOUT_S):
        refuse(f"expected {PROGRAM} to listen within {START_TIMEOUT_S:.0f} s and found that it does not")


def _wait_until_free(ports: set[int]) -> None:
    """A killed shell's child is nobody's to wait for, and listens until the kernel has freed its memory."""
    _comes(lambda: not ports & _taken(), END_TIMEOUT_S)


def _taken() -> set[int]:
    return {place.port for place in reach.taken()}


def _comes(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
