"""Apply kvshare's patches to the installed packages, or print their documentation.

exit codes: 0 every patch is in place (applied now or before); 1 a guard refused, nothing was written;
2 wrong usage; 3 a file could not be written, what was written was taken back
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from guard import docs, upstream
from guard.apply import Change, RefusedError, commit, plan
from guard.series import DEVICES, FOLDER, Series, SeriesError, load_all


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        every = load_all(options.patches)
        if options.docs:
            print(docs.render(every), end="")
            return 0
        if options.upstream:
            upstream.write(every, options.upstream)
            return 0
        changes = plan(every, options.device, options.site)
        commit(changes)
        if options.record:
            write_record(options.record, every, changes)
    except (RefusedError, SeriesError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The patches were not applied: {error}.", file=sys.stderr)
        return 3
    for patch_id, change in _in_order(every, changes):
        state = "already applied" if change.applied else "applied"
        print(f"{patch_id}: {state}, {change.name} sha256 {change.sha256_after}")
    return 0


def write_record(path: Path, every: Iterable[Series], changes: Sequence[Change]) -> None:
    """Write what the image carries: a list of {id, file, sha256_before (null: added by us), sha256_after}.

    The hashes are those of the file before and after all its patches.
    """
    entries = [
        {
            "id": patch_id,
            "file": change.name,
            "sha256_before": change.sha256_before,
            "sha256_after": change.sha256_after,
        }
        for patch_id, change in _in_order(every, changes)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=2) + "\n")


def _in_order(every: Iterable[Series], changes: Sequence[Change]) -> Iterator[tuple[str, Change]]:
    """Each patch, in the order of the series, with each change that it has a part in."""
    for series in every:
        for patch in series.patches:
            yield from ((patch.id, change) for change in changes if patch.id in change.patches)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--device", choices=DEVICES, help="apply the patches of this device's image")
    what.add_argument("--docs", action="store_true", help="print docs/patches.md")
    what.add_argument("--upstream", type=Path, help="write docs/upstream to this folder")
    parser.add_argument(
        "--patches", type=Path, default=FOLDER, help="where the series are (default: docker/patches)"
    )
    parser.add_argument("--site", type=Path, help="folder that holds the packages (default: this Python's)")
    parser.add_argument("--record", type=Path, help="write what was applied to this JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
