"""The client container: started on the prefill node's engine; evidence on stdout, progress on stderr."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from kvshare.config import api_key
from kvshare.config.settings import Settings
from kvshare.site import compose
from kvshare.stack.members import Stack

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def command(
    stack: Stack, settings: Settings, subcommand: str, spec: DataclassInstance, *options: str
) -> list[str]:
    """Return the command line that runs ``subcommand`` in the client container on a task.

    Args:
        spec: the task, a data class; it travels as JSON. The API key is expected on standard input.
        options: of `docker compose run`.
    """
    return compose.command(
        stack.prefill.context,
        *("--progress", "quiet", "run", "--rm", "--no-deps", "-T", *options, "client"),
        *(subcommand, "--spec", json.dumps(asdict(spec)), *api_key.arguments(settings.api_key)),
    )
