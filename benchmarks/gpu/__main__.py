"""Run what only a GPU can show, and keep what was seen.

On a machine with a GPU, in an environment that holds vLLM, LMCache, NIXL and the tool's dependencies:

    make test-gpu PYTHON=…                  from nothing to docs/gpu.md
    python -m benchmarks.gpu [PART ...]     from the repository's root
    python -m benchmarks.gpu --docs         write docs/gpu.md and docs/gpu from benchmarks/gpu/results

parts: kernel   LMCache's transfer kernel: KV out of the cache and back, bit for bit
       without  the whole chain without packed-kv: must fail, on the answers
       with     the whole chain as the image has it: must be proven; then what --measure says
       fp8      the same with KV_CACHE_DTYPE=fp8
       ranks    the same with each server tensor-parallel over all of --gpus
       apart    prefill tensor-parallel over --gpus, decode over --decode-gpus; apart-fp8: with fp8
       nodes    prefill on the first of --gpus, a decode node on each of --decode-gpus; nodes-fp8: with fp8
       pressure `kvshare verify --deep` on servers with so little memory that requests are preempted
       models   a small model of each of the --families, in bfloat16 and with fp8, judged by verify
measures: again         one prompt over and over on the node that pulls it
          ttft          time to first token, and where a pull's time goes
          bench         `kvshare bench` over lengths
          clients       `kvshare bench`: 16 requests in flight, half of each prompt shared
          identity      a prompt with a tenant's salt in its keys beside one without
          agreement     `vllm bench serve` beside `kvshare bench`
          never-slower  decode with the threshold that `kvshare bench --calibrate` derives from `bench`
          slow-link     the same with one connection between the servers
          at-once       several decode nodes that pull at the same moment; of `nodes`, which has no other
          corrupted     verify, where the KV that the last rank of decode pulls is wiped: must fail
Default are the parts that one or two GPUs can show. Exit code 0 if every part came out as it must. What a
part, and each of its measures, found replaces what this machine's results held of it.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import ROOT, results
from benchmarks.gpu import RESULTS, slug
from benchmarks.machine import Machine, machine

if TYPE_CHECKING:
    from kvshare.bench import run
    from kvshare.site.native import Native

Keep = Callable[[str, Any], None]  # what was measured, what it found


@dataclass(frozen=True)
class Chain:
    """How a part serves: which GPUs, what differs from the product, how deep it is verified."""

    spread: str = "one GPU"
    fp8: bool = False
    packed: bool = True
    pressure: bool = False
    size: str = "8b"


CHAINS = {
    "without": Chain(packed=False),
    "with": Chain(),
    "fp8": Chain(fp8=True),
    "ranks": Chain("ranks"),
    "pair": Chain("pair"),
    "pair-fp8": Chain("pair", fp8=True),
    "apart": Chain("apart"),
    "apart-fp8": Chain("apart", fp8=True),
    "large": Chain("apart", size="70b"),
    "nodes": Chain("nodes"),
    "nodes-fp8": Chain("nodes", fp8=True),
    "pressure": Chain(pressure=True),
}
PARTS = ("kernel", *CHAINS, "models")
ONE_OR_TWO_GPUS = ("kernel", "without", "with", "fp8", "ranks", "pressure", "models")
MEASURES = (
    *("again", "ttft", "bench", "clients", "identity", "agreement", "never-slower", "slow-link"),
    *("at-once", "corrupted"),
)
LENGTHS = (266, 522, 1034, 2058, 4106, 8202, 16394, 32522)
PREEMPTED = "DEEP-05"
BLOCKS, LONGEST = 512, 4096  # of `pressure`: vLLM's blocks of 16 tokens, and a prompt and its answer
POOL_GIB = "24"  # a rank; `clients` needs room for what all of them share
SMALL = 4096  # a prompt and its answer of `models`


def gpu_machine() -> Machine:
    """This machine with its GPUs, their driver and what runs on them."""
    import torch

    on_gpu = torch.cuda.is_available()
    return replace(
        machine(),
        gpus=torch.cuda.device_count() if on_gpu else 0,
        gpu=torch.cuda.get_device_name(0) if on_gpu else "",
        driver=_driver() if on_gpu else "",
        python=platform.python_version(),
        versions={name: metadata.version(name) for name in ("vllm", "lmcache", "nixl", "torch")},
    )


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]


def kernel() -> tuple[dict[str, Any], bool]:
    from benchmarks.gpu import kernel

    found = kernel.run()
    return found, found["exact_with"] == found["tried"] and not found["exact_without"]


def decisions(options: argparse.Namespace, chain: Chain) -> dict[str, str]:
    """What .env would say for a chain: which GPUs, and how much of their memory."""
    first, decodes = options.gpus.split(",")[0], options.decode_gpus.split(",")
    prefill, decode, each = {
        "one GPU": (first, first, []),
        "ranks": (options.gpus, options.gpus, []),
        "pair": (first, decodes[0], []),
        "apart": (options.gpus, options.decode_gpus, []),
        "nodes": (first, "", decodes),
    }[chain.spread]
    hosts = ",".join(f"10.0.0.{number}" for number, _ in enumerate(each, start=2))  # Native has its own
    return {
        "KV_CACHE_DTYPE": "fp8" if chain.fp8 else "auto",
        "PREFILL_GPU": prefill,
        "DECODE_GPU": decode,
        "DECODE_HOSTS": hosts,
        "DECODE_CONTEXTS": hosts,
        "DECODE_GPUS": ",".join(each),
        "CPU_RANKS": str(len(prefill.split(","))),
        "VLLM_ARGS": f"--num-gpu-blocks-override {BLOCKS}" if chain.pressure else options.user_args,
        "MAX_MODEL_LEN": str(LONGEST if chain.pressure else options.max_model_len),
    }


def serve(options: argparse.Namespace, part: str, keep: Keep) -> bool:
    """Serve, verify, and measure where the KV is right; what is found is kept as it comes."""
    from benchmarks.gpu import chain
    from benchmarks.gpu.corrupted import RIGHT

    how = CHAINS[part]
    _make_model(options, how.size)
    os.environ.update(decisions(options, how))
    with chain.serving(options.device, how.packed, options.state / part) as native:
        good, judged = True, []
        for pair in native.stack.pairs():
            evidence = options.state / f"evidence-{part}-{pair.decode.name}.json"
            size = options.prompts, options.prompt_tokens
            judged.append(chain.verify(native, pair, *size, evidence, deep=how.pressure))
            print(judged[-1].sentence, flush=True)
            good &= judged[-1].proven
        environment = native.processes["prefill"].environment
        found = {"vllm_args": environment["KVSHARE_VLLM_ARGS"], **chain.summary(judged[0])}
        found["others"] = [one.sentence for one in judged[1:]]
        keep(part, found)
        if not how.packed:
            return bool(set(found["failed"]) & RIGHT)
        if how.pressure:
            return good and found["checks"][PREEMPTED][0] == "success"
        measured: dict[str, Any] = {}
        for name in (name for name in MEASURES if name in options.measure):
            if (name == "at-once") != (how.spread == "nodes"):
                continue
            folder = options.state / part / name
            measured[name], as_it_must = _measure(name, options, native, folder, measured)
            print(f"{name}: {'as it must be' if as_it_must else 'NOT as it must be'}", flush=True)
            keep(f"{part}/{name}", measured[name])
            good &= as_it_must
    return good


def models(options: argparse.Namespace, keep: Keep) -> bool:
    """Serve a small model of each family on one GPU, and keep how verify judges it."""
    from benchmarks.families import ON_GPU
    from benchmarks.gpu import families

    good = True
    for family in options.families or ON_GPU:
        for dtype in options.kv_dtypes:
            how = Chain(fp8=dtype == "fp8")
            os.environ.update(decisions(options, how), MAX_MODEL_LEN=str(SMALL))
            seen = families.see(family, options.device, options.state / f"{family}-{dtype}".replace(" ", "-"))
            print(f"{family}, {dtype}: {seen}", flush=True)
            keep(f"models/{family}/{dtype}", asdict(seen))
            good &= seen.judgement.startswith("proven")
    return good


def _measure(
    name: str,
    options: argparse.Namespace,
    native: Native,
    folder: Path,
    measured: dict[str, Any],
) -> tuple[Any, bool]:
    """One measure, after those ``measured``; an error is what it finds, so that the others are made too."""
    from benchmarks import calibration, identity, orders
    from benchmarks.gpu import again, agreement, at_once, bench, corrupted, measure, never_slower
    from benchmarks.summary import summary
    from kvshare.servers.server import ServerClient

    logs = {service: process.log for service, process in native.processes.items()}
    try:
        if name == "corrupted":
            return corrupted.judge(native, options.prompt_tokens, folder.with_suffix(".json"))
        if name == "at-once":
            return at_once.run(native.stack, options.lengths, options.repetitions)
        if name == "again":
            return again.run(native.stack, logs, options.times)
        if name == "identity":
            return identity.run(ServerClient(native.stack.decode.url))
        if name == "agreement":
            return agreement.compare(native, folder)
        lengths = tuple(options.lengths)
        if name == "never-slower":
            return never_slower.judge(native, measured["bench"]["calibrated"], lengths, folder)
        if name == "slow-link":
            calibrated = never_slower.calibrate_on(native, 1, lengths, folder)
            return never_slower.judge(native, calibrated, lengths, folder)
        if name == "ttft":
            seed = random.SystemRandom().randrange(2**31)
            at = measure.Measurement(native.stack, logs)
            return measure.summary(at.run(options.chunks, options.repetitions, seed)), True
        document = bench.bench(native, _load(name, options), folder)
        if name == "clients":
            return {**summary(document), "orders": orders.of_folder(folder)}, True
        return {**summary(document), "calibrated": calibration.calibrated_by(document)}, True
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}, False


def _load(name: str, options: argparse.Namespace) -> run.Options:
    """What `kvshare bench` is told for a measure."""
    from kvshare.bench import run

    if name == "clients":
        return run.Options(
            arms=("cold", "peer", "recompute"),
            prompt_tokens=(4106,),
            output_tokens=(64,),
            concurrency=(16,),
            requests=32,
            shared_percent=(50.0,),
            repetitions=6,
        )
    arms = ("cold", "local-lmcache", "peer", "recompute")
    return run.Options(arms=arms, prompt_tokens=tuple(options.lengths), repetitions=options.repetitions)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped
    options = _parser().parse_args()
    if options.docs:
        from benchmarks.gpu import document

        document.write()
        return 0
    on = gpu_machine()

    def keep(part: str, found: Any) -> None:
        results.keep(options.results / f"{slug(on)}.jsonl", [results.Result(part, on, found)])

    good = True
    for part in options.parts or ONE_OR_TWO_GPUS:
        print(f"--- {part}", flush=True)
        if part == "kernel":
            found, as_it_must = kernel()
            keep(part, found)
        else:
            _decide(options)
            as_it_must = models(options, keep) if part == "models" else serve(options, part, keep)
        print(f"{part}: {'as it must be' if as_it_must else 'NOT as it must be'}", flush=True)
        good &= as_it_must
    return 0 if good else 1


def _make_model(options: argparse.Namespace, size: str) -> None:
    """Make the model, and serve it from now on."""
    import torch

    from benchmarks.gpu import model

    on_gpu = options.device == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    size = size if options.size == "8b" else options.size
    folder = options.model / size
    model.make(folder, size, "cuda" if on_gpu else "cpu", dtype)
    if on_gpu:
        torch.cuda.empty_cache()  # the servers want the memory that the weights were drawn in
    os.environ["MODEL"] = str(folder)


def _decide(options: argparse.Namespace) -> None:
    """Make the decisions that .env would make, whatever the part."""
    os.environ["DEVICE"] = options.device
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    os.environ.setdefault("LMCACHE_MAX_LOCAL_CPU_SIZE", POOL_GIB)
    if options.vllm_args:
        os.environ["KVSHARE_VLLM_ARGS"] = options.vllm_args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--docs", action="store_true", help="write docs/gpu.md and docs/gpu, run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that keeps what was seen")
    parser.add_argument("--state", type=Path, default=ROOT / ".kvshare/gpu", help="folder for logs, evidence")
    parser.add_argument(
        "--model", type=Path, default=Path("/tmp/kvshare-gpu-model"), help="folder to make models in"
    )
    parser.add_argument("--size", choices=("8b", "small"), default="8b", help="small: to try the script")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script")
    parser.add_argument("--gpus", default="0,1", help="of prefill, or the first of them (default: 0,1)")
    parser.add_argument(
        "--decode-gpus", default="2,3", help="of `pair`, `apart`, `large`, `nodes` (default: 2,3)"
    )
    parser.add_argument("--families", nargs="*", metavar="FAMILY", help="of `models`; default: all")
    parser.add_argument("--kv-dtypes", nargs="*", default=("auto", "fp8"), help="of `models`")
    parser.add_argument("--user-args", default="", help="VLLM_ARGS of all parts but `pressure`")
    parser.add_argument("--vllm-args", help="instead of compose.yaml's")
    parser.add_argument("--max-model-len", type=int, default=32768, metavar="TOKENS")
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=1546, metavar="TOKENS")
    parser.add_argument(
        "--chunks", type=int, nargs="*", default=[4, 16, 32, 64], help="of 256 tokens a prompt"
    )
    parser.add_argument("--repetitions", type=int, default=5, help="of each length")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="of bench, in tokens")
    parser.add_argument("--times", type=int, default=200, help="that `again` asks")
    parser.add_argument(
        "--measure", nargs="*", choices=MEASURES, default=MEASURES, help="what to measure; default: all"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
