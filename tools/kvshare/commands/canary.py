"""The hidden `canary` and `prometheus`: what the services of the profile observe run."""

import os
from pathlib import Path

import click

from kvshare.config import api_key, threshold
from kvshare.config.threshold import Threshold
from kvshare.errors import KvshareError
from kvshare.watch.watched import Node, Watched


@click.command(hidden=True)
@click.option("--dtype", envvar="KVSHARE_OBSERVE_DTYPE", default="auto", show_default=True, help="Of the KV.")
@api_key.option
def canary(dtype: str, api_key_file: Path | None) -> None:
    """Ask each decode node every few minutes for a fresh prompt's KV, and show as metrics how it ended."""
    from kvshare.verify.canary import Pair, State, look
    from kvshare.watch.exporter import Canaries, serve

    watched, key = _watched(), api_key.read(api_key_file)
    pulls_from = _threshold(watched.min_tokens)

    def sing(node: Node, canaries: Canaries) -> None:
        if pulls_from.tokens is None:  # it never pulls, so there is nothing to ask for
            return
        owner, ranks = watched.prefill.instance, len(watched.prefill.peer_init_urls)
        pair = Pair(watched.prefill.url, node.url, watched.controller, owner, ranks, dtype, pulls_from)
        found = look(pair, key or None)
        click.echo(f"canary: {node.name}: {found.state}: {found.sentence}")
        canaries.ended(node.name, found.state, {"pulled": found.pulled_s, "computed": found.computed_s})

    serve(watched, State, sing)


@click.command(hidden=True)
def prometheus() -> None:
    """Write Prometheus's configuration and alert rules from this environment, and become Prometheus."""
    from kvshare.watch.prometheus import become

    become(_watched())


def _watched() -> Watched:
    try:
        return Watched.of(os.environ)
    except (KeyError, ValueError) as error:
        raise KvshareError(f"the service's environment does not tell {error}: see compose.yaml.") from None


def _threshold(value: str) -> Threshold:
    return Threshold(None if value == threshold.NEVER else int(value))
