"""Apply kvshare's patches to the installed packages, or print their documentation.

exit codes: 0 every patch is in place (applied now or before); 1 a guard refused, nothing was written;
2 wrong usage; 3 a file could not be written, what was written was taken back
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import cpu_dispatch
import dead_peer
import double_free
import export_interval
import full_sync
import held_prefix
import lanes
import lookup_loop
import lookup_timeout
import message_defaults
import p2p_threshold
import packed_kv
import peer_introduction
import peer_loops
import progress_delay
import pull_loop
import registration
import same_rank
import worker_address
from guard import Change, RefusedError, commit, plan
from patch import Patch

import docs

PATCHES: tuple[Patch, ...] = (
    message_defaults.PATCH,
    packed_kv.PATCH,
    cpu_dispatch.PATCH,
    progress_delay.PATCH,
    lookup_loop.PATCH,
    pull_loop.PATCH,
    lookup_timeout.PATCH,
    double_free.PATCH,
    same_rank.PATCH,
    registration.PATCH,
    full_sync.PATCH,
    peer_loops.PATCH,
    dead_peer.PATCH,
    worker_address.PATCH,
    p2p_threshold.PATCH,
    lanes.PATCH,
    peer_introduction.PATCH,
    held_prefix.PATCH,
    export_interval.PATCH,
)
DEVICES = ("cpu", "cuda")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.docs:
        print(docs.render(PATCHES), end="")
        return 0
    patches = [patch for patch in PATCHES if options.device in patch.devices]
    try:
        changes = plan(patches, options.site)
        commit(changes)
        if options.record:
            write_record(options.record, changes)
    except RefusedError as refusal:
        print(refusal, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The patches were not applied: {error}.", file=sys.stderr)
        return 3
    for change in changes:
        state = "already applied" if change.applied else "applied"
        print(f"{change.patch_id}: {state}, {change.relative} sha256 {change.sha256_after}")
    return 0


def write_record(path: Path, changes: Iterable[Change]) -> None:
    """Write what the image carries: a list of {id, file, sha256_before (null: added by us), sha256_after}."""
    entries = [
        {
            "id": change.patch_id,
            "file": change.relative,
            "sha256_before": change.sha256_before,
            "sha256_after": change.sha256_after,
        }
        for change in changes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--device", choices=DEVICES, help="apply the patches of this device's image")
    what.add_argument("--docs", action="store_true", help="print docs/patches.md")
    parser.add_argument("--site", type=Path, help="folder that holds the packages (default: this Python's)")
    parser.add_argument("--record", type=Path, help="write what was applied to this JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
