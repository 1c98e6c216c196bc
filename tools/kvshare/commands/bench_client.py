"""The hidden `bench-client`: the part of `kvshare bench` that the client container runs."""

import sys
from pathlib import Path

import click

from kvshare import records
from kvshare.bench.observed import Line
from kvshare.bench.spec import BenchSpec
from kvshare.commands import options
from kvshare.config import keys


@click.command("bench-client", hidden=True)
@click.option("--spec", required=True, metavar="JSON", help="The task, as bench hands it over.")
@keys.api_option
@keys.cluster_option
def bench_client(spec: str, api_key_file: Path | None, cluster_key_file: Path | None) -> None:
    """Send a benchmark's requests and print what was seen, a line of JSON at a time; needs no Docker."""
    from kvshare.bench import session, ways

    task = options.task(BenchSpec, spec)
    run = session.run if task.gateway is None else ways.run
    run(task, keys.read(api_key_file, cluster_key_file), _emit, options.narrate)


def _emit(line: Line) -> None:
    sys.stdout.write(records.dumps(line) + "\n")
    sys.stdout.flush()
