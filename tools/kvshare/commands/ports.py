"""`kvshare ports`: which ports there are, and the firewall rules for them."""

import json

import click

from kvshare.config.settings import find_root, load_settings


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "nft", "ufw", "json"]),
    default="table",
    show_default=True,
    help="A table, nftables rules, ufw commands, or JSON.",
)
@click.option(
    "--node",
    metavar="NAME",
    help="Only the ports on this node's machine; rules need it where there are several machines.",
)
def ports(form: str, node: str | None) -> None:
    """List every port that the stack listens on, and who has to reach it; or the firewall rules for it.

    The rules open each port to the nodes that need it and the API to CLIENTS of .env, and close kvshare's
    ports to everyone else; other ports are left alone. Nothing is changed here: load them on the machine
    itself, with `nft -f` or `sh`.
    """
    from kvshare.site.compose import read_stack
    from kvshare.stack import firewall
    from kvshare.stack import ports as listing

    settings = load_settings(find_root())
    stack = read_stack(settings)
    if form in ("nft", "ufw"):
        machine = firewall.machine_of(stack, node, settings.clients)
        click.echo(firewall.nft(machine) if form == "nft" else firewall.ufw(machine), nl=False)
        return
    found = listing.registry(stack)
    if node is not None:
        found = listing.of_machine(found, listing.host_of(node, stack))
    if form == "json":
        click.echo(json.dumps([listing.as_record(port, stack) for port in found], indent=2))
    else:
        listing.print_table(found)
