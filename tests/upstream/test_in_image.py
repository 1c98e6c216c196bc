"""LMCache's own tests run inside the CPU engine's image, while a stage of the Dockerfile is built."""

from __future__ import annotations

from tests.conftest import build_stage


def test_inside_the_image() -> None:
    build_stage("upstream-tested")
