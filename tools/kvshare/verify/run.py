"""One verification, from the operator's machine: look at the engines, send traffic, read logs, judge."""

import math
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kvshare.config import threshold
from kvshare.config.settings import Settings
from kvshare.config.threshold import Threshold
from kvshare.contract import Fingerprint
from kvshare.errors import CouldNotCheckError, KvshareError
from kvshare.servers.prompts import DEFAULT_CHUNK_SIZE, TAIL, require_prompt_tokens, reusable
from kvshare.servers.sharing import address_of, caches_of, mover_of
from kvshare.site.base import Site
from kvshare.site.compose import read_stack
from kvshare.site.containers import Containers
from kvshare.stack.members import Stack
from kvshare.verify import checks, client, reading
from kvshare.verify.canary import Finding, Pair
from kvshare.verify.evidence import Container, Evidence, Logs, Spec
from kvshare.verify.judgement import Judgement, judge
from kvshare.verify.legs import Narrate

DEFAULT_PROMPTS = 3
DEFAULT_PROMPT_TOKENS = 6 * DEFAULT_CHUNK_SIZE + TAIL
DEFAULT_WAIT_S = 60.0
LEAST_TOKEN_IDS = Spec.vocab
MOST_TOKEN_IDS = 20_000  # special ones lie at the ends of common vocabularies, which are larger
SEED_STEP = 1_000_000  # between decode nodes: prefill has cached what was sent for the one before


@dataclass(frozen=True)
class Options:
    """What the user chose: sizes in tokens, times in seconds; without a seed one is drawn.

    Without ``prompt_tokens`` they are DEFAULT_PROMPT_TOKENS, or as long as decode's threshold asks for.
    ``deep`` follows from the selected checks.
    """

    prompts: int = DEFAULT_PROMPTS
    prompt_tokens: int | None = None
    seed: int | None = None
    wait_s: float = DEFAULT_WAIT_S
    node: str | None = None
    deep: bool = False


def verify(
    settings: Settings, options: Options, selected: Collection[str], narrate: Narrate
) -> tuple[Judgement, ...]:
    """Verify the running stack, one decode node after the other.

    Only the traffic and the logs that the selected checks need are gathered.
    """
    pairs = read_stack(settings).pairs(options.node)
    options = replace(options, deep=not checks.DEEP.isdisjoint(selected))
    judged = []
    for number, pair in enumerate(pairs):
        if len(pairs) > 1:
            narrate(f"{pair.decode.name} on {pair.decode.host}")
        seeded = replace(options, seed=None if options.seed is None else options.seed + number * SEED_STEP)
        site = Containers(pair, settings)
        evidence = gather(site, seeded, checks.needs_traffic(selected), narrate)
        judged.append(judge(evidence, selected))
    return tuple(judged)


