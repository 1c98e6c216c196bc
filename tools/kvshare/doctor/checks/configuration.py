"""Whether the nodes are told the same, and whether a pull can pay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.config import threshold
from kvshare.contract import Facts
from kvshare.cost.link import Meaning, meaning, pull_over
from kvshare.cost.model import FIRST_TOKEN_S, Prefill, Pull, break_even, first_worthwhile
from kvshare.cost.plan import kv_bytes_per_token
from kvshare.doctor.checks.shared import same
from kvshare.doctor.evidence import Evidence, Link
from kvshare.stack.members import Server

CHECKS: Category[Evidence] = Category("configuration")
LMCACHE_CHUNK = 256  # tokens, where nothing else is set
# Facts of one node alone; every other LMCache setting must be equal, or is judged by a check of its own.
OF_ONE_NODE = (
    *("lmcache_instance_id", "lmcache_worker_ports", "p2p_host", "p2p_init_ports", "p2p_lookup_ports"),
    *("max_local_cpu_size", "lookup_timeout_ms", "chunk_size"),
)


def _set(evidence: Evidence, variable: str, controller: bool = False) -> dict[str, str]:
    """Return a variable's value by member, as Compose resolves it for each machine."""
    return {
        member.name: evidence.environments[member.name].get(variable, "")
        for member in evidence.stack.members
        if member.name in evidence.environments and (controller or isinstance(member, Server))
    }


@CHECKS.check("DOC-CONF-01", "PYTHONHASHSEED is the same everywhere")
def _one_seed(evidence: Evidence) -> Outcome:
    seeds = _set(evidence, "PYTHONHASHSEED", controller=True)
    return same(evidence, "PYTHONHASHSEED", seeds, "set PYTHONHASHSEED once in compose.yaml (shared)")


@CHECKS.check("DOC-CONF-02", "the model is named the same")
def _one_model(evidence: Evidence) -> Outcome:
    return same(evidence, "model string", _set(evidence, "KVSHARE_MODEL"), "set one MODEL in .env")


@CHECKS.check("DOC-CONF-03", "the dtype is the same")
def _one_dtype(evidence: Evidence) -> Outcome:
    fix = "set KVSHARE_DTYPE once in compose.yaml (server), one KV_CACHE_DTYPE in .env"
    models, kept = _set(evidence, "KVSHARE_DTYPE"), _set(evidence, "KVSHARE_KV_CACHE_DTYPE")
    found = {name: _with_kv(dtype, kept.get(name, "auto")) for name, dtype in models.items()}
    return same(evidence, "dtype", found, fix)


def _with_kv(dtype: str, kept: str) -> str:
    return dtype if kept in ("", "auto") else f"{dtype} with {kept} KV"


@CHECKS.check("DOC-CONF-04", "the chunk size is the same", ("DOC-IMG-01",))
def _one_chunk_size(evidence: Evidence) -> Outcome:
    found = {name: str(facts.lmcache.get("chunk_size", "")) for name, facts in evidence.seen.items()}
    return same(evidence, "chunk_size", found, "correct configs/lmcache.yaml, then one image everywhere")


@CHECKS.check("DOC-CONF-05", "LMCache's other settings are the same", ("DOC-IMG-01",))
def _one_lmcache(evidence: Evidence) -> Outcome:
    settings = {name: _shared(facts) for name, facts in evidence.seen.items()}
    names = sorted({key for values in settings.values() for key in values})
    differing = [key for key in names if len({repr(v.get(key)) for v in settings.values()}) > 1]
    found = {
        name: ", ".join(f"{key}={values.get(key)}" for key in differing) for name, values in settings.items()
    }
    fix = "correct configs/lmcache.yaml or the LMCACHE_ variable that overrides it"
    outcome = same(evidence, "set of LMCache settings", found, fix)
    return Passed(f"{len(names)} settings") if isinstance(outcome, Passed) else outcome


def _shared(facts: Facts) -> Mapping[str, Any]:
    return {key: value for key, value in facts.lmcache.items() if key not in OF_ONE_NODE}


