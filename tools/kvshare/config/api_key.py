"""How the servers' API key gets into the client container: through a pipe.

Not as a Compose secret, which cannot be put into a container whose root is read-only; and what goes through a
pipe is nowhere at rest.
"""

import sys
from pathlib import Path

import click

from kvshare.errors import KvshareError

OPTION = "--api-key-file"

option = click.option(
    OPTION,
    envvar="VLLM_API_KEY_FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="File with the servers' API key; - reads it from standard input.",
)


def arguments(key: str) -> tuple[str, ...]:
    """What the client container's command needs to read a key from standard input; nothing without a key."""
    return (OPTION, "-") if key else ()


def read(path: Path | None) -> str | None:
    """Return the key, if there is one; KvshareError if the file cannot be read."""
    if path is None or str(path) == "":
        return None
    try:
        return (sys.stdin.read() if str(path) == "-" else path.read_text()).strip()
    except OSError as error:
        raise KvshareError(f"the API key file {path} cannot be read: {error.strerror}.") from None
