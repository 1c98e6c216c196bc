"""How the keys get into the client container: through a pipe, a line each.

Not as Compose secrets, which cannot be put into a container whose root is read-only; and what goes through a
pipe is nowhere at rest.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kvshare.config.cluster_key import checked
from kvshare.contract import bearer_of
from kvshare.errors import KvshareError

# In the order in which they are read.
API, CLUSTER = "--api-key-file", "--cluster-key-file"


@dataclass(frozen=True)
class Keys:
    """What the servers' API asks for, and what the controller's HTTP does; None where nothing is asked."""

    api: str | None = None
    controller: str | None = None


def _option(name: str, variable: str, whose: str) -> Callable[[Any], Any]:
    kind = click.Path(path_type=Path, allow_dash=True)
    about = f"File with {whose} key; - reads it from a line of standard input."
    return click.option(name, envvar=variable, type=kind, help=about)


api_option = _option(API, "VLLM_API_KEY_FILE", "the servers' API")
cluster_option = _option(CLUSTER, "KVSHARE_CLUSTER_KEY_FILE", "the cluster's")


def handed(api: str, cluster: str) -> tuple[tuple[str, ...], str]:
    """Return the options by which a client reads those keys that are not empty, and what it reads then."""
    given = {option: key for option, key in ((API, api), (CLUSTER, cluster)) if key}
    options = tuple(word for option in given for word in (option, "-"))
    return options, "".join(f"{key}\n" for key in given.values())


def read(api_key_file: Path | None, cluster_key_file: Path | None) -> Keys:
    """Return the keys of these files; KvshareError if one cannot be read, or holds no key of its kind."""
    api, cluster = _text(api_key_file, "API"), _text(cluster_key_file, "cluster")
    if not cluster:
        return Keys(api or None)
    return Keys(api or None, bearer_of(checked(cluster, str(cluster_key_file))))


def _text(path: Path | None, whose: str) -> str:
    if path is None or str(path) == "":
        return ""
    try:
        return (sys.stdin.readline() if str(path) == "-" else path.read_text()).strip()
    except OSError as error:
        raise KvshareError(f"the {whose} key file {path} cannot be read: {error.strerror}.") from None
