"""What holds of every check, those of `kvshare verify` and those of `kvshare doctor`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

from kvshare.checking.registry import ERROR, WARNING, Check, Registry, Result
from kvshare.doctor import checks as doctor_checks
from kvshare.doctor import judgement as doctor_judgement
from kvshare.errors import KvshareError
from kvshare.verify import checks, judgement
from tests.unit import doctor_faults, faults


@dataclass(frozen=True)
class Checks:
    """A registry of checks, what judges by it, and the faults that it has to find."""

    registry: Registry[Any]
    judge: Callable[[Any, frozenset[str]], Any]
    faults: Mapping[str, Any]

    @cached_property
    def red(self) -> dict[str, list[Result]]:
        """Every fault's failures and warnings."""
        everything = self.registry.select((), ())
        return {
            name: [r for r in self.judge(fault.evidence, everything).results if r.result in (ERROR, WARNING)]
            for name, fault in self.faults.items()
        }


VERIFY = Checks(checks.REGISTRY, judgement.judge, faults.FAULTS)
DOCTOR = Checks(doctor_checks.REGISTRY, doctor_judgement.judge, doctor_faults.FAULTS)
BOTH = pytest.mark.parametrize("of", [VERIFY, DOCTOR], ids=["verify", "doctor"])
EVERY_CHECK = [(of, check) for of in (VERIFY, DOCTOR) for check in of.registry]
EVERY_FAULT = [(of, name) for of in (VERIFY, DOCTOR) for name in of.faults]


@pytest.mark.parametrize(("of", "check"), EVERY_CHECK, ids=[check.id for _, check in EVERY_CHECK])
def test_a_check_goes_red_somewhere(of: Checks, check: Check[Any]) -> None:
    expected = WARNING if check.warning else ERROR
    assert expected in [one.result for red in of.red.values() for one in red if one.check is check]


@pytest.mark.parametrize(("of", "fault"), EVERY_FAULT, ids=[name for _, name in EVERY_FAULT])
def test_a_failure_says_what_where_and_what_next(of: Checks, fault: str) -> None:
    for red in of.red[fault]:
        assert red.expected
        assert red.found
        assert red.where
        assert red.next


@BOTH
def test_ids_are_unique_and_stand_in_the_order_of_their_categories(of: Checks) -> None:
    assert len({check.id for check in of.registry}) == len(of.registry)
    order = [of.registry.categories.index(check.category) for check in of.registry]
    assert order == sorted(order)


@BOTH
def test_a_check_needs_only_what_stands_before_it(of: Checks) -> None:
    seen: set[str] = set()
    for check in of.registry:
        assert set(check.needs) <= seen
        seen.add(check.id)


@pytest.mark.parametrize(
    ("of", "wrong", "near"),
    [
        (VERIFY, "KV-PEER-1", "KV-PEER-01"),
        (VERIFY, "engine", "engines"),
        (VERIFY, "ctrl-02", "CTRL-02"),
        (DOCTOR, "DOC-NET-1", "DOC-NET-01"),
    ],
)
def test_an_unknown_selection_names_the_nearest(of: Checks, wrong: str, near: str) -> None:
    with pytest.raises(KvshareError, match=f"did you mean {near}\\?"):
        of.registry.select((wrong,), ())


@BOTH
def test_an_empty_selection_is_refused(of: Checks) -> None:
    check = next(iter(of.registry))
    with pytest.raises(KvshareError, match="leave no check"):
        of.registry.select((check.id,), (check.category,))
