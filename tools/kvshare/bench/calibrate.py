"""P2P_MIN_TOKENS from a benchmark: the length from which a pull pays on this pair."""

from kvshare.bench.outputs import pull_words
from kvshare.bench.results import Document
from kvshare.bench.spec import PEER, RECOMPUTE, BenchSpec
from kvshare.config.threshold import NAME, Threshold
from kvshare.cost.model import first_worthwhile
from kvshare.errors import CouldNotCheckError, KvshareError


def require(spec: BenchSpec) -> None:
    """KvshareError unless the benchmark will measure what a threshold follows from, and servers heed it."""
    if spec.caches:
        raise KvshareError(
            f"SHARING=multiprocess pulls whatever a peer has, and {NAME} would change nothing: "
            "type make bench without --calibrate."
        )
    if spec.threshold.is_set:
        raise KvshareError(
            f"decode runs with {spec.threshold.assignment}, and shorter pulls cannot be measured: "
            f"set {NAME}=0 in .env, type make up NODE=decode, and calibrate again."
        )
    if not {PEER, RECOMPUTE} <= set(spec.arms):
        raise KvshareError(f"a calibration compares the arms {PEER} and {RECOMPUTE}: leave both in --arms.")
    if len({point.prompt_tokens for point in spec.points if point.tells_costs}) < 2:
        raise KvshareError(
            "a calibration needs two prompt lengths or more, wholly shared, one request in flight: "
            "leave --prompt-tokens, --shared, --concurrency and --rate as they are."
        )


def threshold(document: Document) -> Threshold:
    """Return the first whole chunks that pay, or never; CouldNotCheckError if nothing could be fitted.

    A fit evens out what was measured, so a length at which pulls were slower is declined whatever it says.
    """
    if document.cost is None:
        raise CouldNotCheckError(f"{NAME} cannot be derived, see above; .env is as it was.")
    fitted = document.cost.break_even_tokens
    tokens = None if fitted is None else max(fitted, _longest_loss(document) + 1)
    return Threshold(first_worthwhile(tokens, document.chunk_size, document.model.max_model_len))


def _longest_loss(document: Document) -> int:
    """Return the tokens of the longest pull that was slower than decode's own computation, 0 if none was."""
    return max(
        (
            result.point.shared_tokens(document.chunk_size)
            for result in document.points
            if result.point.tells_costs
            and result.peer_over_recompute is not None
            and result.peer_over_recompute.value > 1
        ),
        default=0,
    )


def line(document: Document) -> str:
    """Return the threshold as `.env` has it, with when, on what link and why."""
    found = threshold(document)
    assert document.cost is not None
    speed = document.link.gb_per_s
    link = "" if speed is None else f" on a link of {speed:.2f} GB/s"
    loss = _longest_loss(document)
    fitted = document.cost.break_even_tokens
    measured = "" if fitted is None or loss < fitted else f", but measured slower at {loss:,}"
    return (
        f"{found.assignment}  # make bench ARGS=--calibrate, {document.started[:10]}: "
        f"{pull_words(document.cost.pull)}{link}; {document.verdict}{measured}"
    )
