"""docs/cli.md: the commands' own help."""

from __future__ import annotations

import click

from kvshare.cli import main

WIDTH = 100
HEADER = """# The kvshare tool

The commands' own `--help`, put here by `make generate`. Each command is a make target, which installs
the tool first: `kvshare verify --prompts 1` is typed `make verify ARGS="--prompts 1"`, or, once it is
there, `.venv/bin/kvshare verify --prompts 1`. NODE, FILE and DEVICE are variables of make's:
`make up NODE=decode`.
"""


def page() -> str:
    """Return the whole page: the tool, then each command that is not hidden, in alphabetical order."""
    parts = [HEADER, _help(main, "kvshare")]
    for name, command in sorted(main.commands.items()):
        if not command.hidden:
            parts.append(f"## kvshare {name}\n\n{_help(command, f'kvshare {name}')}")
    return "\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=WIDTH, help_option_names=["-h", "--help"])
    return f"```text\n{command.get_help(context).rstrip()}\n```\n"
