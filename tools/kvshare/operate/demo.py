"""`kvshare demo`: this machine, no GPU, from nothing to a proven run; Ctrl-C leaves nothing of it running."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from kvshare.config.settings import Settings, load_settings
from kvshare.operate import build, down, up
from kvshare.progress import step
from kvshare.site import dockerd
from kvshare.site.compose import read_stack
from kvshare.site.containers import Containers
from kvshare.stack.members import Stack

CONTEXT = "default"
# Whatever .env says about two machines and GPUs, the demo is this machine alone.
DECISIONS: Mapping[str, str] = {
    "DEVICE": "cpu",
    "TRANSPORT": "tcp",
    "PREFILL_HOST": "127.0.0.1",
    "DECODE_HOST": "127.0.0.1",
    "PREFILL_CONTEXT": CONTEXT,
    "DECODE_CONTEXT": CONTEXT,
}


def run(
    root: Path,
    sharing: str,
    require_ready: Callable[[Settings, Stack], None],
    verify: Callable[[Settings], int],
    timeout_s: float,
) -> int:
    """Start the engine, build, start the stack, verify; the exit code is the verification's.

    Args:
        sharing: as SHARING of `.env`, which does not count here either.
        require_ready: raises where something stands in the way, before what takes minutes begins.
        verify: proves the reuse on the running stack, prints its report, and returns its exit code.
        timeout_s: how long a server may take to become healthy.
    """
    os.environ.update(DECISIONS, SHARING=sharing)
    os.environ.pop("COMPOSE_FILE", None)  # it follows from these
    settings = load_settings(root)
    with _undone_if_interrupted(root, settings):
        with step("Start the Docker engine"):
            dockerd.start(root)
        stack = read_stack(settings)
        require_ready(settings, stack)
        build.build(settings, CONTEXT)
        up.start(settings, stack, "all", timeout_s)
        return verify(settings)


@contextmanager
def _undone_if_interrupted(root: Path, settings: Settings) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, stop what was not running before; a stack or an engine that was is left alone."""
    engine_before = dockerd.is_up()
    stack_before = engine_before and bool(Containers(read_stack(settings), settings).look())
    # SIGINT too: a shell that starts us in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        click.echo("kvshare: interrupted; stopping what this run started", err=True)
        if not stack_before and dockerd.is_up():
            down.stop(settings, read_stack(settings).contexts)
        if not engine_before:
            dockerd.stop(root)
        raise


def stop(root: Path, settings: Settings, stack: Stack) -> None:
    """Undo ``run`` or `kvshare up`: stop the stack, and the local engine where ``run`` started it.

    A local engine that is off is nothing to undo; one that the stack does not use is left alone.
    """
    local = CONTEXT in stack.contexts
    remote = [context for context in stack.contexts if context != CONTEXT]
    down.stop(settings, [*([CONTEXT] if local and dockerd.is_up() else []), *remote])
    if local and dockerd.stop(root):
        click.echo("kvshare: stopped the Docker engine that kvshare had started", err=True)
