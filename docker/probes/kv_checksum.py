"""Probe of kv-checksum: a chunk whose bytes are not those that were stored is not used."""

from __future__ import annotations

from probes import ProbeError
from probes.controller import free_ports, running_controller
from probes.node import CHUNK, running_node, settings_for

CHUNKS = 10  # of which the last is spoiled
WAYS = ("keys zeroed", "values zeroed", "two blocks swapped", "of another chunk", "one value")
MISMATCHES = "lmcache:checksum_mismatches_total"
SOUND, UNTOLD = 100, 200  # prompts


def probe() -> None:
    """Raises ProbeError unless a spoiled chunk is a miss, and each node that checks insists on checksums."""
    ports, on = free_ports(), {"p2p_checksum": True}
    with (
        running_controller(ports),
        running_node(settings_for("owner", ports, config=on)) as owner,
        running_node(settings_for("other", ports, config=on)) as other,
        running_node(settings_for("without", ports)) as without,
    ):
        owner.wait_until_synced(ports)
        owner.ask("store", seed=SOUND, chunks=CHUNKS)
        found = other.pull_until(SOUND, CHUNKS, CHUNKS * CHUNK)
        if found["hits"] != CHUNKS * CHUNK or found["wrong"]:
            raise ProbeError(f"What is sound should be pulled whole: {found}.")
        for seed, how in enumerate(WAYS):
            owner.ask("store", seed=seed, chunks=CHUNKS)
            owner.ask("spoil", seed=seed, chunks=CHUNKS, how=how)
            found = other.pull_until(seed, CHUNKS, (CHUNKS - 1) * CHUNK)
            if found["hits"] != (CHUNKS - 1) * CHUNK or found["wrong"]:
                raise ProbeError(f"A chunk with {how} should be left out, and the others used: {found}.")
        if (counted := sum(other.ask("counted_by", counter=MISMATCHES, label="peer").values())) != len(WAYS):
            raise ProbeError(f"{len(WAYS)} chunks that were left out should be counted, and {counted} are.")
        if other.logged("they are computed") != 1:
            raise ProbeError("Chunks that were left out should be told of once a minute.")
        without.ask("store", seed=UNTOLD, chunks=CHUNKS)
        if other.pull_until_hit(UNTOLD, CHUNKS, seconds=3.0)["hits"]:
            raise ProbeError("What comes without a checksum should not be used.")
        if not without.pull_until_hit(SOUND, CHUNKS)["hits"]:
            raise ProbeError("A node that checks nothing should use what comes with a checksum.")
