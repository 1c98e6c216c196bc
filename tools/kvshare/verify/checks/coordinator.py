"""Whether the coordinator tells the cache servers of each other."""

from kvshare.checking.registry import Category, Failed, Outcome, Passed
from kvshare.config.settings import MULTIPROCESS
from kvshare.servers.sharing import address_of
from kvshare.verify.checks.shared import down, listed, logs, traffic_of
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("coordinator", sharing=MULTIPROCESS)


@CHECKS.check("COORD-01", "the coordinator answers", ("CLIENT-01",))
def _answers(evidence: Evidence) -> Outcome:
    """Without it nobody new is found; cache servers that know each other go on sharing.

    `make up NODE=prefill` starts it; they register by themselves.
    """
    probe, url = traffic_of(evidence).controller, evidence.stack.controller.url
    return Passed(url) if probe.answers else down(evidence, "coordinator", "/instances", probe.error)


@CHECKS.check("COORD-02", "it lists the cache servers under their addresses", ("COORD-01",))
def _listed(evidence: Evidence) -> Outcome:
    """Those from which peers are to read KV. Another one: it was started with another HOST in `.env`."""
    found = {worker.instance for worker in traffic_of(evidence).controller.workers}
    due = {f"{server.service}-cache": address_of(server) for server in evidence.stack.servers}
    missing = {service: address for service, address in due.items() if address not in found}
    if not missing:
        return Passed(", ".join(due.values()))
    expected = ", ".join(f"{service} at {address}" for service, address in missing.items())
    return Failed(expected, listed(sorted(found)), tuple(missing), logs(evidence, next(iter(missing))))
