"""What one rank of decode has pulled is wiped on its way to the GPU: verify must fail, on the answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu import PACKED_KV, chain
from benchmarks.gpu.never_slower import THRESHOLD
from kvshare.site.native import Native
from tests.patches import upstream

RIGHT = {"KV-RIGHT-01", "KV-RIGHT-02"}
CONNECTORS = {
    "cuda": (PACKED_KV, ("VLLMPagedMemGPUConnectorV2", "VLLMPagedMemGPUConnectorV3")),
    "cpu": ("lmcache/v1/gpu_connector/cpu_connector.py", ("VLLMPagedMemCPUConnector",)),
}
WIPING = """

def _wiping(to_gpu):
    def wiped(self, memory_obj, start, end, **kwargs):
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            memory_obj.tensor.zero_()
        return to_gpu(self, memory_obj, start, end, **kwargs)

    return wiped
"""


def judge(native: Native, tokens: int, save: Path) -> tuple[dict[str, Any], bool]:
    """Restart decode so, and leave it, the last to be measured: counters must be right, answers wrong."""
    with _wiped(native.settings.device):
        native.restart("decode", {THRESHOLD: "0"})
        found = chain.summary(chain.verify(native, native.stack, 2, tokens, save))
    failed = set(found["failed"])
    return found, bool(failed & RIGHT) and failed <= RIGHT


@contextmanager
def _wiped(device: str) -> Iterator[None]:
    path, connectors = CONNECTORS[device]
    connector = upstream.installed(path)
    honest = connector.read_text()
    wiped = (f"{name}.to_gpu = _wiping({name}.to_gpu)\n" for name in connectors)
    connector.write_text("\n".join((honest + WIPING, *wiped)))
    try:
        yield
    finally:
        connector.write_text(honest)
