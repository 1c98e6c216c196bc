"""Whether the nodes are told the same, and whether a pull can pay."""

from kvshare.checking.registry import Category, Failed, NotChecked, NotNeeded, Outcome, Passed
from kvshare.config import threshold
from kvshare.doctor.checks.shared import each, same
from kvshare.doctor.evidence import Evidence
from kvshare.doctor.meaning import LMCACHE_CHUNK, meanings
from kvshare.refusals import INSTEAD, length_of
from kvshare.stack.members import Server

CHECKS: Category[Evidence] = Category("configuration")
# Facts of one node alone; every other LMCache setting must be equal, or is judged by a check of its own.
OF_ONE_NODE = (
    *("lmcache_instance_id", "lmcache_worker_ports", "p2p_host", "p2p_init_ports", "p2p_lookup_ports"),
    *("max_local_cpu_size", "lookup_timeout_ms", "chunk_size"),
)
_NO_MODEL = NotChecked("how large the model's KV is cannot be told before the model is there")


def _set(evidence: Evidence, variable: str, controller: bool = False) -> dict[str, str]:
    """Return a variable's value by member, as Compose resolves it for each machine."""
    return {
        member.name: evidence.environments[member.name].get(variable, "")
        for member in evidence.stack.engines
        if member.name in evidence.environments and (controller or isinstance(member, Server))
    }


@CHECKS.check("DOC-CONF-01", "PYTHONHASHSEED is the same everywhere")
def _one_seed(evidence: Evidence) -> Outcome:
    """As `docker compose config` resolves it for each machine, an overlay and the environment included."""
    seeds = _set(evidence, "PYTHONHASHSEED", controller=True)
    return same(evidence, "PYTHONHASHSEED", seeds, "set PYTHONHASHSEED once in compose.yaml (shared)")


@CHECKS.check("DOC-CONF-02", "the model is named the same")
def _one_model(evidence: Evidence) -> Outcome:
    """The string is part of every key."""
    revisions = _set(evidence, "KVSHARE_MODEL_REVISION")
    found = {
        name: f"{model} at {revisions[name]}" if revisions[name] else model
        for name, model in _set(evidence, "KVSHARE_MODEL").items()
    }
    return same(evidence, "model string", found, "set one MODEL and MODEL_REVISION in .env")


@CHECKS.check("DOC-CONF-03", "the dtype is the same")
def _one_dtype(evidence: Evidence) -> Outcome:
    """The servers keep KV in one format."""
    fix = "set KVSHARE_DTYPE once in compose.yaml (server), one KV_CACHE_DTYPE in .env"
    kept = _set(evidence, "KVSHARE_KV_CACHE_DTYPE")
    found = {
        name: dtype if kept[name] in ("", "auto") else f"{dtype} with {kept[name]} KV"
        for name, dtype in _set(evidence, "KVSHARE_DTYPE").items()
    }
    return same(evidence, "dtype", found, fix)


@CHECKS.check("DOC-CONF-04", "the chunk size is the same", ("DOC-IMG-01",))
def _one_chunk_size(evidence: Evidence) -> Outcome:
    """Keys are hashes of whole chunks.

    A difference is an older image on one machine, or an LMCACHE_CHUNK_SIZE.
    """
    found = {name: str(facts.lmcache.get("chunk_size", "")) for name, facts in evidence.seen.items()}
    return same(evidence, "chunk_size", found, "correct configs/lmcache.yaml, then one image everywhere")


@CHECKS.check("DOC-CONF-05", "LMCache's other settings are the same", ("DOC-IMG-01",))
def _one_lmcache(evidence: Evidence) -> Outcome:
    """All that are not one node's own, the hash algorithm among them. As DOC-CONF-04."""
    settings = {
        name: {key: value for key, value in facts.lmcache.items() if key not in OF_ONE_NODE}
        for name, facts in evidence.seen.items()
    }
    names = sorted({key for values in settings.values() for key in values})
    differing = [key for key in names if len({repr(v.get(key)) for v in settings.values()}) > 1]
    found = {
        name: ", ".join(f"{key}={values.get(key)}" for key in differing) for name, values in settings.items()
    }
    fix = "correct configs/lmcache.yaml or the LMCACHE_ variable that overrides it"
    outcome = same(evidence, "set of LMCache settings", found, fix)
    return Passed(f"{len(names)} settings") if isinstance(outcome, Passed) else outcome


