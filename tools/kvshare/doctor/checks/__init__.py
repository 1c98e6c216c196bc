"""The doctor's checks, in causal order: engines, images, machines, GPUs, the network, the configuration.

A check reads evidence and nothing else. A machine that could not be looked at is named by DOC-ENG-01,
DOC-IMG-01 or DOC-HOST-01, and the other checks judge the rest.
"""

from collections.abc import Iterable

from kvshare.checking.registry import Registry
from kvshare.doctor.checks import configuration, engines, gpu, hosts, images, network
from kvshare.doctor.evidence import Evidence

REGISTRY: Registry[Evidence] = Registry(
    engines.CHECKS, images.CHECKS, hosts.CHECKS, gpu.CHECKS, network.CHECKS, configuration.CHECKS
)
select = REGISTRY.select


def needs_network(selected: Iterable[str]) -> bool:
    """Return whether any of the checks judges connections or links."""
    chosen = set(selected)
    return any(
        check.id in chosen and (check.category == "network" or "DOC-NET-05" in check.needs)
        for check in REGISTRY
    )
