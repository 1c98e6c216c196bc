"""The arithmetic of reuse: where the legs' tokens came from, and what they add up to."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from kvshare.servers.readings import Held, Sources
from kvshare.verify.evidence import CONTROL, PEER, Leg

KV_USAGE_NOISE = 1e-6  # of a share that is a quotient of floats


def of(legs: Iterable[Leg], name: str) -> tuple[Leg, ...]:
    """Return the legs of one kind, the warm-up among them."""
    return tuple(leg for leg in legs if leg.leg == name)


def counted(legs: Iterable[Leg]) -> tuple[Leg, ...]:
    """Return the legs whose time counts: answered, and not the warm-up's."""
    return tuple(leg for leg in legs if leg.ttft_ms is not None and not leg.warm_up)


def total_sources(legs: Iterable[Leg]) -> Sources:
    """Return the sum of the legs' prompt tokens by source."""
    return sum((leg.sources for leg in legs if leg.sources is not None), Sources())


def median_ttft_ms(legs: Sequence[Leg], name: str) -> float | None:
    """Return the median time to first token of one kind of leg, or None if none was timed."""
    times = [leg.ttft_ms for leg in counted(of(legs, name)) if leg.ttft_ms is not None]
    return median(times) if times else None


def off_balance(legs: Iterable[Leg]) -> tuple[Leg, ...]:
    """Return the legs whose sources do not add up to their prompt tokens."""
    return tuple(leg for leg in legs if leg.sources is None or leg.sources.total != leg.tokens)


def moved_nothing(legs: Iterable[Leg]) -> bool:
    """Return whether no control leg got a token from a peer or from a cache."""
    return all(leg.sources == Sources(local_compute=leg.tokens) for leg in of(legs, CONTROL))


def not_pulled(legs: Iterable[Leg], expected: int) -> tuple[Leg, ...]:
    """Return the peer legs that did not get exactly ``expected`` tokens from the peer."""
    return tuple(
        leg for leg in of(legs, PEER) if leg.sources is None or leg.sources.external_kv_transfer != expected
    )


def holds_more(before: Mapping[str, Held | None], after: Mapping[str, Held | None]) -> tuple[str, ...]:
    """Return the servers that hold more for requests than they did, or do not tell."""
    return tuple(node for node, then in before.items() if _more(then, after.get(node)))


def _more(before: Held | None, after: Held | None) -> bool:
    if before is None or after is None:
        return True
    rise = after - before
    return max(rise.running, rise.waiting, rise.pinned) > 0 or rise.kv_usage > KV_USAGE_NOISE
