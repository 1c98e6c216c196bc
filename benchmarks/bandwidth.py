"""How fast NIXL moves KV between two processes, beside UCX's own test on the same transport.

    python benchmarks/bandwidth.py [--far "ip netns exec NAME" --host ADDRESS] [SETTING ...]

Needs nixl, numpy and libucx, as the engine images have them. As in LMCache's channel, the near process, which
owns the KV, WRITEs whole objects from its CPU memory into the far one's, over NIXL's UCX backend. Settings
and `ucx_perftest` alternate; each figure is the median of --rounds. Prints a table, or JSON.
"""

from __future__ import annotations

import argparse
import base64
import json
import mmap
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

MIB = 1024 * 1024
HUGE = 2 * MIB
POLL_S = 0.001  # as LMCache's channel waits
LIMIT_S = 60.0
SAID = "bandwidth: "


@dataclass(frozen=True)
class Setting:
    """One way to set the channel up."""

    lanes: int = 1  # pairs of agents, each with a connection and a progress thread of its own
    threads: int = 0  # NIXL's num_threads: more senders' connections, one receiver's thread
    object_mib: float = 32
    align: int = HUGE
    huge: bool = False
    ucx: Mapping[str, str] = field(default_factory=dict)


SETTINGS = {
    "as it comes": Setting(),
    "2 lanes": Setting(lanes=2),
    "4 lanes": Setting(lanes=4),
    "8 lanes": Setting(lanes=8),
    "2 threads": Setting(threads=2),
    "4 threads": Setting(threads=4),
    "8 threads": Setting(threads=8),
    "UCX_TCP_TX_SEG_SIZE=64K": Setting(ucx={"UCX_TCP_TX_SEG_SIZE": "64K"}),
    "UCX_TCP_RX_SEG_SIZE=1M": Setting(ucx={"UCX_TCP_RX_SEG_SIZE": "1M"}),
    "UCX_TCP_SNDBUF, RCVBUF=4M": Setting(ucx={"UCX_TCP_SNDBUF": "4M", "UCX_TCP_RCVBUF": "4M"}),
    "UCX_TCP_PUT_ENABLE=n": Setting(ucx={"UCX_TCP_PUT_ENABLE": "n"}),
    "UCX_MAX_RMA_LANES=4": Setting(ucx={"UCX_MAX_RMA_LANES": "4", "UCX_MAX_RMA_RAILS": "4"}),
    "UCX_TCP_MAX_POLL=64": Setting(ucx={"UCX_TCP_MAX_POLL": "64"}),
    "objects of 1 MiB": Setting(object_mib=1),
    "objects of 8 MiB": Setting(object_mib=8),
    "aligned to 64 bytes": Setting(align=64),
    "aligned to 4 KiB": Setting(align=4096),
    "huge pages": Setting(huge=True),
}


class Channel:
    """One process's agents and its buffer: what LMCache's NixlAgentWrapper sets up, once a lane."""

    def __init__(self, setting: Setting, name: str, total_mib: int) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        self.size = int(setting.object_mib * MIB)
        self.count = int(total_mib / setting.object_mib)
        self.buffer, self.base = _buffer(self.size * self.count, setting)
        self.agents = []
        self.descriptors = []
        parameters = {"num_threads": str(setting.threads), "split_batch_size": str(setting.threads)}
        for lane in range(setting.lanes):
            agent = nixl_agent(f"{name}-{lane}-{os.getpid()}", nixl_agent_config(backends=[]))
            agent.create_backend("UCX", parameters if setting.threads else {})
            agent.register_memory([(self.base, self.size * self.count, 0, "")], "DRAM")
            places = [(self.base + n * self.size, self.size, 0) for n in range(self.count)]
            self.descriptors.append(agent.get_xfer_descs(places, "DRAM"))
            self.agents.append(agent)

    def introduction(self) -> list[list[str]]:
        """What the other side needs, for each lane: the agent's address, the places to write to."""
        return [
            [_text(agent.get_agent_metadata()), _text(agent.get_serialized_descs(places))]
            for agent, places in zip(self.agents, self.descriptors, strict=True)
        ]


