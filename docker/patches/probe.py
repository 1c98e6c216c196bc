"""Check by behaviour, not by text, that the patches of an image do what they are for.

exit codes: 0 every probe passed; 1 a probe failed; 2 wrong usage
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# Imported only when run: each needs its own part of the image.
PROBES = {
    "message-defaults": "probes.controller",
    "cpu-connector": "probes.cpu_connector",
    "packed-kv": "probes.packed_kv",
    "progress-delay": "probes.progress_delay",
    "lookup-loop": "probes.lookup_loop",
    "pull-loop": "probes.pull_loop",
    "lookup-timeout": "probes.lookup_timeout",
    "double-free": "probes.double_free",
    "same-rank": "probes.same_rank",
    "registration": "probes.registration",
    "full-sync": "probes.full_sync",
    "peer-loops": "probes.peer_loops",
    "dead-peer": "probes.dead_peer",
    "worker-address": "probes.worker_address",
    "p2p-threshold": "probes.p2p_threshold",
    "lanes": "probes.lanes",
    "peer-introduction": "probes.peer_introduction",
    "held-prefix": "probes.held_prefix",
    "export-interval": "probes.export_interval",
}
# Half a minute or more each, too long for every build; tests/patches runs them in the image, with all others.
SLOW = (
    "double-free",
    "registration",
    "full-sync",
    "peer-loops",
    "dead-peer",
    "p2p-threshold",
    "lanes",
    "peer-introduction",
)
SHARED = tuple(name for name in PROBES if name not in ("cpu-connector", "packed-kv", *SLOW))
OF_DEVICE = {
    "cpu": ("cpu-connector", *SHARED),
    "cuda": ("packed-kv", *SHARED),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=sorted(OF_DEVICE), required=True, help="the image's device")
    parser.add_argument("--only", choices=sorted(PROBES), help="run this probe alone, whatever the device")
    options = parser.parse_args(arguments)
    os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
    names = [options.only] if options.only else OF_DEVICE[options.device]
    return 1 if [name for name in names if not _passes(name)] else 0


def _passes(name: str) -> bool:
    try:
        importlib.import_module(PROBES[name]).probe()
    except Exception as error:  # a probe that breaks is a probe that failed; the build log needs its name
        print(f"{name}: FAILED. {type(error).__name__}: {error}", file=sys.stderr)
        return False
    print(f"{name}: ok")
    return True


if __name__ == "__main__":
    sys.exit(main())
