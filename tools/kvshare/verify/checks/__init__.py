"""The checks, in causal order: a cause stands before its symptoms, so the first failure names the cause.

A check reads evidence and nothing else. Its id is stable, names its section in docs/checks.md and its test.
"""

from collections.abc import Iterable, Sequence

from kvshare.checking.registry import Registry
from kvshare.verify.checks import (
    answers,
    cache,
    client,
    configuration,
    controller,
    coordinator,
    decode,
    deep,
    engines,
    gateway,
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
    coordinator.CHECKS,
    cache.CHECKS,
    prefill.CHECKS,
    decode.CHECKS,
    kv_transfer.CHECKS,
    answers.CHECKS,
    gateway.CHECKS,
    deep.CHECKS,
    verdict.CHECKS,
)
_DEEP = deep.CHECKS
DEEP = frozenset(check.id for check in _DEEP)


def select(only: Sequence[str], skip: Sequence[str], deep: bool = False) -> frozenset[str]:
    """Return the ids that ``--only`` and ``--skip`` leave; KvshareError names what is neither.

    Those of ``--deep`` are among them only with it, or where ``--only`` names them.
    """
    if only:
        return REGISTRY.select((*only, _DEEP.name) if deep else only, skip)
    return REGISTRY.select((), skip if deep else (*skip, _DEEP.name))


def needs_traffic(selected: Iterable[str]) -> bool:
    """Return whether any of the checks judges what the client container sees."""
    return not {check.id for category in _WITHOUT_TRAFFIC for check in category}.issuperset(selected)
