"""The engine image's probe of a link, asked from both ends: the near end puts into the far end's memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from kvshare import records
from kvshare.contract import Measurement, Ports

MEASURE_TIMEOUT_S = 150.0


def measure(far: AbstractContextManager[str], near: Callable[..., str], host: str) -> tuple[Measurement, int]:
    """Return what the near end measures, and on how many connections.

    ValueError if an image of another version answers.

    Args:
        far: `probe link-serve` on ``host``, by its first line.
        near: runs a `probe` with these arguments where the KV is owned.
    """
    with far as said:
        ports = records.loads(Ports, said)
        lanes = ",".join(map(str, ports.bandwidth))
        found = records.loads(Measurement, near("link-measure", host, lanes, str(ports.latency)))
    return found, len(ports.bandwidth)
