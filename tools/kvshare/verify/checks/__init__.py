"""The checks, in causal order: a cause stands before its symptoms, so the first failure names the cause.

A check reads evidence and nothing else. Its id is stable, names its section in docs/checks.md and its test.
"""

from collections.abc import Iterable

from kvshare.checking.registry import Registry
from kvshare.verify.checks import (
    answers,
    client,
    configuration,
    controller,
    decode,
    engines,
    images,
    kv_transfer,
    prefill,
    verdict,
)
from kvshare.verify.evidence import Evidence

_WITHOUT_TRAFFIC = (engines.CHECKS, images.CHECKS, configuration.CHECKS)
REGISTRY: Registry[Evidence] = Registry(
    *_WITHOUT_TRAFFIC,
    client.CHECKS,
    controller.CHECKS,
    prefill.CHECKS,
    decode.CHECKS,
    kv_transfer.CHECKS,
    answers.CHECKS,
    verdict.CHECKS,
)
select = REGISTRY.select


def needs_traffic(selected: Iterable[str]) -> bool:
    """Return whether any of the checks judges what the client container sees."""
    return not {check.id for category in _WITHOUT_TRAFFIC for check in category}.issuperset(selected)
