"""`python -m tests.rig`: the rig for people."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from tests.rig import engines, network
from tests.rig.network import DECODE, HOSTS, PREFILL, Host, RigError

BY_NAME: Mapping[str, Host] = {host.name: host for host in HOSTS}
SETTINGS: Mapping[str, str] = {
    "DEVICE": "cpu",
    "COMPOSE_FILE": "compose.yaml:compose.cpu.yaml",
    "PREFILL_HOST": PREFILL.address,
    "DECODE_HOST": DECODE.address,
    "PREFILL_CONTEXT": engines.context_of(PREFILL),
    "DECODE_CONTEXT": engines.context_of(DECODE),
}
ENV_FILE = network.STATE / "env"
HOST = click.argument("host", type=click.Choice(list(BY_NAME)))


class Group(click.Group):
    """Says what went wrong in a sentence."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except RigError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=Group)
def main() -> None:
    """Two machines on one, each with a Docker engine and an address of its own."""
    if os.geteuid() != 0:
        raise click.ClickException("the rig makes network namespaces, which needs root: type sudo make rig.")
    network.require("ip", "nsenter", "dockerd")


@main.command()
@click.option("--decode-nodes", type=click.IntRange(1, 3), default=1, show_default=True)
def up(decode_nodes: int) -> None:
    """Make the network, start the engines, and load this machine's images into them."""
    hosts = engines.HOSTS[: 1 + decode_nodes]
    with network.claimed():
        network.up()
        for host in hosts:
            click.echo(f"rig: {host.name} is {host.address}, context {engines.context_of(host)}", err=True)
            engines.start(host)
        engines.load_images(hosts)
    lines = "\n".join(f"{name}={value}" for name, value in settings_for(decode_nodes).items())
    ENV_FILE.write_text(lines + "\n")
    click.echo(f"rig: for this shell alone, instead of .env: set -a; . {ENV_FILE}; set +a", err=True)
    click.echo(lines)


def settings_for(decode_nodes: int) -> dict[str, str]:
    """Return what `.env` would hold for the rig with that many decode nodes."""
    if decode_nodes == 1:
        return dict(SETTINGS)
    nodes = engines.HOSTS[1 : 1 + decode_nodes]
    return {
        **SETTINGS,
        "DECODE_HOSTS": ",".join(node.address for node in nodes),
        "DECODE_CONTEXTS": ",".join(map(engines.context_of, nodes)),
    }


@main.command()
def status() -> None:
    """Show each host: its cable, its engine, and what runs there."""
    for host in HOSTS:
        cable = "cut" if network.is_cut(host) else "shaped" if network.is_shaped(host) else "whole"
        runs = "no engine"
        if host in engines.HOSTS and engines.is_running(host):
            names = engines.docker(host, "ps", "--format", "{{.Names}}").split()
            runs = f"context {engines.context_of(host)}: {', '.join(names) or 'no containers'}"
        click.echo(f"{host.name:<9} {host.address:<15} cable {cable:<7} {runs}")


@main.command()
@click.option("--purge", is_flag=True, help="Remove the engines' images too.")
def down(purge: bool) -> None:
    """Stop the engines and remove the network."""
    with network.claimed():
        for host in engines.HOSTS:
            engines.remove(host, purge)
        network.down()
        ENV_FILE.unlink(missing_ok=True)


@main.command()
@HOST
@click.option("--mbit", type=float, default=0.0, help="Megabits a second.")
@click.option("--delay-ms", type=float, default=0.0, help="Each way.")
@click.option("--loss-percent", type=float, default=0.0, help="Of frames, each way.")
def shape(host: str, mbit: float, delay_ms: float, loss_percent: float) -> None:
    """Limit a host's link; without options, give it its full speed again."""
    link = network.Link(mbit * 1e6 / 8, delay_ms / 1e3, loss_percent / 100)
    with network.claimed():
        if link == network.Link():
            network.unshape(BY_NAME[host])
        else:
            network.shape(BY_NAME[host], link)


@main.command()
@HOST
def partition(host: str) -> None:
    """Cut a host's cable."""
    with network.claimed():
        network.partition(BY_NAME[host])


@main.command()
@HOST
def heal(host: str) -> None:
    """Plug it in again."""
    with network.claimed():
        network.heal(BY_NAME[host])


@main.command(name="exec", context_settings={"ignore_unknown_options": True})
@HOST
@click.argument("command", nargs=-1, required=True)
def execute(host: str, command: tuple[str, ...]) -> None:
    """Run a command on a host's network, e.g. `exec operator curl http://192.168.110.13:9000`."""
    os.execvp("nsenter", BY_NAME[host].command(*command))


if __name__ == "__main__":
    main()
