"""What an engine has of an image is not carried to it again."""

from __future__ import annotations

import io
import tarfile

from tests.rig.thin import thin


def archive(*names: str) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    stream.seek(0)
    return stream


def test_layers_that_are_known_are_left_out_and_all_else_is_as_it_was() -> None:
    target = io.BytesIO()
    thin(archive("blobs/sha256/aa", "blobs/sha256/bb", "manifest.json"), target, {"sha256:aa", "sha256:cc"})
    target.seek(0)
    with tarfile.open(fileobj=target) as left:
        contents = {member.name: left.extractfile(member).read().decode() for member in left}  # type: ignore[union-attr]
    assert contents == {name: name for name in ("blobs/sha256/bb", "manifest.json")}