@CHECKS.check("DOC-CONF-06", "LOOKUP_TIMEOUT_MS lets the longest prompt's KV through", ("DOC-NET-05",))
def _timeout_suffices(evidence: Evidence) -> Outcome:
    """It caps a whole pull ([its cost](bench.md#the-model-of-cost)); a longer one is recomputed, after that.

    The derived value has room for several pulls at once. Then `make up`. Or shorten MAX_MODEL_LEN.
    """
    meant = meanings(evidence)
    if not meant:
        return _NO_MODEL
    bad = [name for name, (_, m) in meant.items() if m.needed_ms > m.timeout_ms]
    slowest, (_, m) = max(meant.items(), key=lambda item: item[1][1].needed_ms)
    said = (
        f"{m.longest_tokens} tokens (MAX_MODEL_LEN) of {m.token_bytes / 1024:g} KiB take {m.longest_s:.2f} s "
        f"from {evidence.stack.prefill.name} to {slowest}"
    )
    advice = f"LOOKUP_TIMEOUT_MS={m.advised_ms}"
    if not bad:
        return Passed(f"{said}; {m.timeout_ms} ms is enough ({advice} would be derived)")
    return Failed(
        f"{advice} or more",
        f"{said}; {m.timeout_ms} ms lets {m.fits_tokens} tokens through, and longer prompts are recomputed",
        tuple(bad),
        f"make doctor ARGS=--write, or set {advice} in .env",
    )


@CHECKS.check("DOC-CONF-07", "a pull pays for prompts that fit", ("DOC-NET-05",), warning=True)
def _pays(evidence: Evidence) -> Outcome:
    """By [the model of cost](bench.md#the-model-of-cost), or as `make bench ARGS=--calibrate` found.

    Believe that as far as prefill's speed: `measured` from the running server, `assumed`, or `as given`.
    """
    meant, speed = meanings(evidence), evidence.prefill_speed
    if not meant or speed is None:
        return _NO_MODEL
    against = _calibrated(evidence) or f"against prefill at {speed.tokens_per_s:.0f} tokens/s ({speed.how})"
    from_on = {name: m.break_even for name, (_, m) in meant.items()}
    words = {
        name: f"to {name} never" if tokens is None else f"to {name} from {tokens} tokens on"
        for name, tokens in from_on.items()
    }
    longest = {name: m.longest_tokens for name, (_, m) in meant.items()}
    bad = [name for name, tokens in from_on.items() if tokens is None or tokens > longest[name]]
    if not bad:
        return Passed(f"{', '.join(words.values())}, {against}")
    return Failed(
        f"a pull that is sooner than recomputing, below {longest[bad[0]]} tokens",
        f"{'; '.join(words[name] for name in bad)}, {against}",
        tuple(bad),
        "a faster link or longer prompts; make bench measures, ARGS=--prefill-speed=N gives a known speed",
    )


def _calibrated(evidence: Evidence) -> str:
    """Return what says from where on a pull pays, where that was not computed here; else ''."""
    found = {t.assignment for f in evidence.seen.values() if (t := threshold.of_server(f.lmcache)).is_set}
    return f"as {', '.join(sorted(found))} says" if found else ""


@CHECKS.check("DOC-CONF-08", "MODEL is a name, or lies where the servers look")
def _model_in_reach(evidence: Evidence) -> Outcome:
    """Servers see the folder MODELS as `/models`, and nothing else of their machine."""
    models = _set(evidence, "KVSHARE_MODEL")
    bad = {n: m for n, m in models.items() if m.startswith("/") and not m.startswith("/models/")}
    if not bad:
        return Passed(", ".join(dict.fromkeys(models.values())))
    found = ", ".join(f"MODEL={model} is outside /models" for model in dict.fromkeys(bad.values()))
    fix = "set MODELS to the folder it is in and MODEL to /models/NAME in .env"
    return Failed("a name, or a path below /models", found, tuple(bad), fix)


