"""`kvshare bench`: what reuse is worth here; and `bench compare`, `bench report`."""

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from kvshare.bench.results import Document
from kvshare.bench.spec import ARMS, WORTH_QUOTING, Goodput
from kvshare.commands import options
from kvshare.commands.options import Command
from kvshare.config import dotenv
from kvshare.config.settings import find_root, load_settings
from kvshare.errors import PROVEN, Group, KvshareError, did_you_mean

OF_ARMS = ("arms", "calibrate", "node", "rates", "shared_percent")
GOODPUT_LIMITS = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2e": "e2e_ms"}


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas, each within limits."""

    name = "numbers"

    def __init__(self, kind: type[float], least: float, most: float = float("inf")) -> None:
        self.kind, self.least, self.most = kind, least, most

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas.", param, ctx)
        for number in numbers:
            if not self.least <= number <= self.most:
                wanted = f"at least {self.least:g}" + (
                    "" if self.most == float("inf") else f" and at most {self.most:g}"
                )
                self.fail(f"{number:g} must be {wanted}.", param, ctx)
        return tuple(dict.fromkeys(numbers))


def numbers(
    flag: str, kind: type[float], least: float, most: float = float("inf"), **more: Any
) -> Callable[[Command], Command]:
    """Return an option for numbers within limits; one with a default shows it."""
    more = {"metavar": "N,M", "show_default": "default" in more, "type": Numbers(kind, least, most), **more}
    return click.option(*flag.split(), **more)


def parse_arms(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[str, ...]:
    """Return the arms in their own order; KvshareError names the nearest of an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ARMS:
            raise KvshareError(f"{name} is no arm{did_you_mean(name, ARMS)}")
    return tuple(arm for arm in ARMS if arm in names)


def parse_goodput(_ctx: click.Context, _param: click.Parameter, limits: tuple[str, ...]) -> Goodput | None:
    """Return the limits of ``ttft:500``-like texts; KvshareError for what is none of them."""
    found: dict[str, float] = {}
    for limit in limits:
        name, _, value = limit.partition(":")
        if name not in GOODPUT_LIMITS:
            raise KvshareError(f"--goodput {limit}: {name} is no limit{did_you_mean(name, GOODPUT_LIMITS)}")
        try:
            found[GOODPUT_LIMITS[name]] = float(value)
        except ValueError:
            raise KvshareError(f"--goodput {limit}: '{value}' is not milliseconds.") from None
    return Goodput(**found) if found else None


