"""Whether everyone reaches whom they must, and what the link carries."""

from collections.abc import Sequence

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.contract import ANY_ADDRESS, Facts
from kvshare.doctor.checks.shared import each, listed, unless_unseen
from kvshare.doctor.evidence import OPERATOR, Dialed, Evidence
from kvshare.stack.members import bound_to
from kvshare.stack.ports import Port, ports_of, ranges_of

CHECKS: Category[Evidence] = Category("network")


@CHECKS.check("DOC-NET-01", "UCX uses a network card that the other machines reach", ("DOC-HOST-02",))
def _ucx_device(evidence: Evidence) -> Outcome:
    """UCX would happily advertise docker0, or, on two machines, loopback.

    With TRANSPORT=rdma the node's address must be the RDMA card's.
    """
    seen = evidence.seen.items()
    bad = {name: wrong for name, facts in seen if (wrong := _wrong_device(evidence, facts))}
    good = "; ".join(f"{name} {facts.ucx.tls} on {_device_words(facts)}" for name, facts in seen)
    expected = "a device that UCX finds, and neither docker0 nor loopback"
    empty = "or leave it empty: then it is the device of the node's own address"
    return each(evidence, bad, expected, f"correct UCX_NET_DEVICES in .env, {empty}", good)


def _wrong_device(evidence: Evidence, facts: Facts) -> str:
    ucx = facts.ucx
    if ucx.error:
        return ucx.error
    known = {interface.name: interface for interface in facts.interfaces}
    set_to = f"UCX_NET_DEVICES={ucx.devices}"
    for name in ucx.devices.split(","):
        device = known.get(name)
        if device is not None and device.is_dockers:
            return f"{set_to}: {name} is Docker's own bridge"
        if device is not None and device.kind == "loopback" and len(evidence.stack.contexts) > 1:
            return f"{set_to}: {name} leads to no other machine"
        if device is not None and not device.up:
            return f"{set_to}: {name} is down, or has no cable"
        if not any(found.endswith(f"/{name}") for found in ucx.found):
            return f"{set_to}, and UCX finds only {', '.join(ucx.found) or 'nothing'}"
    return ""


def _device_words(facts: Facts) -> str:
    device = next((i for i in facts.interfaces if i.name == facts.ucx.devices), None)
    if device is None:
        return facts.ucx.devices
    speed = f"{device.speed_mbit / 1000:g} Gbit/s" if device.speed_mbit else "speed not told"
    return f"{device.name} ({speed}, MTU {device.mtu})"


@CHECKS.check("DOC-NET-02", "each port is reached from where it must be", ("DOC-HOST-02",))
def _ports_reached(evidence: Evidence) -> Outcome:
    """Every connection of the running stack was made; where it is not up, a container listened for a moment.

    NIXL's counters (8204, 8205) were asked from their own machine, the only one that they answer.
    `no answer`, or `connection refused` with a listener there, is a firewall; `make ports`: who dials what.
    """
    if evidence.unheld:
        said = "; ".join(evidence.unheld)
        names = tuple(
            m.name for m in evidence.stack.members if any(f"{bound_to(m, p)}:{p}:" in said for p in m.ports)
        )
        return Failed("the ports can be listened on", said, names, "ss -ltnp, on that machine")
    tried = [one for one in evidence.dialed if one.source != OPERATOR and not one.free]
    good = f"{len(tried)} connections"
    return _reached(evidence, tried, good, f"{good} stand")


@CHECKS.check("DOC-NET-03", "so are those that UCX takes for KV", ("DOC-HOST-02",))
def _ucx_ports_reached(evidence: Evidence) -> Outcome:
    """One of its range (UCX_TCP_PORT_RANGE in compose.yaml) was dialled on each machine."""
    tried = [one for one in evidence.dialed if one.free]
    ports = ranges_of(evidence.stack.prefill.keeper)[0].text
    expected = f"ports {ports} open between the stack's machines: UCX takes its own out of them"
    return _reached(evidence, tried, f"{len(tried)} connections to ports of {ports}", expected)


def _reached(evidence: Evidence, tried: Sequence[Dialed], good: str, expected: str) -> Outcome:
    if not tried:
        return NotChecked("no machine could be looked at")
    bad = [one for one in tried if one.error]
    if not bad:
        return unless_unseen(evidence, good)
    found = "; ".join(
        f"{one.source} to {one.host}:{one.port}{'' if one.free else f' ({one.purpose})'}: {one.error}"
        for one in bad
    )
    names = tuple(dict.fromkeys(one.target for one in bad))
    return Failed(expected, found, names, f"open them there to the stack's machines: {_rules(names[0])}")


