"""The engine image's probe of a link, asked from both ends: the near end puts into the far end's memory."""

from collections.abc import Callable

from kvshare import records
from kvshare.contract import Measurement, Ports
from kvshare.site.base import Started, answered, held

MEASURE_TIMEOUT_S = 150.0


def measure(near: Callable[..., Started], far: Callable[..., Started], host: str) -> tuple[Measurement, int]:
    """Return what the near end measures, and on how many connections.

    ValueError if an image of another version answers.

    Args:
        near: runs a `probe` with these arguments where the KV is owned.
        far: the same on ``host``, where it is asked for.
    """
    with held(far("link-serve")) as said:
        ports = records.loads(Ports, said)
        lanes = ",".join(map(str, ports.bandwidth))
        measuring = near("link-measure", host, lanes, str(ports.latency))
        found = records.loads(Measurement, answered(measuring, timeout_s=MEASURE_TIMEOUT_S))
    return found, len(ports.bandwidth)
