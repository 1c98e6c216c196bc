"""Whether the containers run one image, with its patches."""

from __future__ import annotations

from kvshare.checking.patches import PATCHES
from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.verify.checks.shared import listed
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("images")


@CHECKS.check("IMG-01", "controller, prefill and decode run one image", warning=True)
def _one_image(evidence: Evidence) -> Outcome:
    images = {c.service: c.image_id for c in evidence.containers if c.image_id}
    if len(set(images.values())) <= 1:
        return Passed(next((_short(image) for image in images.values()), "")) if images else _nothing_runs()
    found = ", ".join(f"{service}={_short(image)}" for service, image in images.items())
    return Failed(
        "one image id", found, tuple(images), "make image, and `docker save | docker load` to the other node"
    )


@CHECKS.check("IMG-02", "the image carries the patches")
def _patched(evidence: Evidence) -> Outcome:
    running = [c for c in evidence.containers if c.state == "running"]
    if not running:
        return _nothing_runs()
    expected = PATCHES[evidence.stack.device]
    bad = [c for c in running if c.fingerprint is None or not set(expected) <= set(c.fingerprint.patch_ids)]
    if not bad:
        return Passed(", ".join(expected))
    found = "; ".join(
        f"{c.service}: {c.error}"
        if c.fingerprint is None
        else f"{c.service}: {listed(c.fingerprint.patch_ids)}"
        for c in bad
    )
    return Failed(
        f"{listed(expected)} everywhere", found, tuple(c.service for c in bad), "make image, then make up"
    )


def _nothing_runs() -> NotChecked:
    return NotChecked("no container of the stack runs")


def _short(image: str) -> str:
    return image.removeprefix("sha256:")[:12]
