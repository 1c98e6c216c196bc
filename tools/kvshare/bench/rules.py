"""When a figure does not count: a warm cache must never inflate one, nor a control that moved bytes.

After the rules of the field's benchmarks: prompts fresh in every repetition, zero bytes in the control,
the whole shared prefix in the arms that reuse it.
"""

from collections.abc import Iterable

from kvshare.bench.observed import ArmRun, Repetition
from kvshare.bench.spec import COLD, GATEWAY, LOCAL_LMCACHE, LOCAL_PREFIX, PEER, RECOMPUTE, UNRELATED

WARM_LIMIT = 0.01  # share of an arm's prompt tokens that may come from a cache that it should not have


def violation(runs: Iterable[ArmRun], shared_tokens: int) -> str | None:
    """Return why a whole repetition does not count, or None: something came from where it must not.

    Args:
        shared_tokens: tokens that a reusing prompt has in common with the cold one; at 0 nothing may move.
    """
    for run in runs:
        if run.sources is None or run.sources.total == 0:
            continue
        total, moved = run.sources.total, run.sources.external_kv_transfer
        if run.arm in (COLD, RECOMPUTE, LOCAL_PREFIX) and moved:
            what = "the control" if run.arm == RECOMPUTE else f"the arm {run.arm}"
            return f"{what} got {moved} tokens from LMCache or a peer, it must get none"
        if run.arm in (PEER, LOCAL_LMCACHE) and moved and not shared_tokens:
            return f"the arm {run.arm} got {moved} tokens although nothing was shared"
        if run.arm != LOCAL_PREFIX and run.sources.local_cache_hit > WARM_LIMIT * total:
            share = 100 * run.sources.local_cache_hit / total
            return f"{share:.0f} % of the arm {run.arm} came from vLLM's own cache, a warm cache inflates it"
    return None


def fault(run: ArmRun, shared_tokens: int) -> str | None:
    """Return why one arm does not count, or None: a request failed, or it did not get what it stands for."""
    if (told := _unproven(run)) is not None or run.sources is None:
        return told
    expected = shared_tokens * len(run.requests)
    if run.arm == LOCAL_PREFIX and run.sources.local_cache_hit < expected:
        return f"vLLM's own cache held {run.sources.local_cache_hit} of {expected} tokens"
    if run.arm in (PEER, LOCAL_LMCACHE) and run.sources.external_kv_transfer != expected:
        return f"{run.sources.external_kv_transfer} of {expected} tokens came from LMCache"
    return None


def _unproven(run: ArmRun, times: int = 1) -> str | None:
    """Return why it is not known where an arm's tokens came from; a prompt may be counted so many times."""
    failed = [request for request in run.requests if request.error is not None]
    if failed:
        return f"{len(failed)} of {len(run.requests)} requests failed: {failed[0].error}"
    if run.sources is None:
        return "the server does not count prompt tokens by source, so nothing proves where they came from"
    sent = sum(request.prompt_tokens for request in run.requests)
    if not sent <= run.sources.total <= times * sent:
        return f"the server counts {run.sources.total} prompt tokens, {sent} were sent: others use it too"
    return None


def way_fault(run: ArmRun) -> str | None:
    """Return why one way to send a load does not count, or None; the gateway's prompts go to two servers."""
    return _unproven(run, times=2 if run.arm == GATEWAY else 1)


def way_violation(runs: Iterable[ArmRun], load: str | None) -> str | None:
    """Return why a repetition of all ways does not count, or None: a control shared, or a cache was warm."""
    for run in runs:
        if run.sources is None or run.sources.total == 0:
            continue
        if run.arm != GATEWAY and run.sources.external_kv_transfer:
            moved = run.sources.external_kv_transfer
            return f"{run.arm} got {moved} tokens from LMCache or a peer, it must get none"
        if load == UNRELATED and run.sources.local_cache_hit > WARM_LIMIT * run.sources.total:
            share = 100 * run.sources.local_cache_hit / run.sources.total
            return f"{share:.0f} % of unrelated prompts came from vLLM's own cache, a warm cache inflates it"
    return None


def moved_by_peers(repetitions: Iterable[Repetition]) -> int:
    """Return the tokens that came from a peer, in peer arms or through the gateway, counted ones or not."""
    return sum(
        run.sources.external_kv_transfer
        for repetition in repetitions
        for run in repetition.arms
        if run.arm in (PEER, GATEWAY) and run.sources is not None
    )
