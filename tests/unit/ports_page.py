"""docs/ports.md: the registry of ports, and the firewall rules that follow from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from kvshare.config.settings import Settings
from kvshare.site.native import stack_of
from kvshare.stack.firewall import machine_of, nft, ufw
from kvshare.stack.members import (
    COORDINATOR,
    OBSERVE,
    WATCHERS,
    Cache,
    Controller,
    Gateway,
    Server,
    Stack,
    Watcher,
)
from kvshare.stack.ports import Port, registry

ROOT = Path(__file__).resolve().parents[2]
PREFILL_HOST, DECODE_HOST = "192.168.110.13", "192.168.110.97"  # the original's two machines

PAGE = """# Ports and firewall

Made by `make generate` from the tool's registry of ports (`tools/kvshare/stack/ports.py`), whose numbers
come from `x-kvshare` in compose.yaml. `make ports` prints the same with your hosts, as a table or, with
`ARGS="--format json"`, as JSON.

| port | process | protocol | what for | asks who calls | must be reached by |
|---|---|---|---|---|---|
{rows}

All are TCP. Whoever is not named in the last column must not get in: see [security.md](security.md). The
prefill node is the controller's machine too, and `make verify` sends its prompts from there; *clients* are
whoever uses the OpenAI API: `CLIENTS` in .env, anyone where that is empty.

With `SHARING=multiprocess` ([multiprocess.md](multiprocess.md)) these are in place of the controller's and of
all of the servers' but their APIs:

| port | process | protocol | what for | asks who calls | must be reached by |
|---|---|---|---|---|---|
{beside}

- **Ranks.** A server with several GPUs has a rank on each, and each rank ports of its own: the first those
  above, each further one {step} more (`KVSHARE_RANK_PORT_STEP` in compose.yaml). Decode's second: {second}.
- **Addresses.** Every port is bound to the node's own address (`PREFILL_HOST`, `DECODE_HOST`) and to
  nothing else: a machine's other networks find all of them closed, with or without the rules below.
- **KV data.** UCX listens on a port for each lane of each rank, which it draws from a range ({data},
  `UCX_TCP_PORT_RANGE` in compose.yaml) and sends to the peer over P2P init. Without the range the kernel
  would pick any. `ucx_perftest` between the nodes passes the rules too if its own port (`-p`) is out of it.
- **RDMA.** With `TRANSPORT=rdma` KV goes from card to card past the kernel, and past its firewall: the
  fabric itself must be yours. The range then stays unused.
- **Watching.** The last two are there with `OBSERVE` in .env alone ([watching.md](watching.md)). Neither asks
  who calls, so the rules let no other machine in: `ssh -L 9090:HOST:9090 HOST`.
- **Inside one machine.** vLLM's processes talk over loopback and Unix sockets; gloo and NCCL are held to
  loopback (`GLOO_SOCKET_IFNAME`, `NCCL_SOCKET_IFNAME`).

## Rules for a machine

    make ports ARGS="--format nft --node prefill"    # or: --node decode, decode-2 …
    make ports ARGS="--format ufw --node prefill"

Load them on the machine itself, as root: `nft -f FILE`, or `sh FILE` for ufw. They judge kvshare's ports
and no other, so ssh and whatever else runs there stays as it is. They have to be loaded again when a host
is added. nftables forgets them at a reboot unless they are put where your distribution loads rules from
(Debian: `include` in /etc/nftables.conf).

API ports are open to everyone unless `CLIENTS` is set, because who your users are is the one thing that
compose.yaml cannot know; with `API_KEY_FILE` set as well, they need the key.

For 192.168.110.13, with a decode node on 192.168.110.97:

```text
{nft}```

The same for ufw:

```text
{ufw}```
"""


def default_stack(**decisions: str) -> Stack:
    """The stack of compose.yaml on the original's machines; what else it leaves open has its default."""
    stack = stack_of(Settings(ROOT, {"DEVICE": "cuda", **decisions}))
    facts = yaml.safe_load((ROOT / "compose.yaml").read_text())["x-kvshare"]
    return replace(
        stack,
        controller=replace(stack.controller, host=PREFILL_HOST),
        prefill=replace(stack.prefill, host=PREFILL_HOST),
        decodes=(replace(stack.decode, host=DECODE_HOST, context="gpu-b"),),
        gateway=Gateway(
            "gateway", "gateway", "default", PREFILL_HOST, facts["gateway"]["KVSHARE_GATEWAY_PORT"]
        ),
        watchers=tuple(
            Watcher(name, name, "default", PREFILL_HOST, facts[OBSERVE][port])
            for name, port in WATCHERS.items()
        ),
    )


class _Loader(yaml.SafeLoader):
    """Reads Compose's own tags, such as !reset, as nothing."""


_Loader.add_multi_constructor("!", lambda *_: None)


def multiprocess_stack() -> Stack:
    """The same machines with compose.mp.yaml merged."""
    stack = default_stack()
    facts = yaml.load((ROOT / "compose.mp.yaml").read_text(), _Loader)["x-kvshare-multiprocess"]

    def beside(server: Server) -> Server:
        own = facts[f"{server.service}-cache"]
        cache = Cache(
            service=f"{server.service}-cache",
            name=f"{server.name}-cache",
            context=server.context,
            host=server.host,
            port=own["KVSHARE_CACHE_PORT"],
            http_port=own["KVSHARE_CACHE_HTTP_PORT"],
            p2p_port=own["KVSHARE_CACHE_P2P_PORT"],
            nixl_port=own["KVSHARE_CACHE_NIXL_PORT"],
            ranks=server.ranks,
            data_ports=server.data_ports,
        )
        return replace(server, cache=cache)

    port = facts[COORDINATOR]["KVSHARE_COORDINATOR_PORT"]
    return replace(
        stack,
        controller=Controller(COORDINATOR, COORDINATOR, "default", PREFILL_HOST, port),
        prefill=beside(stack.prefill),
        decodes=(beside(stack.decode),),
    )


def page() -> str:
    """The whole page."""
    stack, two = default_stack(), default_stack(DECODE_GPU="0,1", PREFILL_GPU="0,1")
    second = [
        ports[1]
        for ports in (two.decode.worker_ports, two.decode.p2p_init_ports, two.decode.p2p_lookup_ports)
    ]
    first, last = stack.prefill.data_ports
    machine = machine_of(stack, "prefill", ())
    rows = "\n".join(_row(port) for port in registry(stack))
    others = [port for port in registry(multiprocess_stack()) if port not in registry(stack)]
    return PAGE.format(
        rows=rows,
        beside="\n".join(map(_row, others)),
        step=two.decode.worker_ports[1] - two.decode.worker_ports[0],
        second=", ".join(map(str, second)),
        data=f"{first} to {last}",
        nft=nft(machine),
        ufw=ufw(machine),
    )


def _row(port: Port) -> str:
    cells = (
        port.text, port.process, port.protocol, port.purpose, port.authenticated, ", ".join(port.callers),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"
