"""`kvshare verify`: prove the reuse; and the hidden `legs`, the part of it that the client container runs."""

import contextlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kvshare import records
from kvshare.commands import options
from kvshare.commands.options import narrate
from kvshare.config import keys
from kvshare.config.settings import find_root, load_settings
from kvshare.errors import KvshareError
from kvshare.verify import legs
from kvshare.verify.evidence import Evidence, Spec


@click.command()
@options.report_format("verify.schema.json")
@options.wait(60.0, "One deadline for everything that is still starting.")
@options.ONLY
@options.SKIP
@click.option(
    "--prompts",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="Prompts to prove it with, besides one to warm up and one to control.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Length of each: whole chunks plus a tail of 1 to 15 tokens.  "
    "[default: 1546, or as many as decode's P2P_MIN_TOKENS asks for]",
)
@click.option(
    "--seed", type=int, metavar="N", help="Seed of the prompts; a used one's prompts are cached already."
)
@click.option(
    "--deep",
    is_flag=True,
    help="Try chunk edges, salts, adapters, crowds, preemption and hang-ups as well: a minute or more.",
)
@click.option("--node", metavar="NAME", help="Of several decode nodes only this one, e.g. decode-2.")
@options.OUTPUT_FILE
@click.option(
    "--save-evidence",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save what was seen, to be judged again by --from-evidence.",
)
@click.option(
    "--from-evidence",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Judge saved evidence; nothing is asked or sent.",
)
def verify(
    output: str,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    deep: bool,
    output_file: Path | None,
    save_evidence: Path | None,
    from_evidence: Path | None,
    **chosen: Any,
) -> None:
    """Prove that decode serves prompts from prefill's KV cache, with the right answers.

    Exit code 0 only if nothing failed; `docs/checks.md` explains every check.
    """
    from kvshare.verify import checks, judgement, report
    from kvshare.verify import run as operator  # needs the Docker SDK, which the client image does without

    selected = checks.select(only, skip, deep)
    judged: tuple[judgement.Judgement, ...]
    if from_evidence is not None:
        evidence = _read_evidence(from_evidence)
        if evidence.is_deep and not only:
            selected = checks.select(only, skip, deep=True)
        judged = (judgement.judge(evidence, selected),)
    else:
        settings = load_settings(find_root())
        if save_evidence is not None and chosen["node"] is None and len(settings.decode_nodes) > 1:
            raise click.UsageError("--save-evidence holds one decode node's: add --node.")
        judged = operator.verify(settings, operator.Options(**chosen), selected, narrate)
        _keep(settings.root, [one.evidence for one in judged])
    if save_evidence is not None:
        save_evidence.write_text(records.dumps(judged[0].evidence) + "\n")
    report.render(judged, output, sys.stdout)
    if output_file is not None:
        with output_file.open("w") as stream:
            report.render(judged, output, stream)
    sys.exit(judgement.exit_code_of(judged))


@click.command(name="legs", hidden=True)
@click.option("--spec", metavar="JSON", help="The whole task, as verify hands it to the client container.")
@click.option("--prefill", metavar="URL", help="The prefill server.")
@click.option("--decode", metavar="URL", help="The decode server.")
@click.option("--controller", metavar="URL", help="The LMCache controller.")
@click.option("--prefill-instance", default="lmcache_instance_1", show_default=True)
@click.option("--decode-instance", default="lmcache_instance_2", show_default=True)
@click.option("--prompts", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option("--prompt-tokens", type=click.IntRange(1), default=1546, show_default=True, metavar="N")
@click.option("--chunk-size", type=click.IntRange(1), default=256, show_default=True, metavar="N")
@click.option(
    "--vocab", type=int, default=259, show_default=True, metavar="N", help="Token ids are below it."
)
@click.option("--seed", type=int, metavar="N")
@click.option("--deep", is_flag=True)
@click.option("--wait", "wait_s", type=click.FloatRange(0), default=0.0, show_default=True, metavar="SECONDS")
@keys.api_option
@keys.cluster_option
def send_legs(
    spec: str | None,
    seed: int | None,
    api_key_file: Path | None,
    cluster_key_file: Path | None,
    **fields: Any,
) -> None:
    """Send a verification's traffic and print what was seen as JSON; needs no Docker."""
    if spec is not None:
        task = options.task(Spec, spec)
    elif fields["prefill"] and fields["decode"] and fields["controller"]:
        task = Spec(**fields, seed=random.SystemRandom().randrange(2**31) if seed is None else seed)
    else:
        raise click.UsageError("give --spec, or --prefill, --decode and --controller.")
    click.echo(records.dumps(legs.run(task, keys.read(api_key_file, cluster_key_file), narrate)))


def _read_evidence(path: Path) -> Evidence:
    try:
        return records.loads(Evidence, path.read_text())
    except ValueError as error:
        raise KvshareError(f"{path} is no evidence that this version saved: {error}.") from None


def _keep(root: Path, seen: Sequence[Evidence]) -> None:
    """Keep what was seen last, for `kvshare bundle` and --from-evidence; a read-only folder is no error."""
    from kvshare.site.dockerd import state_dir

    with contextlib.suppress(OSError):
        for one in seen:
            name = f"verify-{one.stack.decode.name}.json"
            (state_dir(root) / name).write_text(records.dumps(one) + "\n")
