"""The patches that an image must carry: those of docker/patches, beside this tool."""

import re
from functools import cache
from pathlib import Path

from kvshare.errors import KvshareError

FOLDER = Path(__file__).parents[3] / "docker/patches"
_DEVICES = re.compile(r"^X-Kvshare-Devices: (.+)$", re.MULTILINE)


@cache
def expected_patches(device: str) -> tuple[str, ...]:
    """Return the ids of a device's patches, in the order of their series; KvshareError if there are none."""
    series = sorted(FOLDER.glob("*/series"))
    patches = [order.parent / name for order in series for name in order.read_text().split()]
    found = tuple(p.stem for p in patches if device in _DEVICES.findall(p.read_text())[0].split(", "))
    if not found:
        raise KvshareError(
            f"expected patches for {device} in {FOLDER} and found none: run kvshare's own clone."
        )
    return found
