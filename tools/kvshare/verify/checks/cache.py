"""Whether the cache servers keep KV and know each other."""

from kvshare.checking.registry import Category, Failed, Outcome, Passed
from kvshare.config.settings import MULTIPROCESS
from kvshare.servers.readings import CacheProbe
from kvshare.servers.sharing import address_of
from kvshare.verify.checks.shared import docker, down, listed, traffic_of
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("cache", sharing=MULTIPROCESS)
_SILENT = CacheProbe(answers=False)


@CHECKS.check("CACHE-01", "the cache servers answer", ("CLIENT-01",))
def _answer(evidence: Evidence) -> Outcome:
    """Without its cache server vLLM computes everything itself. `make up NODE=…` starts both of a node."""
    told = traffic_of(evidence).controller.caches
    for server in evidence.stack.servers:
        probe = told.get(server.service, _SILENT)
        if not probe.answers:
            return down(evidence, f"{server.service}-cache", "/status", probe.error)
    return Passed(", ".join(cache.url for cache in evidence.stack.caches))


@CHECKS.check("CACHE-02", "each has the other as its peer", ("CACHE-01", "COORD-02"))
def _peers(evidence: Evidence) -> Outcome:
    """It asks its peers for what it lacks, all of them and nobody else: who is none is never read from.

    It looks for new ones every few seconds, and drops those that the coordinator lists no more.
    """
    told, servers = traffic_of(evidence).controller.caches, evidence.stack.servers
    for server in servers:
        probe = told[server.service]
        due = [address_of(other) for other in servers if other is not server]
        if not set(due) <= set(probe.peers):
            service = f"{server.service}-cache"
            found = f"{listed(probe.peers)}; its own registration: {probe.state or 'none'}"
            expected = f"{service} has the peer {listed(due)}"
            return Failed(expected, found, (service,), docker(evidence, service, "restart"))
    return Passed("; ".join(f"{s.service}: {listed(told[s.service].peers)}" for s in servers))
