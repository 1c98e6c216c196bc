"""`kvshare plan`: from which prompt length a pull would pay, by arithmetic."""

from collections.abc import Iterator
from dataclasses import replace

import click
from rich.table import Table

from kvshare.checking.rendering import table
from kvshare.commands.options import wide_console
from kvshare.cost import plan as planning
from kvshare.cost.model import verdict

PLAN_CHUNK = 256


@click.command()
@click.option(
    "--model",
    default="Llama-3.1-8B",
    show_default=True,
    metavar="NAME",
    help="A model's name, or its config.json.",
)
@click.option(
    "--gpu",
    default="H100",
    show_default=True,
    metavar="NAME",
    help="A GPU's name, or its dense bf16 TFLOP/s.",
)
@click.option(
    "--link", default="25GbE", show_default=True, metavar="NAME", help="A link's name, or its usable GB/s."
)
@click.option(
    "--mfu", type=click.FloatRange(0.01, 1), default=planning.DEFAULT_MFU, show_default=True, metavar="SHARE",
    help="Share of the GPU's peak that a prefill reaches.",
)  # fmt: skip
@click.option(
    "--t0-ms", type=click.FloatRange(0), default=planning.DEFAULT_T0_MS, show_default=True, metavar="MS",
    help="What a pull costs before its first byte.",
)  # fmt: skip
@click.option(
    "--kv-cache-dtype", type=click.Choice(("auto", "fp8")), default="auto", show_default=True,
    help="How KV is kept; fp8 halves the bytes of a 16-bit model.",
)  # fmt: skip
def plan(model: str, gpu: str, link: str, mfu: float, t0_ms: float, kv_cache_dtype: str) -> None:
    """Say from which prompt length a pull would pay, for a model, a GPU and a link; needs no server.

    Arithmetic, not measurement: `make bench` measures. Formulas and sources: docs/bench.md.
    """
    chosen = planning.with_kv(planning.find_model(model), kv_cache_dtype)
    flops = planning.find("--gpu", gpu, planning.GPUS, 1e12)
    machine = planning.Machine(flops, mfu, planning.find("--link", link, planning.LINKS, 1e9), t0_ms / 1000)
    tokens = planning.tokens_to_pay(chosen, machine)
    click.echo(
        f"{model} on {gpu} over {link}: {verdict(tokens, PLAN_CHUNK, None)} "
        f"({chosen.kv_bytes_per_token / 1024:.0f} KiB of KV a token, {machine.bytes_per_s / 1e9:g} GB/s, "
        f"{t0_ms:g} ms a pull, MFU {mfu:g})"
    )
    click.echo("\nTokens from which a pull pays, over the same link; - where it never does:")
    wide_console().print(_plan_table(machine, kv_cache_dtype))
    click.echo(f"\n{model}, by GPU and link:")
    wide_console().print(_link_table(chosen, machine))


def _plan_table(machine: planning.Machine, kv_cache_dtype: str) -> Table:
    shown = table(("model",), ("KiB/token", *planning.GPUS), gap=3)
    for name, known in planning.MODELS.items():
        model = planning.with_kv(known, kv_cache_dtype)
        shown.add_row(name, f"{model.kv_bytes_per_token / 1024:.0f}", *_by_gpu(model, machine))
    return shown


def _link_table(model: planning.Architecture, machine: planning.Machine) -> Table:
    shown = table(("link",), ("GB/s", *planning.GPUS), gap=3)
    for name, speed in planning.LINKS.items():
        shown.add_row(name, f"{speed / 1e9:g}", *_by_gpu(model, replace(machine, bytes_per_s=speed)))
    return shown


def _by_gpu(model: planning.Architecture, machine: planning.Machine) -> Iterator[str]:
    """Yield the tokens from which a pull pays with each GPU; - where it never does."""
    for flops in planning.GPUS.values():
        found = planning.tokens_to_pay(model, replace(machine, flops=flops))
        if found is None:
            yield "-"
        else:
            yield f"{found / 1000:.1f}K" if found < 99_500 else f"{found / 1000:.0f}K"
