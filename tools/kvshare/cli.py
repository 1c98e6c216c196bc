"""The command group; every command is a file of kvshare.commands."""

import os

import click

from kvshare import __version__
from kvshare.commands.bench import bench
from kvshare.commands.bench_client import bench_client
from kvshare.commands.bundle import bundle
from kvshare.commands.canary import canary, canary_client, canary_service, prometheus
from kvshare.commands.demo import demo
from kvshare.commands.doctor import doctor
from kvshare.commands.down import down
from kvshare.commands.engine import engine
from kvshare.commands.gateway import gateway
from kvshare.commands.image import image
from kvshare.commands.key import key
from kvshare.commands.logs import logs
from kvshare.commands.plan import plan
from kvshare.commands.ports import ports
from kvshare.commands.pull import pull
from kvshare.commands.push import push
from kvshare.commands.sbom_check import sbom_check
from kvshare.commands.ship import ship
from kvshare.commands.status import status
from kvshare.commands.top import top
from kvshare.commands.up import up
from kvshare.commands.verify import send_legs, verify
from kvshare.errors import Group
from kvshare.site.contexts import ssh_environment


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvshare")
def main() -> None:
    """Share KV cache between two vLLM servers, and know that it works.

    Reads compose.yaml and .env of the working directory or the nearest parent that has them (KVSHARE_ROOT
    overrides). Exit codes: 0 ok, 1 a check failed, 2 bad input, 3 could not check, 130 interrupted.
    """
    os.environ.update(ssh_environment())  # for every docker command and client that this one starts


for command in (
    demo, up, down, doctor, engine, image, ship, push, pull, sbom_check, status, top, logs, bundle, ports,
    verify, canary, bench, plan, key, send_legs, bench_client, gateway, canary_client, canary_service,
    prometheus,
):  # fmt: skip
    main.add_command(command)
