"""Whether every machine has the one image, with its patches."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from kvshare.checking.patches import PATCHES
from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.contract import Facts
from kvshare.doctor.checks.shared import alone, each, members, pairs, same
from kvshare.doctor.evidence import Evidence

CHECKS: Category[Evidence] = Category("images")


@CHECKS.check("DOC-IMG-01", "every machine has the engine image")
def _image_there(evidence: Evidence) -> Outcome:
    if not evidence.asked:
        return NotChecked("no engine answers")
    bad = [engine.context for engine in evidence.asked if engine.image is None]
    images = [engine.image for engine in evidence.asked if engine.image is not None]
    if not bad:
        return Passed(", ".join(dict.fromkeys(f"{image.name} {image.short_id}" for image in images)))
    names = members(evidence, bad)
    how = f"make ship NODE={names[-1]}" if images else "make image"
    return Failed("the engine image everywhere", f"none on {_contexts(bad)}", names, how)


@CHECKS.check("DOC-IMG-02", "it is one image", warning=True)
def _one_image(evidence: Evidence) -> Outcome:
    images = {e.context: e.image for e in evidence.asked if e.image is not None}
    if len(images) < 2:
        return alone(evidence, images)
    different = [(a, b) for a, b in combinations(images, 2) if not images[a].is_same_as(images[b])]
    if not different:
        return Passed(next(iter(images.values())).short_id)
    return Failed(
        "one image id",
        pairs({context: image.short_id for context, image in images.items()}, different),
        members(evidence, [different[0][1]]),
        f"make ship NODE={members(evidence, [different[0][1]])[-1]}",
    )


@CHECKS.check("DOC-IMG-03", "the versions inside are the same", ("DOC-IMG-01",))
def _one_set_of_versions(evidence: Evidence) -> Outcome:
    found = {name: _versions(facts) for name, facts in evidence.seen.items()}
    return same(evidence, "set of versions", found, "run one image everywhere: make ship, or make image")


@CHECKS.check("DOC-IMG-04", "it carries the patches", ("DOC-IMG-01",))
def _patched(evidence: Evidence) -> Outcome:
    expected = PATCHES[evidence.stack.device]
    missing = {name: set(expected) - set(facts.patches) for name, facts in evidence.seen.items()}
    return each(
        evidence,
        {name: f"{', '.join(sorted(lacks))} missing" for name, lacks in missing.items() if lacks},
        ", ".join(expected),
        "make image, then make ship where it is not built",
    )


def _contexts(names: Iterable[str]) -> str:
    return ", ".join(f"context {name}" for name in names)


def _versions(facts: Facts) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
