"""Whether KV came from the peer, and nothing else did."""

from kvshare.checking.registry import Category, Failed, NotChecked, NotNeeded, Outcome, Passed
from kvshare.config.settings import CONTROLLER, MULTIPROCESS
from kvshare.servers.multiprocess import PAGE_BYTES, PULLED
from kvshare.servers.sharing import address_of, mover_of, told_of
from kvshare.verify import ledger
from kvshare.verify.checks.shared import (
    ALONE,
    ALONE_AND_FRESH,
    complete,
    leg_found,
    listed,
    logs,
    of_leg,
    reusable_tokens,
    traffic_of,
)
from kvshare.verify.evidence import CONTROL, PEER, Evidence, Leg

CHECKS: Category[Evidence] = Category("kv-transfer")
_BOTH_UP = ("PRE-01", "DEC-01", "DEC-02")


@CHECKS.check("KV-PEER-01", "decode takes exactly the whole chunks from its peer", _BOTH_UP)
def _pulled(evidence: Evidence) -> Outcome:
    """The heart of the proof: by vLLM's own counter, these tokens were not computed on decode.

    If no earlier check failed, decode's log says what the lookup came to. A pull that takes longer than
    `lookup_timeout_ms` counts as nothing (KV-PEER-06).
    """
    traffic = traffic_of(evidence)
    expected, legs = reusable_tokens(traffic), ledger.of(traffic.legs, PEER)
    bad = ledger.not_pulled(legs, expected)
    if not bad:
        detail = f"{expected} of {traffic.spec.prompt_tokens} tokens in each of {len(legs)} prompts"
        return complete(legs, traffic, detail)
    gave_up = "; LMCache gave up its lookup at lookup_timeout_ms" if _gave_up(evidence, bad[0]) else ""
    return Failed(
        f"external_kv_transfer +{expected} for each prompt",
        f"{len(bad)} of {len(legs)} prompts differ; {leg_found(bad[0])}{gave_up}",
        ("decode",),
        logs(evidence, "decode", bad[0].request_id),
    )


@CHECKS.check("KV-PEER-02", "the ledger adds up", _BOTH_UP)
def _ledger_balances(evidence: Evidence) -> Outcome:
    """As the server counts. More: other traffic ran beside the verification. Less: restart that server."""
    legs = traffic_of(evidence).legs
    bad = ledger.off_balance(legs)
    if not bad:
        total = sum(leg.tokens for leg in legs)
        return Passed(f"{total} prompt tokens in {len(legs)} requests, each accounted for")
    expected = "local_compute + local_cache_hit + external_kv_transfer = prompt tokens, in every request"
    fix = of_leg(evidence, bad[0], ALONE)
    return Failed(expected, leg_found(bad[0]), (bad[0].node,), fix)


