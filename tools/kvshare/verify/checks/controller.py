"""Whether the controller knows the workers."""

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.config.settings import CONTROLLER
from kvshare.stack.members import Server
from kvshare.verify.checks.shared import ONE_IMAGE_FIX, docker, down, logs, traffic_of, up
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("controller", sharing=CONTROLLER)


@CHECKS.check("CTRL-01", "the controller answers", ("CLIENT-01",))
def _controller_answers(evidence: Evidence) -> Outcome:
    """Without it nothing new is shared, while both servers go on answering.

    Once it is back (`make up NODE=prefill`), the servers register by themselves.
    """
    probe, url = traffic_of(evidence).controller, evidence.stack.controller.url
    return Passed(url) if probe.answers else down(evidence, "controller", "/controller/workers", probe.error)


@CHECKS.check("CTRL-02", "its pull loop takes messages", ("CTRL-01",))
def _pull_loop_lives(evidence: Evidence) -> Outcome:
    """Servers announce their chunks on its PULL socket; if none is taken, no new KV is found.

    No message stops it (IMG-02: `pull-loop`): the process hangs, or gets no CPU. Read its log first.
    """
    samples = traffic_of(evidence).controller.pull
    if len(samples) < 2:
        return NotChecked("the controller's /metrics shows no PULL socket")
    total = int(samples[-1].messages)
    read = total - int(samples[0].messages)
    if read or not (samples[-2].pending and samples[-1].pending):
        return Passed(f"{read} messages read")
    return Failed(
        "messages on the pull port are read",
        f"none was read during the run and some wait, {total} since the controller's start",
        ("controller",),
        docker(evidence, "controller", "restart"),
    )


@CHECKS.check("CTRL-03", "no peer_init_url error in its log")
def _no_decoding_error(evidence: Evidence) -> Outcome:
    """Such a line means an older worker and an unpatched controller (`message-defaults`).

    The log keeps old lines until the container is made anew.
    """
    errors = evidence.logs.controller_errors
    if errors is None:
        return NotChecked("the controller's log cannot be read")
    if not errors:
        return Passed()
    found = f"{len(errors)} times, the last: {errors[-1]}"
    return Failed("every worker's registration is understood", found, ("controller",), ONE_IMAGE_FIX)


@CHECKS.check("CTRL-04", "the workers are registered under their addresses", ("CTRL-01",))
def _workers_registered(evidence: Evidence) -> Outcome:
    """Each rank of each server that is up is listed with the address that its peer must dial.

    Another address: it was started with another HOST in `.env`, or a server of another stack has its name.
    Missing: it goes on trying, and its log says what comes of it.
    """
    traffic, stack = traffic_of(evidence), evidence.stack
    probes = ((stack.prefill, traffic.prefill), (stack.decode, traffic.decode))
    servers = [server for server, probe in probes if probe.healthy]
    if not servers:
        return NotChecked("no server is up, see PRE-01 and DEC-01")
    found = {(worker.instance, worker.rank): worker.peer_init_url for worker in traffic.controller.workers}
    bad = [
        (server, rank, url)
        for server in servers
        for rank, url in enumerate(server.peer_init_urls)
        if found.get((server.instance, rank)) != url
    ]
    if not bad:
        return Passed(", ".join(f"{s.instance} at {' and '.join(s.peer_init_urls)}" for s in servers))
    (first, rank, _) = bad[0]
    return Failed(
        ", ".join(f"{_rank_of(server, rank)} at {url}" for server, rank, url in bad),
        ", ".join(
            f"{_rank_of(s, r)} at {found[s.instance, r]}"
            if (s.instance, r) in found
            else f"{_rank_of(s, r)} missing"
            for s, r, _ in bad
        ),
        tuple(dict.fromkeys(server.service for server, *_ in bad)),
        up(evidence, first.service) if (first.instance, rank) in found else logs(evidence, first.service),
    )


def _rank_of(server: Server, rank: int) -> str:
    return f"rank {rank} of {server.instance}" if server.ranks > 1 else server.instance
