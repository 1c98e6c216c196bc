"""What several checks of the doctor share."""

from collections.abc import Iterable, Mapping
from itertools import combinations

from kvshare.checking.registry import Failed, NotChecked, NotNeeded, Outcome, Passed
from kvshare.doctor.evidence import Evidence


def each(evidence: Evidence, bad: Mapping[str, str], expected: str, fix: str, good: str = "") -> Outcome:
    """Return the outcome of looking at every node that could be looked at."""
    if bad:
        return Failed(expected, listed(bad), tuple(bad), fix)
    if not evidence.seen:
        return NotChecked("no machine could be looked at")
    return unless_unseen(evidence, good or expected)


def unless_unseen(evidence: Evidence, good: str) -> Passed:
    unseen = [node.name for node in evidence.nodes if node.facts is None]
    return Passed(f"{good} ({', '.join(unseen)} not seen)" if unseen else good)


def same(evidence: Evidence, what: str, values: Mapping[str, str], fix: str) -> Outcome:
    """Return the outcome of comparing every node with every other."""
    if len(values) < 2:
        return alone(evidence, values)
    different = [(a, b) for a, b in combinations(values, 2) if values[a] != values[b]]
    if not different:
        return Passed(next(iter(values.values())))
    names = tuple(dict.fromkeys(name for pair in different for name in pair))
    return Failed(f"one {what}", pairs(values, different), names, fix)


def alone(evidence: Evidence, known: Iterable[str]) -> NotNeeded | NotChecked:
    if len(evidence.stack.contexts) == 1:
        return NotNeeded("one machine")
    return NotChecked(f"there is nothing to compare with, only {', '.join(known) or 'nobody'} could be asked")


def pairs(values: Mapping[str, str], different: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{a} has {values[a] or 'none'} and {b} {values[b] or 'none'}" for a, b in different)


def listed(values: Mapping[str, str], separator: str = "; ") -> str:
    return separator.join(f"{name}: {value}" for name, value in values.items())


def members(evidence: Evidence, contexts: Iterable[str]) -> tuple[str, ...]:
    wanted = set(contexts)
    return tuple(member.name for member in evidence.stack.members if member.context in wanted)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
