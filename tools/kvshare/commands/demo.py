"""`kvshare demo`: from nothing to a proven run on this machine."""

import sys

import click

from kvshare.commands import options
from kvshare.config.settings import CONTROLLER, SHARINGS, Settings, find_root
from kvshare.stack.members import Stack

ASK = """
Ask it:
curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 16}}'"""


@click.command()
@options.TIMEOUT
@click.option(
    "--sharing",
    type=click.Choice(SHARINGS),
    default=CONTROLLER,
    envvar="SHARING",
    show_default=True,
    help="LMCache in vLLM under a controller, or in a process of its own.",
)
def demo(timeout_s: float, sharing: str) -> None:
    """Build, start and verify on this machine alone, without a GPU.

    Starts the Docker engine where nothing else does, makes a base image where no registry can be reached
    and a demo model where none is, then ends like `make verify`. Ctrl-C stops whatever it started.
    """
    from kvshare.operate import demo as demonstration

    sys.exit(demonstration.run(find_root(), sharing, _require_ready, _verify, timeout_s))


def _require_ready(settings: Settings, stack: Stack) -> None:
    from kvshare.doctor import here
    from kvshare.operate.demo import CONTEXT
    from kvshare.site.engine import engine

    engine(CONTEXT).supported()
    here.require(settings, stack, stack.members)


def _verify(settings: Settings) -> int:
    """Verify, print the report, and how to go on."""
    from kvshare.progress import step
    from kvshare.site.compose import read_stack
    from kvshare.verify import checks, judgement, report
    from kvshare.verify import run as operator

    with step("Verify") as current:
        judged = operator.verify(settings, operator.Options(), checks.select((), ()), current.detail)
    report.render(judged, "table", sys.stdout)
    gateway = read_stack(settings).gateway
    if gateway is not None:
        click.echo(ASK.format(url=gateway.url))
    return judgement.exit_code_of(judged)
