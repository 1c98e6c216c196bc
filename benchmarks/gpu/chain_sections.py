"""The sections of a machine's page on whole chains: how each served, and what verify said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.sizes import OF_70B, SIZES, kv_bytes
from benchmarks.tables import table

SHOWN = (
    "KV-PEER-01",
    "KV-PEER-02",
    "KV-PEER-03",
    "KV-PEER-04",
    "KV-CTL-01",
    "KV-RIGHT-01",
    "KV-RIGHT-02",
    "KV-RIGHT-03",
)
SIGNS = {"success": "√", "warning": "‼", "error": "×", "skipped": "–"}
FP8 = ", with fp8"


def _without(found: dict[str, Any]) -> str:
    return f"""## The whole chain without packed-kv

{_checks(found)}

Every hit is counted and the answers are wrong.
"""


def _with(found: dict[str, Any]) -> str:
    return f"""## The whole chain

{_checks(found)}
"""


def _fp8(found: dict[str, Any]) -> str:
    return f"""## With `KV_CACHE_DTYPE=fp8`

{_checks(found)}
"""


def _ranks(found: dict[str, Any]) -> str:
    return f"""## Tensor-parallel over {found["ranks"]} GPUs

Both servers on the same GPUs, {found["ranks"]} ranks each; a rank pulls the KV of its heads from its peer's
same rank.

{_checks(found)}
"""


def _pair(found: dict[str, Any], fp8: str = "") -> str:
    return f"""## Prefill on one GPU, decode on another{fp8}

{_checks(found)}
"""


def _apart(found: dict[str, Any], fp8: str = "") -> str:
    return f"""## Prefill tensor-parallel over {found["ranks"]} GPUs, decode over {found["ranks"]} others{fp8}

{_checks(found)}
"""


def _large(found: dict[str, Any]) -> str:
    layers, kib = SIZES["70b"]["num_hidden_layers"], kv_bytes("70b") // 1024
    return f"""## Llama-3.1-70B's dimensions, {layers} of its {OF_70B} layers

Prefill tensor-parallel over {found["ranks"]} GPUs, decode over as many others. A token's KV: {kib} KiB.

{_checks(found)}
"""


def _nodes(found: dict[str, Any], fp8: str = "") -> str:
    others = "\n".join(f"- decode-{number}: `{said}`" for number, said in enumerate(found["others"], start=2))
    return f"""## One prefill node, {1 + len(found["others"])} decode nodes, a GPU each{fp8}

Of decode-1:

{_checks(found)}

{others}
"""


def _pressure(found: dict[str, Any]) -> str:
    return f"""## Too little memory

`kvshare verify --deep` where vLLM has little memory ({found["memory_tokens"] or "unknown"} tokens), so
that it preempts requests and resumes them (DEEP-05).

{_checks(found)}
"""


def _checks(found: dict[str, Any]) -> str:
    deep = [check for check in found["checks"] if check.startswith("DEEP-")]
    shown = [check for check in (*SHOWN, *deep) if check in found["checks"]]
    rows = [[check, _told(found["checks"][check])] for check in shown]
    prompts = f"{found['prompts']} prompts of {found['prompt_tokens']:,} tokens"
    return f"""`kvshare verify`'s legs and checks, {prompts}.
Servers: `{found["vllm_args"]}`, {found["max_local_cpu_size"]} GiB of LMCache memory {_each(found)}.

{table(["check", "found"], rows)}

`{found["sentence"]}`{_remark(found)}"""


def _remark(found: dict[str, Any]) -> str:
    return f"\n\n{found['remark']}" if "remark" in found else ""


def _each(found: dict[str, Any]) -> str:
    return "each rank" if found.get("ranks", 1) > 1 else "each"


def _told(check: list[str]) -> str:
    result, detail = check
    return f"{SIGNS[result]} {detail}".replace("|", "\\|").strip()


# By part: its own section, and the words that end the headings of its measures.
CHAINS: dict[str, tuple[Callable[[Any], str], str]] = {
    "without": (_without, ""),
    "with": (_with, ""),
    "fp8": (_fp8, ", with fp8"),
    "ranks": (_ranks, ", tensor-parallel"),
    "pressure": (_pressure, ""),
    "pair": (_pair, ", a GPU each"),
    "pair-fp8": (lambda found: _pair(found, FP8), f", a GPU each{FP8}"),
    "apart": (_apart, ", GPUs apart"),
    "apart-fp8": (lambda found: _apart(found, FP8), f", GPUs apart{FP8}"),
    "large": (_large, ", 70B's dimensions"),
    "nodes": (_nodes, ", several nodes"),
    "nodes-fp8": (lambda found: _nodes(found, FP8), f", several nodes{FP8}"),
}
