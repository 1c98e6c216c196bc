"""Whether the controller knows the workers."""

from __future__ import annotations

from kvshare.checking.registry import Category, Failed, NotChecked, Outcome, Passed
from kvshare.verify.checks.shared import ONE_IMAGE_FIX, down, traffic_of
from kvshare.verify.evidence import Evidence

CHECKS: Category[Evidence] = Category("controller")


@CHECKS.check("CTRL-01", "the controller answers", ("CLIENT-01",))
def _controller_answers(evidence: Evidence) -> Outcome:
    traffic = traffic_of(evidence)
    if traffic.controller.answers:
        return Passed(evidence.stack.controller.url)
    return down(
        evidence,
        "controller",
        f"{evidence.stack.controller.url}/controller/workers",
        traffic.controller.error,
    )


@CHECKS.check("CTRL-02", "its pull loop takes messages", ("CTRL-01",))
def _pull_loop_lives(evidence: Evidence) -> Outcome:
    samples = traffic_of(evidence).controller.pull
    if len(samples) < 2:
        return NotChecked("the controller's /metrics shows no PULL socket")
    first, last = samples[0], samples[-1]
    read = int(last.messages - first.messages)
    if read == 0 and samples[-2].pending and last.pending:
        return Failed(
            "messages on the pull port are read",
            f"none was read during the run and some wait, {int(last.messages)} since the controller's start: "
            "one message that it could not decode has ended the loop",
            ("controller",),
            _restart_command(evidence, "controller"),
        )
    return Passed(f"{read} messages read")


@CHECKS.check("CTRL-03", "no peer_init_url error in its log")
def _no_decoding_error(evidence: Evidence) -> Outcome:
    errors = evidence.logs.controller_errors
    if errors is None:
        return NotChecked("the controller's log cannot be read")
    if not errors:
        return Passed()
    return Failed(
        "every worker's registration is understood",
        f"{len(errors)} times, the last: {errors[-1]}",
        ("controller",),
        ONE_IMAGE_FIX,
    )


@CHECKS.check("CTRL-04", "the workers are registered under their addresses", ("CTRL-01",))
def _workers_registered(evidence: Evidence) -> Outcome:
    traffic = traffic_of(evidence)
    up = [
        server
        for server, probe in (
            (evidence.stack.prefill, traffic.prefill),
            (evidence.stack.decode, traffic.decode),
        )
        if probe.healthy
    ]
    if not up:
        return NotChecked("no server is up, see PRE-01 and DEC-01")
    urls = {worker.instance: worker.peer_init_url for worker in traffic.controller.workers}
    bad = [server for server in up if urls.get(server.instance) != server.peer_init_url]
    if not bad:
        return Passed(", ".join(f"{server.instance} at {server.peer_init_url}" for server in up))
    found = ", ".join(
        f"{s.instance} {'at ' + str(urls[s.instance]) if s.instance in urls else 'missing'}" for s in bad
    )
    return Failed(
        ", ".join(f"{server.instance} at {server.peer_init_url}" for server in bad),
        found,
        tuple(server.service for server in bad),
        _restart_command(evidence, bad[0].service),
    )


def _restart_command(evidence: Evidence, service: str) -> str:
    context = evidence.stack.member(service).context
    return f"docker --context {context} restart {evidence.container(service).name}"