def _rules(node: str) -> str:
    return f'make ports ARGS="--format nft --node {node}", or ufw'


@CHECKS.check("DOC-NET-04", "no port is reached from where it must not be", warning=True)
def _ports_closed(evidence: Evidence) -> Outcome:
    """It answers the operator's machine, which is no node, or it listens on all addresses.

    A worker does that in an image without the patch `worker-address` (DOC-IMG-04).
    """
    outside = [o for o in evidence.dialed if o.source == OPERATOR and not o.error]
    seen = evidence.machines
    running = [m for m in evidence.stack.members if m.context in seen and evidence.runs(m)]
    everywhere = [
        (member.name, port)
        for member in running
        for port in (*ports_of(member), *ranges_of(member))
        if _on_all_addresses(seen[member.context][1], port)
    ]
    if not outside and not everywhere:
        return Passed("" if running else "as far as can be told before it runs")
    found = [f"{o.host}:{o.port} ({o.purpose}) answers {OPERATOR}" for o in outside]
    found += [f"{p.text} ({p.purpose}) listens on all addresses of {n}'s machine" for n, p in everywhere]
    names = tuple(dict.fromkeys((*(o.target for o in outside), *(name for name, _ in everywhere))))
    expected = "ports without authentication answer the stack's machines alone"
    return Failed(expected, "; ".join(found), names, f"close them to all others: {_rules(names[0])}")


def _on_all_addresses(facts: Facts, port: Port) -> bool:
    return any(port.first <= e.port <= port.last and e.host in ANY_ADDRESS for e in facts.listening)


@CHECKS.check("DOC-NET-05", "the link carries KV", ("DOC-NET-01",))
def _link_measured(evidence: Evidence) -> Outcome:
    """From prefill, the owner, to each decode node, on as many connections as a pull uses (`LANES`).

    Speed is GB/s (10⁹ bytes) of 32 MiB messages, latency one way of 8 bytes. On a slow link it
    [understates](benchmarks.md#by-the-speed-of-the-link) what KV gets.
    """
    bad = {link.target: link.error for link in evidence.links if link.error}
    if bad:
        image = next((engine.image.name for engine in evidence.asked if engine.image is not None), "")
        context = evidence.node(next(iter(bad))).context
        return Failed(
            "ucx_perftest from prefill to each decode node, with the stack's own UCX_TLS and UCX_NET_DEVICES",
            listed(bad),
            tuple(bad),
            f"docker --context {context} run --rm --network host {image} ucx_info -d",
        )
    not_tried = dict.fromkeys(link.not_tried for link in evidence.links if link.not_tried)
    measured = [link for link in evidence.links if link.bytes_per_s]
    if not_tried or not measured:
        return NotChecked("; ".join(not_tried) or "no link was measured")
    return Passed("; ".join(f"{li.source} to {li.target} {li.words}" for li in measured))


@CHECKS.check("DOC-NET-06", "the gateway knows every server, and those that run answer it", warning=True)
def _gateways_route(evidence: Evidence) -> Outcome:
    """Its `/health` says which. It reads .env at its start alone, so not of a node that was added since.

    A server that is still starting does not answer yet (`make status`).
    """
    if evidence.behind is None:
        return Passed("it does not run")
    answers, error = evidence.behind.answers, evidence.behind.error
    expected = "each server in the gateway's /health, as up if it runs"
    if error:
        return Failed(expected, error, ("gateway",), 'make logs ARGS="--node gateway"')
    servers = {f"{s.host}:{s.api_port}": s for s in (evidence.stack.prefill, *evidence.stack.decodes)}
    unknown = {
        server.name: f"{place} is not there" for place, server in servers.items() if place not in answers
    }
    if unknown:
        return Failed(expected, listed(unknown), tuple(unknown), "make up NODE=gateway")
    down = {
        server.name: f"{place} runs, and does not answer the gateway"
        for place, server in servers.items()
        if evidence.runs(server) and not answers[place]
    }
    if down:
        return Failed(expected, listed(down), tuple(down), "make status")
    return Passed(f"{sum(answers.values())} of {len(servers)} answer it")