def gather(site: Site, options: Options, traffic: bool, narrate: Narrate) -> Evidence:
    """Return what can be seen of the stack now; what cannot be is named in the evidence, not raised."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    deadline = time.monotonic() + options.wait_s
    reading.await_started(site, options.wait_s)
    containers = reading.containers(site)
    seen, error = None, None
    if traffic:
        spec = make_spec(site.stack, containers, options, max(0.0, deadline - time.monotonic()))
        if site.stack.gateway is not None and len(site.settings.decode_nodes) == 1:
            spec = replace(spec, gateway=site.stack.gateway.url)
        narrate(
            f"seed {spec.seed}: {spec.prompts} prompts of {spec.prompt_tokens} tokens, and one to warm up"
            f"{_pulls_from(threshold_of(containers))}"
        )
        try:
            seen = client.send(site, spec)
        except client.ClientFailedError as failure:
            error = str(failure)
    logs = reading.logs(site) if traffic else Logs()
    return Evidence(started, site.stack, reading.engines(site), containers, logs, seen, error)


def sing(site: Site) -> Finding:
    """Return how one canary of a pair ends; CouldNotCheckError where its client cannot be run."""
    containers, stack = reading.containers(site), site.stack
    pulls_from = threshold_of(containers)
    _require_pulls(pulls_from)
    prints = [c.fingerprint for c in containers if c.fingerprint is not None]
    pair = Pair(
        prefill=stack.prefill.url,
        decode=stack.decode.url,
        controller=stack.controller.url,
        owner=address_of(stack.prefill),
        ranks=stack.prefill.ranks,
        dtype=next((f.kv_dtype for f in prints if f.role == "decode"), None) or "auto",
        threshold=pulls_from,
        caches=caches_of(stack),
    )
    try:
        return client.sing(site, pair)
    except client.ClientFailedError as failure:
        raise CouldNotCheckError(f"{failure}.") from None


def _nixl(stack: Stack) -> str:
    """Return where NIXL counts what is moved; empty where that is not prefill's machine, the client's."""
    mover = mover_of(stack)
    return mover.nixl_url if mover.context == stack.prefill.context else ""


def _vocab(prints: Sequence[Fingerprint]) -> int:
    """Return below which id prompts' tokens are drawn: the model's ordinary ones, as far as they are known.

    The more there are, the fewer stand twice in a prompt, and the more an answer hangs on each chunk of it.
    """
    sizes = [f.vocab_size for f in prints if f.vocab_size is not None]
    return min((*sizes, MOST_TOKEN_IDS)) if sizes else LEAST_TOKEN_IDS


def _pulls_from(found: Threshold) -> str:
    return f"; decode pulls from {found.tokens:,} tokens on" if found.tokens else ""


def threshold_of(containers: tuple[Container, ...]) -> Threshold:
    """Return from how many tokens on the running decode server pulls; 0 where it does not say."""
    prints = (c.fingerprint for c in containers if c.fingerprint is not None)
    return threshold.of_server(next((f.lmcache for f in prints if f.role == "decode"), {}))


def make_spec(stack: Stack, containers: tuple[Container, ...], options: Options, wait_s: float) -> Spec:
    """Return the client's task; KvshareError if the prompt length cannot work with what the engines run."""
    prints = [c.fingerprint for c in containers if c.fingerprint is not None and c.service != "controller"]
    chunk_size = next(
        (int(f.lmcache["chunk_size"]) for f in prints if "chunk_size" in f.lmcache), DEFAULT_CHUNK_SIZE
    )
    lengths = [f.max_model_len for f in prints if f.max_model_len is not None]
    longest = min(lengths, default=None)
    pulls_from = threshold_of(containers)
    spec = Spec(
        prefill=stack.prefill.url,
        decode=stack.decode.url,
        controller=stack.controller.url,
        prefill_instance=address_of(stack.prefill),
        decode_instance=address_of(stack.decode),
        prompts=options.prompts,
        prompt_tokens=_prompt_tokens(options.prompt_tokens, pulls_from, chunk_size),
        chunk_size=chunk_size,
        vocab=_vocab(prints),
        seed=random.SystemRandom().randrange(2**31) if options.seed is None else options.seed,
        ranks=stack.prefill.ranks,
        wait_s=wait_s if _may_still_come(containers) else 0.0,
        deep=options.deep,
        nixl=_nixl(stack),
        caches=caches_of(stack),
        least_chunks=max(1, math.ceil((pulls_from.tokens or 0) / chunk_size)),
    )
    _require_room(pulls_from, spec, longest)
    require_prompt_tokens(spec.prompt_tokens, spec.chunk_size, longest, spec.max_tokens)
    return spec


def _prompt_tokens(chosen: int | None, pulls_from: Threshold, chunk_size: int) -> int:
    """Return the prompts' length; KvshareError if decode would compute prompts of the chosen one itself."""
    _require_pulls(pulls_from)
    least = _shortest(pulls_from.tokens or 0, chunk_size)
    if chosen is None:
        return max(DEFAULT_PROMPT_TOKENS, least)
    if pulls_from.declines(reusable(chosen, chunk_size)):
        raise KvshareError(
            f"decode computes a prompt of {chosen} tokens itself ({pulls_from.assignment}): "
            f"set --prompt-tokens to {least} or more."
        )
    return chosen


def _require_pulls(pulls_from: Threshold) -> None:
    """KvshareError if decode computes everything itself."""
    if pulls_from.tokens is None:
        raise KvshareError(
            f"decode never pulls ({pulls_from.assignment}), there is nothing to prove: "
            f"set {threshold.NAME}=0 in .env and type make up NODE=decode."
        )


def _shortest(tokens: int, chunk_size: int) -> int:
    """Return the length of the shortest prompt that at least ``tokens`` can be pulled of."""
    return math.ceil(tokens / chunk_size) * chunk_size + TAIL


def _require_room(pulls_from: Threshold, spec: Spec, longest: int | None) -> None:
    """KvshareError if every prompt that decode would pull is longer than the model takes."""
    least = _shortest(pulls_from.tokens or 0, spec.chunk_size) + spec.max_tokens
    if pulls_from.is_set and longest is not None and least > longest:
        raise KvshareError(
            f"decode pulls no prompt that MAX_MODEL_LEN={longest} takes ({pulls_from.assignment}), there is "
            f"nothing to prove: set {threshold.NAME}=0 in .env and type make up NODE=decode."
        )


def _may_still_come(containers: tuple[Container, ...]) -> bool:
    """Return whether waiting can help: a container that is not there will not come by itself."""
    return all(container.state in ("running", "restarting", "created") for container in containers)