class Owner:
    """The near end: writes all its objects into the peer's places, a share on each lane."""

    def __init__(self, channel: Channel, peer: Sequence[Sequence[str]]) -> None:
        self.channel = channel
        self.lanes = []
        for agent, places, (address, theirs) in zip(channel.agents, channel.descriptors, peer, strict=True):
            name = agent.add_remote_agent(_bytes(address))
            far = agent.prep_xfer_dlist(name, agent.deserialize_descs(_bytes(theirs)))
            self.lanes.append((agent, agent.prep_xfer_dlist("", places), far))

    def write(self) -> float:
        """Return the seconds that it took."""
        started = time.perf_counter()
        handles = []
        for lane, (agent, near, far) in enumerate(self.lanes):
            share = list(range(lane, self.channel.count, len(self.lanes)))
            handle = agent.make_prepped_xfer("WRITE", near, share, far, share)
            agent.transfer(handle)
            handles.append((agent, handle))
        while any(_state(agent, handle) == "PROC" for agent, handle in handles):
            if time.perf_counter() - started > LIMIT_S:
                raise TimeoutError(f"a write was not over in {LIMIT_S:.0f} s")
            time.sleep(POLL_S)
        return time.perf_counter() - started


def _state(agent: Any, handle: Any) -> str:
    state = str(agent.check_xfer_state(handle))
    if state == "ERR":
        raise RuntimeError("NIXL reports an error in a write")
    return state


