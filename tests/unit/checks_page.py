"""docs/checks.md: how each check fails on the first fault that it names, and its docstring."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from inspect import getdoc
from typing import Any

from kvshare import checking, doctor, verify
from kvshare.checking.registry import Check, Registry
from kvshare.checking.rendering import plain_console, print_result
from kvshare.doctor.checks import REGISTRY as DOCTOR
from kvshare.verify import tolerance
from kvshare.verify.checks import REGISTRY as VERIFY
from tests.unit import doctor_faults, faults


def page() -> str:
    """Return the whole page."""
    parts = (
        "# The checks of `make verify` and `make doctor`",
        _body(checking),
        "Of each check, made by `make generate`: how it fails (without `where`), what it proves, what to do.",
        "## How reuse is proven",
        _body(verify),
        "## Tolerance",
        _body(tolerance),
        *_sections(VERIFY, faults.FAULTS),
        "# The checks of `make doctor`",
        getdoc(doctor),
        *_sections(DOCTOR, doctor_faults.FAULTS, "doctor: "),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def example(check: Check[Any], registry: Registry[Any], known: Mapping[str, Any]) -> str:
    """Return how the check's failure looks, from the first fault that it names."""
    fault = next(fault for fault in known.values() if fault.cause == check.id)
    (result,) = registry.evaluate(fault.evidence, {check.id})
    stream = io.StringIO()
    print_result(plain_console(stream), result)
    return "\n".join(li for li in stream.getvalue().splitlines() if not li.startswith("    where "))


def _sections(registry: Registry[Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for category in registry.categories:
        yield f"# {prefix}{category}"
        for check in registry:
            if check.category == category:
                yield f"## {check.id}"
                yield f"```text\n{example(check, registry, known)}\n```"
                yield getdoc(check.judge) or ""


def _body(module: Any) -> str:
    """Return a module's docstring without its first line, which its heading says."""
    return (getdoc(module) or "").partition("\n\n")[2]