@click.group(invoke_without_command=True, cls=Group)
@click.option(
    "--arms", default=",".join(ARMS), show_default=True, metavar="A,B", callback=parse_arms,
    help="Which arms to run; see below.",
)  # fmt: skip
@numbers(
    "--prompt-tokens", int, 1,
    help="Prompt lengths: whole chunks plus a tail of 1 to 15 tokens.  [default: some that suit the model]",
)  # fmt: skip
@numbers("--output-tokens", int, 1, default="16", help="Tokens to generate.")
@numbers(
    "--concurrency", int, 1, 256, help="Requests in flight.  [default: 1; through the gateway 4]",
)  # fmt: skip
@numbers(
    "--rate rates", float, 0.001, metavar="R,S",
    help="Poisson arrivals a second, instead of a number in flight.",
)  # fmt: skip
@numbers(
    "--shared shared_percent", float, 0, 100, default="100", metavar="P,Q",
    help="Percent of the whole chunks that a reusing prompt shares with the cold one.",
)  # fmt: skip
@click.option(
    "--requests", type=click.IntRange(1), metavar="N",
    help="Requests of each arm in a repetition.  [default: one wave, or five seconds of arrivals]",
)  # fmt: skip
@click.option(
    "--through", type=click.Choice(["gateway"]),
    help="Compare the gateway with other ways to the same servers instead; see below.",
)  # fmt: skip
@click.option(
    "--repetitions", type=click.IntRange(1), default=WORTH_QUOTING, show_default=True, metavar="N",
    help="Repetitions that must count; fewer than five are not worth quoting.",
)  # fmt: skip
@click.option(
    "--goodput", metavar="L:MS", multiple=True, callback=parse_goodput,
    help="A limit for goodput: ttft:MS, tpot:MS or e2e:MS.",
)  # fmt: skip
@click.option(
    "--seed", type=int, metavar="N", help="Seed of all that is random; a used one's prompts are cached."
)
@click.option(
    "--node", metavar="NAME", help="Of several decode nodes this one, e.g. decode-2.  [default: the first]"
)
@options.wait(60.0, "How long servers that are still starting may take.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Where bench.json, requests.jsonl, summary.csv and report.html go.  [default: .kvshare/bench/TIME]",
)  # fmt: skip
@click.option(
    "--calibrate", is_flag=True,
    help="Put the P2P_MIN_TOKENS that follows from the measured costs into .env.",
)  # fmt: skip
@click.pass_context
def bench(ctx: click.Context, /, out: Path | None, **chosen: Any) -> None:
    """Measure what reuse is worth on the running stack, and from which prompt length on it pays.

    \b
    Arms, in alternating order, each on fresh random prompts:
      cold           prefill computes a prompt
      local-prefix   prefill again, from vLLM's own prefix cache
      local-lmcache  prefill again, from LMCache, with vLLM's own cache set aside by a cache salt
      peer           decode, from prefill's cache over the network
      recompute      decode computes another prompt: the control, it must move nothing

    \b
    What the figures mean, by the client's clock, token counts from `usage`:
      TTFT   request sent to first chunk with a token
      TBT    every gap between chunks with tokens, all of them pooled
      TPOT   (E2E - TTFT) / (output tokens - 1), one a request
      E2E    request sent to last chunk with a token
      req/s, tok/s  answered requests, output tokens, a second from first sending to last token
      goodput       requests a second that met every limit given
      ± ms   spread: the middle half's width of the repetitions' medians

    Where decode runs with P2P_MIN_TOKENS, its peer arm computes shorter prompts, and the report says so.
    --calibrate derives it from this pair's costs; without a threshold on, or shorter pulls are not seen.

    \b
    --through gateway sends three loads (documents that many ask about, conversations of 8 turns, unrelated
    prompts) three ways, in alternating order, each on fresh random prompts:
      gateway        it chooses: prefill first, then decode, which pulls
      round-robin    every server in turn, nothing shared but vLLM's own prefix cache: the control
      one-server     prefill does everything

    A repetition whose control moved a byte, or whose cold arm was more than 1 % warm, is discarded, said so,
    and repeated. Exit code 1 if no byte moved in the peer arm, 3 if a server went down; what was measured is
    kept, after Ctrl-C too. docs/bench.md says more.
    """
    if ctx.invoked_subcommand is not None:
        return
    if chosen["through"]:
        _refuse_options_of_arms(ctx)
    from kvshare.bench import outputs, report, run

    settings = load_settings(find_root())
    folder = out or settings.root / ".kvshare/bench" / f"{datetime.now():%Y%m%d-%H%M%S}"
    finished = run.run(settings, run.Options(**chosen), Console(stderr=True))
    outputs.write(folder, finished.document, finished.observed)
    (folder / outputs.REPORT).write_text(report.html(finished.document))
    outputs.show(finished.document, options.wide_console())
    click.echo(
        f"kvshare: {outputs.JSON}, {outputs.LINES}, {outputs.CSV}, {outputs.REPORT} in {folder}", err=True
    )
    if chosen["calibrate"] and finished.exit_code == PROVEN:
        _write_threshold(settings.root, finished.document)
    sentence = run.closing_sentence(finished.document, finished.exit_code)
    if sentence is not None:
        click.echo(f"Error: {sentence}", err=True)
    sys.exit(finished.exit_code)


def _refuse_options_of_arms(ctx: click.Context) -> None:
    """KvshareError for an option that means nothing where ways are compared."""
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(str(parameter.name)) == ParameterSource.COMMANDLINE
        if given and parameter.name in OF_ARMS:
            raise KvshareError(f"{parameter.opts[0]} is of arms and not of --through: leave one of them out.")


def _write_threshold(root: Path, document: Document) -> None:
    from kvshare.bench.calibrate import line

    path = dotenv.write(root, wanted := line(document))
    click.echo(f"kvshare: {path.name} has {wanted.split('  #')[0]}; type make up to apply it", err=True)


@bench.command("compare")
@click.argument("first", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="A.json")
@click.argument("second", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="B.json")
def compare_runs(first: Path, second: Path) -> None:
    """Compare two benchmarks: ratios, and whether a difference exceeds the runs' own spread."""
    from kvshare.bench import compare, outputs

    a, b = outputs.load(first), outputs.load(second)
    outputs.show_comparison(compare.compare(a, b), compare.warnings(a, b), options.wide_console())


@bench.command("report")
@click.argument(
    "documents", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True,
    metavar="A.json [B.json ...]",
)  # fmt: skip
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path), metavar="REPORT.html")
def write_report(documents: tuple[Path, ...], target: Path) -> None:
    """Write the HTML report of a bench.json anew, or one page of several, their plots side by side."""
    from kvshare.bench import outputs, report

    if target.suffix == ".json":
        raise KvshareError(f"{target} would be overwritten: name the page last, e.g. report.html.")
    runs = [(run_name(path), outputs.load(path)) for path in documents]
    target.write_text(report.html(runs[0][1]) if len(runs) == 1 else report.html_of_runs(runs))


def run_name(path: Path) -> str:
    """Return what a run is called beside others: its folder, of a file that is called as all are."""
    from kvshare.bench.outputs import JSON

    return path.resolve().parent.name if path.name == JSON else path.stem
