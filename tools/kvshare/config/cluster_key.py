"""The cluster's key, by which nodes know each other: the user's own file, or one that `kvshare up` makes."""

import os
import re
import secrets
from pathlib import Path

from kvshare.errors import KvshareError

NAME = "CLUSTER_KEY_FILE"
OFF = "off"
MADE = Path(".kvshare/cluster.key")  # under the checkout, where .env names none
DIGITS = 64


def checked(key: str, where: str, path: Path | None = None) -> str:
    """Return the key; KvshareError if it is none, or if others than its owner may read the file at ``path``.

    Args:
        where: what the user has set, for the sentence.
    """
    if not re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", key):
        raise KvshareError(
            f"{where} must hold one key, {DIGITS} hexadecimal digits, and holds {len(key)} characters: "
            f"make one with (umask 077; openssl rand -hex {DIGITS // 2} > {path or 'cluster.key'})."
        )
    if path and path.stat().st_mode & 0o077:
        raise KvshareError(f"{where} can be read by others than its owner: chmod 600 {path}.")
    return key


def make(path: Path) -> bool:
    """Make a file with a key that its owner alone can read, unless there is one; return whether it did."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(file, "w") as stream:
        stream.write(f"{secrets.token_hex(DIGITS // 2)}\n")
    return True


def replace(path: Path) -> None:
    """Put another key into the file, which holds the old one or the new one at any moment."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)  # of a rotation that was interrupted
    make(beside)
    beside.replace(path)