@CHECKS.check("DOC-CONF-06", "LOOKUP_TIMEOUT_MS lets the longest prompt's KV through", ("DOC-NET-05",))
def _timeout_suffices(evidence: Evidence) -> Outcome:
    meant = meanings(evidence)
    if not meant:
        return NotChecked("how large the model's KV is cannot be told before the model is there")
    bad = {name: m for name, (_, m) in meant.items() if m.needed_ms > m.timeout_ms}
    slowest, m = max(((name, m) for name, (_, m) in meant.items()), key=lambda item: item[1].needed_ms)
    said = (
        f"{m.longest_tokens} tokens (MAX_MODEL_LEN) of {_size(m.token_bytes)} take {m.longest_s:.2f} s "
        f"from {evidence.stack.prefill.name} to {slowest}"
    )
    advice = f"LOOKUP_TIMEOUT_MS={m.advised_ms}"
    if not bad:
        return Passed(f"{said}; {m.timeout_ms} ms is enough ({advice} would be derived)")
    return Failed(
        f"{advice} or more",
        f"{said}; {m.timeout_ms} ms lets {m.fits_tokens} tokens through, and longer prompts are recomputed",
        tuple(bad),
        f"kvshare doctor --write, or set {advice} in .env",
    )


@CHECKS.check("DOC-CONF-07", "a pull pays for prompts that fit", ("DOC-NET-05",), warning=True)
def _pays(evidence: Evidence) -> Outcome:
    meant, speed = meanings(evidence), evidence.prefill_speed
    if not meant or speed is None:
        return NotChecked("how large the model's KV is cannot be told before the model is there")
    against = (
        _calibrated_words(evidence) or f"against prefill at {speed.tokens_per_s:.0f} tokens/s ({speed.how})"
    )
    bad = {n: m for n, (_, m) in meant.items() if m.break_even is None or m.break_even > m.longest_tokens}
    if not bad:
        words = ", ".join(f"to {name} from {m.break_even} tokens on" for name, (_, m) in meant.items())
        return Passed(f"{words}, {against}")
    words = "; ".join(
        f"to {name} {'never' if m.break_even is None else f'from {m.break_even} tokens on'}"
        for name, m in bad.items()
    )
    return Failed(
        f"a pull that is sooner than recomputing, below {next(iter(bad.values())).longest_tokens} tokens",
        f"{words}, {against}",
        tuple(bad),
        "a faster link or longer prompts; kvshare bench measures it, --prefill-speed gives a known figure",
    )


def _calibrated_words(evidence: Evidence) -> str:
    """Return what says from where on a pull pays, where that was not computed here; else ''."""
    found = {t.assignment for f in evidence.seen.values() if (t := threshold.of_server(f.lmcache)).is_set}
    return f"as {', '.join(sorted(found))} says" if found else ""


def meanings(evidence: Evidence) -> dict[str, tuple[Link, Meaning]]:
    """Return what each measured link means for the model, by the name of the node that asks."""
    speed = evidence.prefill_speed
    found = {}
    for link in evidence.links:
        facts = evidence.seen.get(link.target)
        if link.bytes_per_s and facts is not None and speed is not None:
            meant = _meaning(link, link.bytes_per_s, facts, speed.tokens_per_s)
            if meant is not None:
                found[link.target] = (link, meant)
    return found


def _meaning(link: Link, bytes_per_s: float, facts: Facts, tokens_per_s: float) -> Meaning | None:
    """Return what a link means on the peer that asks; None where the model's KV is unknown."""
    model = facts.model
    dtype = (model.dtype or "bfloat16") if facts.dtype == "auto" else facts.dtype
    size = kv_bytes_per_token(model.name, model.layers, model.kv_heads, model.head_dim, dtype)
    if size is None:
        return None
    chunk = int(facts.lmcache.get("chunk_size", LMCACHE_CHUNK))
    pull = pull_over(size, bytes_per_s, link.latency_s or 0.0, link.lanes)
    pays_from = _pays_from(pull, tokens_per_s, facts, chunk)
    return meaning(size, pull, pays_from, facts.max_model_len, facts.lookup_timeout_ms, chunk)


def _pays_from(pull: Pull, tokens_per_s: float, facts: Facts, chunk: int) -> int | None:
    """Return from how many tokens on a pull pays: as it was calibrated, else as it is to be expected."""
    calibrated = threshold.of_server(facts.lmcache)
    if calibrated.is_set:
        return calibrated.tokens
    return first_worthwhile(break_even(pull, Prefill(FIRST_TOKEN_S, 1 / tokens_per_s, 0.0)), chunk, None)


def _size(count: int) -> str:
    return f"{count / 1024:g} KiB"