@CHECKS.check("DOC-CONF-09", "MAX_MODEL_LEN holds a chunk")
def _length_holds_a_chunk(evidence: Evidence) -> Outcome:
    """Prompts are shared in whole chunks, of which the longest has to hold one and a token to compute.

    As vLLM reads it: 32k is 32,000 tokens, 32K 32,768, and auto what the model and the memory allow.
    """
    lengths = _set(evidence, "KVSHARE_MAX_MODEL_LEN")
    seen = {name: facts.lmcache for name, facts in evidence.seen.items()}
    chunks = {name: int(seen.get(name, {}).get("chunk_size", LMCACHE_CHUNK)) for name in lengths}
    bad = {n: v for n, v in lengths.items() if not _holds(v, chunks[n])}
    if not bad:
        return Passed(", ".join(dict.fromkeys(lengths.values())))
    found = ", ".join(f"MAX_MODEL_LEN={value}" for value in dict.fromkeys(bad.values()))
    expected = f"a number above the chunk size, {max(chunks.values())} tokens"
    return Failed(expected, found, tuple(bad), "correct MAX_MODEL_LEN in .env")


def _holds(length: str, chunk: int) -> bool:
    try:
        tokens = length_of(length)
    except ValueError:
        return False
    return tokens is None or tokens > chunk


@CHECKS.check("DOC-CONF-10", "VLLM_ARGS is the same")
def _one_vllm_args(evidence: Evidence) -> Outcome:
    """What vLLM is told beside kvshare's own options; many of them change what KV is."""
    found = {name: options or "none" for name, options in _set(evidence, "KVSHARE_USER_VLLM_ARGS").items()}
    return same(evidence, "VLLM_ARGS", found, "set one VLLM_ARGS in .env")


@CHECKS.check("DOC-CONF-11", "the model's KV can be shared")
def _model_shareable(evidence: Evidence) -> Outcome:
    """By its own config.json, where it is there yet; a server says the same before it loads any weights.

    What shares no KV in this mode: layers that keep a running state (Mamba, Qwen3-Next and their like),
    encoder-decoders, layers whose KV differs in shape, and on the CPU multi-head latent attention (DeepSeek).
    """
    models = {name: facts.model for name, facts in evidence.seen.items()}
    bad = {name: f"{model.name}: {model.unshareable}" for name, model in models.items() if model.unshareable}
    good = ", ".join(dict.fromkeys(model.name for model in models.values()))
    return each(evidence, bad, "a model of attention layers that are alike", INSTEAD, good)


@CHECKS.check("DOC-CONF-12", "the model's files are the same")
def _one_set_of_files(evidence: Evidence) -> Outcome:
    """Its config.json and samples of each tensor: another fine-tune under one name shares no KV.

    `verify` compares what the servers made of them (CONF-12).
    """
    files = {name: facts.model.files for name, facts in evidence.seen.items()}
    without = [name for name, found in files.items() if not found]
    if without:
        return NotNeeded(f"the model is put on {', '.join(without)} at the start")
    told = {name: ", ".join(f"{of} {digest[:12]}" for of, digest in f.items()) for name, f in files.items()}
    return same(evidence, "model", told, "put the same files of the model on every machine")


@CHECKS.check("DOC-CONF-13", "the nodes that run have one cluster key")
def _one_cluster_key(evidence: Evidence) -> Outcome:
    """The others turn a node of another key away; it answers, shares nothing and is never registered.

    Also compared: what the next start is given, by `.env` or by this checkout's first `make up`.
    Keys are told apart by a name that tells nothing of them.
    """
    if not evidence.keys:
        return Passed("nothing runs")
    found = dict(evidence.keys)
    if evidence.next_key is not None:
        found["the next start"] = evidence.next_key
    if len(set(found.values())) == 1:
        return Passed(next(iter(found.values())) or "none")
    told = ", ".join(f"{name}={key or 'none'}" for name, key in found.items())
    fix = "make down and make up from one checkout, or with one CLUSTER_KEY_FILE in .env"
    return Failed("one cluster key", told, tuple(evidence.keys), fix)
