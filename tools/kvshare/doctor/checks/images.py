"""Whether every machine has the one image, with its patches."""

from itertools import combinations

from kvshare.checking.patches import expected_patches
from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.doctor.checks.shared import alone, each, members, pairs, same
from kvshare.doctor.evidence import Evidence

CHECKS: Category[Evidence] = Category("images")


@CHECKS.check("DOC-IMG-01", "every machine has the engine image")
def _image_there(evidence: Evidence) -> Outcome:
    """All that follows looks from inside it. `make image NODE=decode` builds it there."""
    if not evidence.asked:
        return NotChecked("no engine answers")
    images = [engine.image for engine in evidence.asked if engine.image is not None]
    bad = [engine.context for engine in evidence.asked if engine.image is None]
    if not bad:
        return Passed(", ".join(dict.fromkeys(f"{image.name} {image.short_id}" for image in images)))
    names = members(evidence, bad)
    found = "none on " + ", ".join(f"context {context}" for context in bad)
    how = f"make ship NODE={names[-1]}" if images else "make image"
    return Failed("the engine image everywhere", found, names, how)


@CHECKS.check("DOC-IMG-02", "it is one image", warning=True)
def _one_image(evidence: Evidence) -> Outcome:
    """DOC-IMG-03, DOC-IMG-04 and the configuration checks say what a difference means.

    Containers that run keep their image until the next `make up`.
    """
    images = {e.context: e.image for e in evidence.asked if e.image is not None}
    if len(images) < 2:
        return alone(evidence, images)
    different = [(a, b) for a, b in combinations(images, 2) if not images[a].is_same_as(images[b])]
    if not different:
        return Passed(next(iter(images.values())).short_id)
    found = pairs({context: image.short_id for context, image in images.items()}, different)
    names = members(evidence, [different[0][1]])
    return Failed("one image id", found, names, f"make ship NODE={names[-1]}")


@CHECKS.check("DOC-IMG-03", "the versions inside are the same", ("DOC-IMG-01",))
def _one_set_of_versions(evidence: Evidence) -> Outcome:
    """LMCache's messages differ from version to version, and so may its keys."""
    found = {
        name: ", ".join(f"{package} {version}" for package, version in sorted(facts.versions.items()))
        for name, facts in evidence.seen.items()
    }
    return same(evidence, "set of versions", found, "run one image everywhere: make ship, or make image")


@CHECKS.check("DOC-IMG-04", "it carries the patches", ("DOC-IMG-01",))
def _patched(evidence: Evidence) -> Outcome:
    """Those that this version of the tool knows for the device ([patches.md](patches.md))."""
    expected = expected_patches(evidence.stack.device)
    missing = {name: set(expected) - set(facts.patches) for name, facts in evidence.seen.items()}
    bad = {name: f"{', '.join(sorted(lacks))} missing" for name, lacks in missing.items() if lacks}
    fix = "make image, then make ship where it is not built"
    return each(evidence, bad, ", ".join(expected), fix)