def _buffer(size: int, setting: Setting) -> tuple[mmap.mmap, int]:
    """Memory whose first object begins at an address that is aligned as asked, and no better."""
    import numpy

    memory = mmap.mmap(-1, size + 2 * HUGE)
    if setting.huge:
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = numpy.frombuffer(memory, dtype=numpy.uint8)
    array[:] = 1  # so that it is there
    start = array.ctypes.data
    aligned = -(-start // HUGE) * HUGE
    return memory, aligned if setting.align == HUGE else aligned + setting.align


def far_end(setting: Setting, total_mib: int) -> None:
    """The peer: say where to write to, wait, say what has arrived and what it cost."""
    import numpy

    channel = Channel(setting, "peer", total_mib)
    _say(channel.introduction())
    before: dict[str, float] = {}
    for line in sys.stdin:
        if line.strip() == "start":
            before = thread_seconds()
        else:
            spent = _spent(before, thread_seconds())
            offset = channel.base - numpy.frombuffer(channel.buffer, numpy.uint8).ctypes.data
            view = numpy.frombuffer(channel.buffer, numpy.uint8, channel.size * channel.count, offset)
            wrong = int((view != 7).sum())
            _say({"wrong": wrong, "threads": spent})
            view[:] = 1
    os._exit(0)


def near_end(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Write so many times, the first one not counted; return seconds and what the threads spent."""
    import numpy

    command = [*shlex.split(options.far), sys.executable, __file__]
    command += ["--far-end", json.dumps(asdict(setting)), "--total-mib", str(options.total_mib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        channel = Channel(setting, "owner", options.total_mib)
        owner = Owner(channel, _hear(peer.stdout))
        numpy.frombuffer(channel.buffer, numpy.uint8)[:] = 7
        owner.write()
        time.sleep(0.1)
        peer.stdin.write("start\n")
        peer.stdin.flush()
        before, started = thread_seconds(), time.perf_counter()
        seconds = [owner.write() for _ in range(options.writes)]
        wall = time.perf_counter() - started
        spent = _spent(before, thread_seconds())
        peer.stdin.write("end\n")
        peer.stdin.flush()
        said = _hear(peer.stdout)
        peer.stdin.close()
        peer.wait()
    if said["wrong"]:
        raise RuntimeError(f"{said['wrong']} bytes did not arrive")
    gigabytes = channel.size * channel.count / 1e9
    return {
        "gb_per_s": gigabytes / median(seconds),
        "owner_busiest": max(spent) / wall,
        "peer_busiest": max(said["threads"]) / wall,
        "cpu_s_per_gb": (sum(spent) + sum(said["threads"])) / (gigabytes * options.writes),
    }


def thread_seconds() -> dict[str, float]:
    """CPU seconds of each of this process's threads."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[task.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _spent(before: Mapping[str, float], after: Mapping[str, float]) -> list[float]:
    return [seconds - before.get(name, 0) for name, seconds in after.items()]


def perftest(host: str, far: Sequence[str], size: int, count: int, threads: int = 1) -> float:
    """GB/s of `ucx_perftest` writing messages of ``size`` bytes."""
    port = str(_free_port())
    options = ["-p", port, "-T", str(threads)]
    with _served([*far, "ucx_perftest", *options]):
        command = ["ucx_perftest", host, *options, "-t", "ucp_put_bw", "-s", str(size)]
        command += ["-n", str(count), "-w", "2", "-f", "-v"]
        for _attempt in range(20):
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
            if done.returncode == 0:
                break
            time.sleep(0.25)
        else:
            raise RuntimeError(f"ucx_perftest failed: {done.stderr.strip()[-300:]}")
    lines = [line.split(",") for line in done.stdout.splitlines() if line.count(",") >= 5]
    names = [name.strip() for name in lines[0]]
    return float(lines[-1][names.index("overall_bw")]) * MIB / 1e9


@contextmanager
def _served(command: Sequence[str]) -> Iterator[None]:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server:  # type: ignore[call-overload]
        try:
            time.sleep(0.5)
            yield
        finally:
            server.kill()


def _free_port() -> int:
    with socket.create_server(("", 0)) as held:
        return int(held.getsockname()[1])


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of a setting and of UCX's own test in turn; medians of each."""
    setting = SETTINGS[name]
    for variable, value in setting.ucx.items():
        os.environ[variable] = value
    far = shlex.split(options.far)
    size, total = int(setting.object_mib * MIB), options.total_mib * MIB
    nixl, ucx, whole = [], [], []
    for _ in range(options.rounds):
        ucx.append(perftest(options.host, far, size, options.writes * total // size))
        whole.append(perftest(options.host, far, total, options.writes))
        nixl.append(_in_child(name, options))
    for variable in setting.ucx:
        del os.environ[variable]
    found = {key: median(round_[key] for round_ in nixl) for key in nixl[0]}
    return {**found, "setting": name, "ucx_gb_per_s": median(ucx), "ucx_whole_gb_per_s": median(whole)}


def _in_child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """UCX reads its environment once a process, so every round has a process of its own."""
    command = [sys.executable, __file__, "--near-end", name]
    command += ["--far", options.far, "--writes", str(options.writes)]
    command += ["--total-mib", str(options.total_mib)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3 * LIMIT_S, check=True)
    return dict(_hear(done.stdout.splitlines()))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| setting | NIXL GB/s | ucx_perftest GB/s, by object | all in one | ratio to the latter "
        "| busiest thread: owner | peer | CPU s a GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['setting']} | {row['gb_per_s']:.2f} | {row['ucx_gb_per_s']:.2f} | "
        f"{row['ucx_whole_gb_per_s']:.2f} | {row['gb_per_s'] / row['ucx_whole_gb_per_s']:.2f} | "
        f"{row['owner_busiest']:.0%} | {row['peer_busiest']:.0%} | {row['cpu_s_per_gb']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _say(what: Any) -> None:
    print(SAID + json.dumps(what), flush=True)


def _hear(lines: Iterable[str]) -> Any:
    """What a process said; NIXL logs to the same stream."""
    return next(json.loads(line.removeprefix(SAID)) for line in lines if line.startswith(SAID))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"of: {'; '.join(SETTINGS)}")
    parser.add_argument("--far", default="", help="command prefix that starts a program on the far end")
    parser.add_argument("--host", default="127.0.0.1", help="the far end's address")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writes", type=int, default=5, help="of all objects, a round")
    parser.add_argument("--total-mib", type=int, default=1024, help="of all objects: KV of 8192 tokens")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--far-end", help=argparse.SUPPRESS)
    parser.add_argument("--near-end", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.far_end:
        far_end(Setting(**json.loads(options.far_end)), options.total_mib)
    elif options.near_end:
        _say(near_end(SETTINGS[options.near_end], options))
        os._exit(0)
    else:
        rows = []
        for name in options.settings or SETTINGS:
            rows.append(measure(name, options))
            print(rows[-1], file=sys.stderr, flush=True)
        print(json.dumps(rows, indent=1) if options.output == "json" else table(rows))


if __name__ == "__main__":
    main()
