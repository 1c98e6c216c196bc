"""Whether the containers run one image, with its patches."""

from kvshare.checking.patches import expected_patches
from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.verify.checks.shared import listed
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("images")
_NOTHING_RUNS = NotChecked("no container of the stack runs")


@CHECKS.check("IMG-01", "the containers run one image", warning=True)
def _one_image(evidence: Evidence) -> Outcome:
    """Two engines that each built the image have two ids for one content, which IMG-02 and CONF-08 judge."""
    images = {c.service: c.image_id.removeprefix("sha256:")[:12] for c in evidence.containers if c.image_id}
    if not images:
        return _NOTHING_RUNS
    if len(set(images.values())) == 1:
        return Passed(next(iter(images.values())))
    found = ", ".join(f"{service}={image}" for service, image in images.items())
    ship = f"make ship NODE={evidence.stack.decode.name}, then " if len(evidence.stack.contexts) > 1 else ""
    return Failed("one image id", found, tuple(images), f"{ship}make up")


@CHECKS.check("IMG-02", "the image carries the patches")
def _patched(evidence: Evidence) -> Outcome:
    """[patches.md](patches.md) says what each is for; the container's fingerprint lists those it has.

    Without a fingerprint it is no engine of kvshare, or has not started yet.
    """
    running = [c for c in evidence.containers if c.state == "running"]
    if not running:
        return _NOTHING_RUNS
    expected = expected_patches(evidence.stack.device)
    bad = {
        c.service: c.error if c.fingerprint is None else listed(c.fingerprint.patch_ids)
        for c in running
        if c.fingerprint is None or not set(expected) <= set(c.fingerprint.patch_ids)
    }
    if not bad:
        return Passed(", ".join(expected))
    found = "; ".join(f"{service}: {patches}" for service, patches in bad.items())
    return Failed(f"{listed(expected)} everywhere", found, tuple(bad), "make image, then make up")
