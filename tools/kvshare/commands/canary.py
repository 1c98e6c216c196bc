"""`kvshare canary`: one canary now; and the hidden commands of its client and of the services of observe."""

import os
import sys
from pathlib import Path

import click

from kvshare import records
from kvshare.commands import options
from kvshare.config import keys, threshold
from kvshare.config.settings import find_root, load_settings
from kvshare.config.threshold import Threshold
from kvshare.errors import COULD_NOT_CHECK, FAILED, PROVEN, KvshareError
from kvshare.verify.canary import Finding, Pair, State, look
from kvshare.watch.watched import Node, Watched

CANNOT_TELL = (State.BLIND, State.UNANSWERED)


@click.command()
@click.option(
    "--node", metavar="NAME", help="Of several decode nodes this one, e.g. decode-2.  [default: all]"
)
def canary(node: str | None) -> None:
    """Ask each decode node once for a fresh prompt's KV, beside whatever traffic there is.

    What the service of `OBSERVE` does every few minutes, once and now: five short requests. `kvshare verify`
    proves more, and wants the servers for itself. Exit code 0 if decode took the KV from its peer and
    answered right, 1 if not, 3 if it was not answered, or could not tell wrong KV from right.
    """
    from kvshare.site.compose import read_stack
    from kvshare.site.containers import Containers
    from kvshare.verify.run import sing  # needs the Docker SDK, which the client image does without

    settings = load_settings(find_root())
    found: list[Finding] = []
    for pair in read_stack(settings).pairs(node):
        found.append(sing(Containers(pair, settings)))
        click.echo(f"{pair.decode.name}: {found[-1].state}: {found[-1].sentence}")
    sys.exit(exit_code_of(found))


def exit_code_of(found: list[Finding]) -> int:
    """Return one exit code for all: a failure before what could not be told, before a proof."""
    states = {one.state for one in found}
    if states - {State.PROVEN, *CANNOT_TELL}:
        return FAILED
    return COULD_NOT_CHECK if states - {State.PROVEN} else PROVEN


@click.command("canary-client", hidden=True)
@click.option("--spec", required=True, metavar="JSON", help="The task, as canary hands it over.")
@keys.api_option
@keys.cluster_option
def canary_client(spec: str, api_key_file: Path | None, cluster_key_file: Path | None) -> None:
    """Send one canary and print how it ended as JSON; needs no Docker."""
    given = keys.read(api_key_file, cluster_key_file)
    click.echo(records.dumps(look(options.task(Pair, spec), given)))


@click.command("canary-service", hidden=True)
@click.option("--dtype", envvar="KVSHARE_OBSERVE_DTYPE", default="auto", show_default=True, help="Of the KV.")
@keys.api_option
@keys.cluster_option
def canary_service(dtype: str, api_key_file: Path | None, cluster_key_file: Path | None) -> None:
    """Ask each decode node every few minutes for a fresh prompt's KV, and show as metrics how it ended."""
    from kvshare.watch.exporter import Canaries, serve

    watched, given = _watched(), keys.read(api_key_file, cluster_key_file)
    pulls_from = _threshold(watched.min_tokens)

    def sing(node: Node, canaries: Canaries) -> None:
        if pulls_from.tokens is None:  # it never pulls, so there is nothing to ask for
            return
        owner, ranks = watched.prefill.instance, len(watched.prefill.peer_init_urls)
        pair = Pair(watched.prefill.url, node.url, watched.controller, owner, ranks, dtype, pulls_from)
        found = look(pair, given)
        click.echo(f"canary: {node.name}: {found.state}: {found.sentence}")
        canaries.ended(node.name, found.state, {"pulled": found.pulled_s, "computed": found.computed_s})

    serve(watched, State, sing, given)


@click.command(hidden=True)
@keys.cluster_option
def prometheus(cluster_key_file: Path | None) -> None:
    """Write Prometheus's configuration and alert rules from this environment, and become Prometheus."""
    from kvshare.watch.prometheus import become

    become(_watched(), keys.read(None, cluster_key_file))


def _watched() -> Watched:
    try:
        return Watched.of(os.environ)
    except (KeyError, ValueError) as error:
        raise KvshareError(f"the service's environment does not tell {error}: see compose.yaml.") from None


def _threshold(value: str) -> Threshold:
    return Threshold(None if value == threshold.NEVER else int(value))
