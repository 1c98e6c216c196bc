"""Results of checks for programs: what the reports' JSON and its schemas are made from."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from kvshare.checking.registry import ERROR, SKIPPED, SUCCESS, WARNING, Result
from kvshare.checking.rendering import by_category, hint
from kvshare.checking.verdict import Verdict
from kvshare.records import Document, one_of

ExitCode = Annotated[int, one_of(0, 1, 3)]


class Check(Document):
    """One check's answer; of ``expected`` to ``hint`` only what applies is there."""

    id: str
    description: str
    result: Annotated[str, one_of(SUCCESS, WARNING, ERROR, SKIPPED)]
    detail: Annotated[str, Meta(description="What was found, or why it was not checked.")] | UnsetType = UNSET
    expected: str | UnsetType = UNSET
    found: str | UnsetType = UNSET
    where: str | UnsetType = UNSET
    next: Annotated[str, Meta(description="What to type next.")] | UnsetType = UNSET
    hint: Annotated[str, Meta(description="Where the docs explain the check.")] | UnsetType = UNSET


class Category(Document):
    """The selected checks of one category."""

    name: str
    checks: tuple[Check, ...]


def each_check(id_pattern: str, least: int = 0, **more: Any) -> Meta:
    """Return what else a schema says of the checks in a category: their ids, how many there are at least."""
    items = {"properties": {"id": {"pattern": id_pattern}}, **more}
    return Meta(extra_json_schema={"properties": {"checks": {"minItems": least, "items": items}}})


def categories(verdict: Verdict[Any]) -> tuple[Category, ...]:
    """Return the results under their categories, in causal order."""
    found = by_category(verdict.results)
    return tuple(Category(name=name, checks=tuple(map(_check, results))) for name, results in found)


def _check(result: Result) -> Check:
    return Check(
        id=result.check.id,
        description=result.check.description,
        result=result.result,
        detail=result.detail or UNSET,
        expected=result.expected or UNSET,
        found=result.found or UNSET,
        where=result.where or UNSET,
        next=result.next or UNSET,
        hint=hint(result) if result.result in (WARNING, ERROR) else UNSET,
    )
