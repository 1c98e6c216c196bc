"""Room on the disk where an engine of this machine keeps its data."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from kvshare.site.engine import engine

GIB = 1024**3


@dataclass(frozen=True)
class Room:
    """A folder, and the bytes that are free there."""

    folder: Path
    free: int


def room(context: str) -> Room | None:
    """Return the room for an engine's images and logs; None where the engine is another machine's.

    Raises:
        KvshareError: as ``Engine.about``.
    """
    if not engine(context).endpoint.is_local:
        return None
    folder = Path(engine(context).about().root)
    return Room(folder, shutil.disk_usage(folder if folder.exists() else "/").free)
