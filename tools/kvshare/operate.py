"""The commands that build, start and stop the stack, from the operator's machine."""

from __future__ import annotations

import sys

import click

from kvshare import deliver, doors, observe
from kvshare.bench import commands
from kvshare.doctor.command import doctor
from kvshare.settings import Settings, find_root, load_settings, validate_node

TIMEOUT = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the services may take to become healthy.",
)


@click.command()
@TIMEOUT
def demo(timeout_s: float) -> None:
    """Build, start and verify on this machine alone, without a GPU.

    Starts the Docker engine where nothing else does, makes a base image where no registry can be reached
    and a demo model where none is, then ends like `kvshare verify`. Ctrl-C stops whatever it started.
    """
    from kvshare import demo as demonstration

    sys.exit(demonstration.run(find_root(), _verify, timeout_s))


@click.command()
@click.argument("node", default="all")
@TIMEOUT
def up(node: str, timeout_s: float) -> None:
    """Start NODE and wait until it is healthy: prefill (brings the controller), decode, or all.

    Of several decode nodes, decode means each, and decode-2 the second. Says which engine and host it acts on
    before it does.
    """
    from kvshare import contexts, lifecycle
    from kvshare.stack import read_stack

    settings = load_settings(find_root())
    validate_node(node, settings)
    stack = read_stack(settings)
    members = lifecycle.members_of(stack, node)
    engines = {engine.context: engine for engine in contexts.read_engines(m.context for m in members)}
    for member in members:
        engine = engines[member.context]
        click.echo(
            f"kvshare: {member.name} goes to {member.host}, context {member.context} "
            f"(Docker {engine.version} on {engine.host})",
            err=True,
        )
    lifecycle.up(settings, stack, node, timeout_s)


@click.command()
def down() -> None:
    """Stop and remove the stack's containers, on every context.

    A Docker engine that `kvshare demo` or `kvshare engine start` had started is stopped too.
    Images and volumes stay.
    """
    from kvshare import demo as demonstration
    from kvshare.stack import read_stack

    settings = load_settings(find_root())
    demonstration.stop(settings.root, settings, read_stack(settings))


@click.group()
def engine() -> None:
    """The local Docker engine, where nothing else starts it (no systemd)."""


@engine.command("start")
def engine_start() -> None:
    """Start the Docker engine unless one answers."""
    from kvshare import dockerd
    from kvshare.progress import step

    with step("Start the Docker engine"):
        dockerd.start(find_root())


@engine.command("stop")
def engine_stop() -> None:
    """Stop the Docker engine if `kvshare engine start` or `kvshare demo` started it."""
    from kvshare import dockerd

    stopped = dockerd.stop(find_root())
    click.echo(
        f"kvshare: {'stopped the Docker engine' if stopped else 'no Docker engine of ours to stop'}", err=True
    )


COMMANDS = (
    *(demo, up, down, doctor, engine),
    *(deliver.image, deliver.ship, deliver.push, deliver.pull),
    *(observe.status, observe.logs, observe.bundle, doors.ports),
    *commands.COMMANDS,
)


def _verify(settings: Settings) -> int:
    from kvshare import checks, judgement, report
    from kvshare import verify as operator
    from kvshare.progress import step

    with step("Verify") as current:
        judged = operator.verify(settings, operator.Options(), checks.select((), ()), current.detail)
    report.render(judged, "table", sys.stdout)
    return judgement.exit_code_of(judged)