@CHECKS.check("KV-PEER-03", "the owner counts the transfers", ("KV-PEER-01",))
def _owner_sent(evidence: Evidence) -> Outcome:
    """The other side of the ledger: for each pull one transfer of each rank.

    With SHARING=multiprocess, whose owner sends nothing, the objects whose place it told to peers that asked.

    LMCache exports its counters every 2 s (`stats_log_interval` in configs/lmcache.yaml); all of vLLM's
    processes need PROMETHEUS_MULTIPROC_DIR.
    """
    traffic = traffic_of(evidence)
    start, end = traffic.owner_start, traffic.owner_end
    if start is None or end is None:
        return NotChecked("the prefill server's /metrics cannot be read")
    ranks, pulls = evidence.stack.prefill.ranks, len(ledger.of(traffic.legs, PEER))
    told, sent = told_of(evidence.stack), round(end.transfers - start.transfers)
    due = ranks * told.due(pulls, pulls * reusable_tokens(traffic) // traffic.spec.chunk_size)
    if sent >= due:
        of_ranks = f" of {ranks} ranks" if ranks > 1 else ""
        if told.by_chunk:
            return Passed(f"{sent} objects{of_ranks}")
        seconds = (end.transfer_seconds - start.transfer_seconds) / sent
        return Passed(f"{sent} transfers{of_ranks}, {seconds * 1000:.0f} ms each")
    expected = f"{told.transfers} +{due} or more"
    keeper = evidence.stack.prefill.keeper.service
    return Failed(expected, f"+{sent}", (keeper,), logs(evidence, keeper, told.logged[0]))


@CHECKS.check(
    "KV-PEER-04", "decode logs `LMCache hit tokens: X` for each prompt", ("KV-PEER-01",), sharing=CONTROLLER
)
def _logged(evidence: Evidence) -> Outcome:
    """A smaller X: the owner had evicted some chunks, raise its `max_local_cpu_size`.

    No line: the log level hides INFO, or the log was rotated.
    """
    traffic = traffic_of(evidence)
    if evidence.logs.decode_hits is None:
        return NotChecked("decode's log cannot be read")
    expected = reusable_tokens(traffic)
    logged = {leg.request_id: _logged_hit(evidence, leg) for leg in ledger.of(traffic.legs, PEER)}
    bad = {request: hit for request, hit in logged.items() if hit != expected}
    if not bad:
        return Passed(f"X = {expected}, {len(logged)} times")
    request, hit = next(iter(bad.items()))
    return Failed(
        f"LMCache hit tokens: {expected} for each of {len(logged)} requests",
        f"{'no line' if hit is None else hit} for {request}, {len(bad)} of {len(logged)} differ",
        ("decode",),
        logs(evidence, "decode", "LMCache hit tokens"),
    )


@CHECKS.check("KV-PEER-05", "LMCache on decode counts the hits", ("KV-PEER-01",))
def _hits_counted(evidence: Evidence) -> Outcome:
    """As KV-PEER-03. `retrieve_hit_rate` is this run's; the gauge itself reads 1.0 on an idle server."""
    traffic = traffic_of(evidence)
    start, end = traffic.decode_start, traffic.decode_end
    if start is None or end is None:
        return NotChecked("the decode server's /metrics cannot be read")
    told = told_of(evidence.stack)
    expected = reusable_tokens(traffic) * len(ledger.of(traffic.legs, PEER))
    hits = round(end.hit_tokens - start.hit_tokens)
    requested = round(end.requested_tokens - start.requested_tokens)
    gauge = "" if end.retrieve_hit_rate is None else f" (gauge {end.retrieve_hit_rate:.2f})"
    rate = f"of {requested} requested, retrieve_hit_rate {hits / requested if requested else 0:.2f}{gauge}"
    if hits >= expected:
        return Passed(f"{told.hits.removeprefix('lmcache:')} +{hits} {rate}")
    keeper = evidence.stack.decode.keeper.service
    fix = logs(evidence, keeper, told.logged[1])
    return Failed(f"{told.hits} +{expected}", f"+{hits} {rate}", (keeper,), fix)


@CHECKS.check(
    "KV-PEER-06", "no lookup runs into its timeout", ("CLIENT-01",), warning=True, sharing=CONTROLLER
)
def _no_lookup_timeout(evidence: Evidence) -> Outcome:
    """Such a request waits for nothing, and a cold one that did makes reuse look better than it is.

    A peer's: its KV takes longer, and `make doctor ARGS=--write` derives LOOKUP_TIMEOUT_MS from the link.
    Another's: controller or machine are busy.
    """
    legs = traffic_of(evidence).legs
    if not legs:
        return NotChecked("no request was sent")
    late = [leg for leg in legs if _gave_up(evidence, leg)]
    if not late:
        return Passed()
    waited = ", ".join(f"{leg.leg} of prompt {leg.prompt}" for leg in late)
    return Failed(
        "LMCache answers within lookup_timeout_ms",
        f"{waited} waited for it in vain, and the times below include the wait",
        tuple(dict.fromkeys(leg.node for leg in late)),
        logs(evidence, late[0].node, late[0].request_id),
    )


@CHECKS.check("KV-PEER-07", "NIXL sent the bytes that LMCache and vLLM count", ("KV-PEER-01", "KV-PEER-03"))
def _sent_on_the_wire(evidence: Evidence) -> Outcome:
    """A ledger that asks neither: the bytes that left prefill, counted by the library that sent them.

    They must be what decode counts in tokens, times what a token's KV takes in LMCache's memory. More is
    right only if the owner counts more transfers than these: somebody else pulled. Only the sender counts,
    or with SHARING=multiprocess the cache server that reads: decode's.
    A proof does without it where NIXL tells nothing.
    """
    traffic, told, mover = traffic_of(evidence), told_of(evidence.stack), mover_of(evidence.stack)
    wire, chunk_bytes, start, end = traffic.wire, traffic.chunk_bytes, traffic.owner_start, traffic.owner_end
    if wire is None:
        return NotNeeded(f"NIXL tells nothing at {mover.nixl_url} of {mover.service}'s machine")
    if wire.dropped:
        return NotNeeded(f"NIXL lost count of {wire.dropped:.0f} events, its bytes are not all")
    if chunk_bytes is None or start is None or end is None:
        return NotChecked(f"LMCache does not tell what a chunk takes, in {_figures(evidence)}")
    legs = ledger.of(traffic.legs, PEER)
    tokens = ledger.total_sources(legs).external_kv_transfer
    chunks = tokens // traffic.spec.chunk_size
    due, sent = round(chunk_bytes * tokens / traffic.spec.chunk_size), round(wire.bytes)
    beside = end.transfers - start.transfers - evidence.stack.prefill.ranks * told.due(len(legs), chunks)
    if sent == due or (sent > due and beside > 0):
        others = f", and {sent - due} to others" if sent > due else ""
        return Passed(f"{due} bytes for {tokens} tokens{others}")
    each = round(chunk_bytes / traffic.spec.chunk_size)
    expected = f"{told.wire} +{due}: {tokens} tokens of {each} bytes"
    return Failed(expected, f"+{sent}", (mover.keeper.service,), ALONE)


@CHECKS.check(
    "KV-PEER-08",
    "what decode's cache server read is from prefill's",
    ("KV-PEER-01", "CACHE-02"),
    sharing=MULTIPROCESS,
)
def _read_from_prefill(evidence: Evidence) -> Outcome:
    """By its own count of bytes, which names the peer: of several nodes that hold a chunk any may give it.

    NIXL reads whole pages of 64 KiB, of which it counts what is KV.
    """
    traffic, owner = traffic_of(evidence), address_of(evidence.stack.prefill)
    if traffic.pulled is None:
        return NotChecked("decode's cache server does not tell what it read, in its /metrics")
    if traffic.chunk_bytes is None:
        return NotChecked(f"LMCache does not tell what a chunk takes, in {_figures(evidence)}")
    tokens = ledger.total_sources(ledger.of(traffic.legs, PEER)).external_kv_transfer
    due = round(traffic.chunk_bytes * tokens / traffic.spec.chunk_size)
    read = {peer: round(total) for peer, total in traffic.pulled.items() if total}
    objects = evidence.stack.prefill.ranks * tokens // traffic.spec.chunk_size
    if read.get(owner, 0) > due - objects * PAGE_BYTES:
        return Passed(f"{read[owner]} bytes from {owner}")
    found = listed(f"+{total} from {peer}" for peer, total in read.items())
    return Failed(f"{PULLED} +{due} from {owner}", found, ("decode-cache",), ALONE)


def _figures(evidence: Evidence) -> str:
    return (
        "prefill's /metrics" if evidence.stack.prefill.cache is None else "/status of prefill's cache server"
    )


@CHECKS.check("KV-CTL-01", "a prompt that nobody holds moves nothing", _BOTH_UP)
def _control_moves_nothing(evidence: Evidence) -> Outcome:
    """Sent to decode alone. Without it, a counter that always rises would pass for proof.

    If it stays red, the counters do not mean what they say: file an issue.
    """
    traffic = traffic_of(evidence)
    controls = ledger.of(traffic.legs, CONTROL)
    if not controls:
        return NotChecked("no control was sent")
    start, after = traffic.owner_start, traffic.owner_after_control
    sent = 0 if start is None or after is None else round(after.transfers - start.transfers)
    asked = [one for one in evidence.logs.owner_lookups or () if any(_is_of(one, leg) for leg in controls)]
    if ledger.moved_nothing(controls) and not sent and not asked:
        return Passed(f"{sum(leg.tokens for leg in controls)} tokens computed, 0 from a peer, 0 transfers")
    return Failed(
        "every token from local_compute and no transfer at the owner",
        f"{leg_found(controls[0])}; {sent + len(asked)} transfers at the owner",
        ("decode", "prefill"),
        ALONE_AND_FRESH,
    )


def _logged_hit(evidence: Evidence, leg: Leg) -> int | None:
    """Return the hit tokens that decode logged for a leg's request, or None if it logged none."""
    hits = [hit.hit_tokens for hit in evidence.logs.decode_hits or () if _is_of(hit.request_id, leg)]
    return max(hits, default=None)


def _gave_up(evidence: Evidence, leg: Leg) -> bool:
    """Return whether a leg's lookup ran into LMCache's timeout."""
    return any(_is_of(request_id, leg) for request_id in evidence.logs.lookup_timeouts)


def _is_of(request_id: str, leg: Leg) -> bool:
    """Return whether a server's request id is the leg's, which vLLM wraps into its own."""
    return f"{leg.request_id}-" in f"{request_id}-"
