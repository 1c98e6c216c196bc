"""What checks are: judgements of evidence with a stable id, kept in causal order, each answered once.

`verify` has one registry of them and `doctor` another.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from kvshare.config.settings import CONTROLLER, MULTIPROCESS
from kvshare.errors import KvshareError, did_you_mean
from kvshare.stack.members import Stack

SUCCESS, WARNING, ERROR, SKIPPED = "success", "warning", "error", "skipped"


class OfStack(Protocol):
    """What evidence is: seen of a stack."""

    @property
    def stack(self) -> Stack:
        """The stack."""


E = TypeVar("E", bound=OfStack)


@dataclass(frozen=True)
class Passed:
    """The check holds; ``detail`` is what was found."""

    detail: str = ""


@dataclass(frozen=True)
class Failed:
    """The check does not hold: what was expected, what was found, at which members, what to type next."""

    expected: str
    found: str
    members: tuple[str, ...]
    next: str


@dataclass(frozen=True)
class NotChecked:
    """The check could not be judged."""

    reason: str


@dataclass(frozen=True)
class NotNeeded:
    """The check asks nothing of this stack, e.g. of a GPU where there is to be none."""

    reason: str


Outcome = Passed | Failed | NotChecked | NotNeeded
Judge = Callable[[E], Outcome]


@dataclass(frozen=True)
class Check(Generic[E]):
    """One question. Without a yes to all that it ``needs`` it cannot be judged.

    A ``warning`` is shown and never changes the exit code. With ``sharing`` it has a meaning for stacks alone
    that share so.
    """

    id: str
    category: str
    description: str
    judge: Judge[E]
    needs: tuple[str, ...] = ()
    warning: bool = False
    sharing: str = ""

    def is_about(self, stack: Stack) -> bool:
        """Whether it has a meaning for that stack."""
        return self.sharing in ("", MULTIPROCESS if stack.controller.is_coordinator else CONTROLLER)


@dataclass(frozen=True)
class Result:
    """One check's answer; all fields but the first two are empty where they do not apply."""

    check: Check[Any]
    result: str
    detail: str = ""
    expected: str = ""
    found: str = ""
    where: str = ""
    next: str = ""
    needed: bool = True

    @property
    def unjudged(self) -> bool:
        """Whether it ought to have been judged and could not be, mere warnings aside."""
        return self.result == SKIPPED and self.needed and not self.check.warning


class Category(list[Check[E]]):
    """The checks of one kind, in causal order; with ``sharing`` of stacks alone that share so."""

    def __init__(self, name: str, sharing: str = "") -> None:
        super().__init__()
        self.name, self.sharing = name, sharing

    def check(
        self,
        identifier: str,
        description: str,
        needs: tuple[str, ...] = (),
        warning: bool = False,
        sharing: str = "",
    ) -> Callable[[Judge[E]], Judge[E]]:
        """Return a decorator that registers a judge behind those already there."""

        def register(judge: Judge[E]) -> Judge[E]:
            of = sharing or self.sharing
            self.append(Check(identifier, self.name, description, judge, needs, warning, of))
            return judge

        return register


class Registry(Generic[E]):
    """Checks in causal order: a cause stands before its symptoms.

    The categories are judged and shown in their order.
    """

    def __init__(self, *categories: Category[E]) -> None:
        self.categories = tuple(category.name for category in categories)
        self._checks = tuple(check for category in categories for check in category)

    def __iter__(self) -> Iterator[Check[E]]:
        return iter(self._checks)

    def __len__(self) -> int:
        return len(self._checks)

    def about(self, stack: Stack) -> tuple[Check[E], ...]:
        """Return the checks that have a meaning for a stack."""
        return tuple(check for check in self if check.is_about(stack))

    def evaluate(self, evidence: E, selected: Collection[str]) -> tuple[Result, ...]:
        """Return the selected checks' results in causal order; all are judged, so that needs are known.

        KvshareError if none of them has a meaning for this stack.
        """
        results: dict[str, Result] = {}
        for check in self.about(evidence.stack):
            results[check.id] = self._judge(check, evidence, results)
        chosen = tuple(result for identifier, result in results.items() if identifier in selected)
        if not chosen:
            raise KvshareError("--only names no check that this stack's SHARING has: drop it.")
        return chosen

    def select(self, only: Sequence[str], skip: Sequence[str]) -> frozenset[str]:
        """Return the ids that ``--only`` and ``--skip`` leave; KvshareError names what is neither."""
        chosen = self._expand(only) if only else {check.id for check in self._checks}
        remaining = frozenset(chosen - self._expand(skip))
        if not remaining:
            raise KvshareError("--only and --skip leave no check: drop one of them.")
        return remaining

    def _expand(self, names: Sequence[str]) -> set[str]:
        known = {check.id for check in self._checks} | set(self.categories)
        for name in names:
            if name not in known:
                raise KvshareError(f"{name} is neither a check nor a category{did_you_mean(name, known)}")
        return {check.id for check in self._checks if check.id in names or check.category in names}

    def _judge(self, check: Check[E], evidence: E, earlier: dict[str, Result]) -> Result:
        for need in check.needs:
            if (before := earlier[need]).result in (ERROR, SKIPPED):
                reason = f"not checked because {need} failed" if before.result == ERROR else before.detail
                return Result(check, SKIPPED, reason, needed=before.needed)
        outcome = check.judge(evidence)
        if isinstance(outcome, Passed):
            return Result(check, SUCCESS, outcome.detail)
        if isinstance(outcome, NotChecked):
            return Result(check, SKIPPED, f"not checked: {outcome.reason}")
        if isinstance(outcome, NotNeeded):
            return Result(check, SKIPPED, f"not needed: {outcome.reason}", needed=False)
        where = evidence.stack.where(*outcome.members) or "the operator's machine"
        grade = WARNING if check.warning else ERROR
        return Result(check, grade, "", outcome.expected, outcome.found, where, outcome.next)
