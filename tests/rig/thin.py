"""`docker save … | thin.py LAYER … | docker load`: leaves out layers that the engine has.

A layer is named by its digest, as in an image's RootFS. `docker load` reads the files of those alone that it
lacks.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Collection
from typing import BinaryIO


def thin(source: BinaryIO, target: BinaryIO, known: Collection[str]) -> None:
    """Copy an archive of images, but for these layers; each lies in a file that has its digest's name."""
    files = {f"blobs/{layer.replace(':', '/')}" for layer in known}
    with tarfile.open(fileobj=source, mode="r|") as read, tarfile.open(fileobj=target, mode="w|") as write:
        for member in read:
            if member.name not in files:
                write.addfile(member, read.extractfile(member) if member.isfile() else None)


if __name__ == "__main__":
    thin(sys.stdin.buffer, sys.stdout.buffer, sys.argv[1:])
