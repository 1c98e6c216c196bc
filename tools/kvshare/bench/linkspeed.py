"""The link under the KV transfer, measured by the engine image's own probe, the one that doctor uses.

It runs inside the containers of what keeps the servers' KV, with the UCX settings that they run with, from
the owner (prefill) to the one that asks (decode): that is the way the KV goes.
"""

from collections.abc import Mapping
from functools import partial

from kvshare.bench.gather import PROBE
from kvshare.bench.results import Link
from kvshare.contract import Fingerprint
from kvshare.errors import CouldNotCheckError
from kvshare.servers import linkprobe
from kvshare.site.base import Site

NO_PROBE = "the engine image has no probe for it: type make image"


def measure(site: Site, prints: Mapping[str, Fingerprint]) -> Link:
    """Return the link's speed; where it cannot be measured, the reason instead."""
    prefill, decode = site.stack.prefill.keeper, site.stack.decode.keeper
    here, there = prints[prefill.name].ucx, prints[decode.name].ucx

    near = partial(site.beside, prefill, *PROBE, environment=here)
    far = partial(site.beside, decode, *PROBE, environment=there)
    try:
        found, _ = linkprobe.measure(near, far, decode.host)
    except CouldNotCheckError as failure:
        return Link(None, "", failure.message.rstrip("."))
    except ValueError:
        return Link(None, "", NO_PROBE)
    if found.error or not found.bytes_per_s:
        return Link(None, "", found.error or "the probe gave no figure")
    told = " ".join(f"{name}={value}" for name, value in sorted(here.items()))
    return Link(found.bytes_per_s / 1e9, f"ucx_perftest, {told}")
