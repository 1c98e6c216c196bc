"""Whether everyone reaches whom they must, and what the link carries."""

from __future__ import annotations

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.contract import Facts
from kvshare.doctor.checks.shared import by_context, each, listed, unless_unseen
from kvshare.doctor.evidence import OPERATOR, Evidence, Link
from kvshare.operate.preflight import ANY_ADDRESS
from kvshare.stack.ports import Port, ports_of, ranges_of

CHECKS: Category[Evidence] = Category("network")


@CHECKS.check("DOC-NET-01", "UCX uses a network card that the other machines reach", ("DOC-HOST-02",))
def _ucx_device(evidence: Evidence) -> Outcome:
    bad, good = {}, []
    for name, facts in evidence.seen.items():
        wrong = _wrong_device(evidence, facts)
        if wrong:
            bad[name] = wrong
        else:
            good.append(f"{name} {facts.ucx.tls} on {_device_words(facts)}")
    fix = (
        "correct UCX_NET_DEVICES in .env, or leave it empty: then it is the device of the node's own address"
    )
    return each(
        evidence, bad, "a device that UCX finds, and neither docker0 nor loopback", fix, "; ".join(good)
    )


def _wrong_device(evidence: Evidence, facts: Facts) -> str:
    ucx = facts.ucx
    if ucx.error:
        return ucx.error
    known = {interface.name: interface for interface in facts.interfaces}
    for name in ucx.devices.split(","):
        device = known.get(name)
        if device is not None and device.is_dockers:
            return f"UCX_NET_DEVICES={ucx.devices}: {name} is Docker's own bridge"
        if device is not None and device.kind == "loopback" and len(evidence.stack.contexts) > 1:
            return f"UCX_NET_DEVICES={ucx.devices}: {name} leads to no other machine"
        if device is not None and not device.up:
            return f"UCX_NET_DEVICES={ucx.devices}: {name} is down, or has no cable"
        if not any(found.endswith(f"/{name}") for found in ucx.found):
            return f"UCX_NET_DEVICES={ucx.devices}, and UCX finds only {', '.join(ucx.found) or 'nothing'}"
    return ""


def _device_words(facts: Facts) -> str:
    device = next((i for i in facts.interfaces if i.name == facts.ucx.devices), None)
    if device is None:
        return facts.ucx.devices
    speed = f"{device.speed_mbit / 1000:g} Gbit/s" if device.speed_mbit else "speed not told"
    return f"{device.name} ({speed}, MTU {device.mtu})"


@CHECKS.check("DOC-NET-02", "each port is reached from where it must be", ("DOC-HOST-02",))
def _ports_reached(evidence: Evidence) -> Outcome:
    tried = [one for one in evidence.dialed if one.source != OPERATOR and not one.free]
    if evidence.unheld:
        said = "; ".join(evidence.unheld)
        names = tuple(m.name for m in evidence.stack.members if f"{m.host}:" in said)
        return Failed("the ports can be listened on", said, names, "ss -ltnp, on that machine")
    if not tried:
        return NotChecked("no machine could be looked at")
    bad = [one for one in tried if one.error]
    if bad:
        found = "; ".join(f"{o.source} to {o.host}:{o.port} ({o.purpose}): {o.error}" for o in bad)
        return Failed(
            f"{len(tried)} connections stand",
            found,
            tuple(dict.fromkeys(one.target for one in bad)),
            "open these ports there for the stack's machines: kvshare ports --format nft, or ufw",
        )
    return unless_unseen(evidence, f"{len(tried)} connections")


@CHECKS.check("DOC-NET-03", "so are those that UCX takes for KV", ("DOC-HOST-02",))
def _ucx_ports_reached(evidence: Evidence) -> Outcome:
    tried = [one for one in evidence.dialed if one.free]
    bad = [one for one in tried if one.error]
    if not tried:
        return NotChecked("no machine could be looked at")
    if not bad:
        return unless_unseen(evidence, f"{len(tried)} connections to ports of {_range(evidence)}")
    return Failed(
        f"ports {_range(evidence)} open between the stack's machines: UCX takes its own out of them",
        "; ".join(f"{one.source} to {one.host}:{one.port}: {one.error}" for one in bad),
        tuple(dict.fromkeys(one.target for one in bad)),
        "kvshare ports --format nft, or ufw, on that machine",
    )


@CHECKS.check("DOC-NET-04", "no port is reached from where it must not be", warning=True)
def _ports_closed(evidence: Evidence) -> Outcome:
    outside = [o for o in evidence.dialed if o.source == OPERATOR and not o.error]
    everywhere = [
        (member.name, port)
        for context, (_, facts) in by_context(evidence).items()
        for member in evidence.members_on(context)
        if evidence.runs(member)
        for port in (*ports_of(member), *ranges_of(member))
        if _on_all_addresses(facts, port)
    ]
    if not outside and not everywhere:
        nobody = not any(
            evidence.runs(m) for m in evidence.stack.members if m.context in by_context(evidence)
        )
        return Passed("as far as can be told before it runs" if nobody else "")
    found = [f"{o.host}:{o.port} ({o.purpose}) answers {OPERATOR}" for o in outside]
    found += [
        f"{p.text} ({p.purpose}) listens on all addresses of {name}'s machine" for name, p in everywhere
    ]
    names = (*(o.target for o in outside), *(name for name, _ in everywhere))
    return Failed(
        "ports without authentication answer the stack's machines alone",
        "; ".join(found),
        tuple(dict.fromkeys(names)),
        "close them to all others: kvshare ports shows who must reach which, --format nft or ufw the rules",
    )


def _on_all_addresses(facts: Facts, port: Port) -> bool:
    return any(port.first <= e.port <= port.last and e.host in ANY_ADDRESS for e in facts.listening)


def _range(evidence: Evidence) -> str:
    return ranges_of(evidence.stack.prefill)[0].text


@CHECKS.check("DOC-NET-05", "the link carries KV", ("DOC-NET-01",))
def _link_measured(evidence: Evidence) -> Outcome:
    bad = {link.target: link.error for link in evidence.links if link.error}
    measured = [link for link in evidence.links if link.bytes_per_s]
    if bad:
        return Failed(
            "ucx_perftest from prefill to each decode node, with the stack's own UCX_TLS and UCX_NET_DEVICES",
            listed(bad),
            tuple(bad),
            f"docker --context {evidence.node(next(iter(bad))).context} run --rm --network host "
            f"{_image_name(evidence)} ucx_info -d",
        )
    not_tried = [link for link in evidence.links if link.not_tried]
    if not_tried or not measured:
        return NotChecked(
            "; ".join(dict.fromkeys(li.not_tried for li in not_tried)) or "no link was measured"
        )
    return Passed("; ".join(f"{li.source} to {li.target} {speed_words(li)}" for li in measured))


def speed_words(link: Link) -> str:
    """Return a measured link's speed and latency in words."""
    return f"{(link.bytes_per_s or 0) / 1e9:.2f} GB/s, {(link.latency_s or 0) * 1e6:.0f} µs"


def _image_name(evidence: Evidence) -> str:
    return next((engine.image.name for engine in evidence.asked if engine.image is not None), "")
