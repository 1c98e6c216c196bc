"""Room on the disk where an engine of this machine keeps its data."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from kvshare.site import contexts

GIB = 1024**3


@dataclass(frozen=True)
class Room:
    """A folder, and the bytes that are free there."""

    folder: Path
    free: int


def room(context: str) -> Room | None:
    """Return the room for an engine's images and logs; None where the engine is another machine's.

    Raises:
        KvshareError: as ``contexts.read_engine``.
    """
    if not contexts.resolve(context).is_local:
        return None
    folder = Path(contexts.read_info(context)["DockerRootDir"])
    return Room(folder, shutil.disk_usage(folder if folder.exists() else "/").free)
