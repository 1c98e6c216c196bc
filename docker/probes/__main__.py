"""Check by behaviour, not by text, that the patches of an image do what they are for.

exit codes: 0 every probe passed; 1 a probe failed; 2 wrong usage
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from guard.series import DEVICES, Patch, load_all

# Half a minute or more each, too long for every build; tests/patches runs them in the image, with all others.
SLOW = (
    "double-free",
    "registration",
    "sync-unfrozen",
    "peer-loops",
    "peer-connect",
    "peer-answer",
    "quarantine",
    "peer-transfer",
    "peer-heartbeat",
    "p2p-threshold",
    "lanes",
    "peer-introduction",
    "descriptors",
    "cluster-key",
    "mp-late-read",
    "mp-cluster-key",
    "mp-http-key",
    "mp-served",
    "mp-lookup-left",
    "mp-server-gone",
    "mp-dead-writer",
    "mp-peer-restart",
    "mp-handshake",
    "mp-bad-messages",
    "mp-descriptors",
    "mp-make-room",
    "pull-pieces",
    "shared-pull",
    "kv-checksum",
)
PATCHES = {patch.id: patch for series in load_all() for patch in series.patches}


def quick(device: str) -> list[Patch]:
    """The patches whose probes run while a device's image is built."""
    return [patch for patch in PATCHES.values() if device in patch.devices and patch.id not in SLOW]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m probes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=DEVICES, required=True, help="the image's device")
    parser.add_argument("--only", choices=PATCHES, help="run this patch's probe alone, whatever the device")
    options = parser.parse_args(arguments)
    os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
    patches = [PATCHES[options.only]] if options.only else quick(options.device)
    return 1 if [patch for patch in patches if not _passes(patch)] else 0


def _passes(patch: Patch) -> bool:
    # Imported only when run: each needs its own part of the image.
    try:
        importlib.import_module(f"probes.{patch.probe}").probe()
    except Exception as error:  # a probe that breaks is a probe that failed; the build log needs its name
        print(f"{patch.id}: FAILED. {type(error).__name__}: {error}", file=sys.stderr)
        return False
    print(f"{patch.id}: ok")
    return True


if __name__ == "__main__":
    sys.exit(main())
