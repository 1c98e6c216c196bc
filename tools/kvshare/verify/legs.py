"""The client's side of a verification: it sends the traffic, reads the counters, and reports what it saw.

It judges nothing and needs no Docker. A server that is down costs its own legs, not the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from kvshare.servers import metrics
from kvshare.servers.openai import Http, RefusedKeyError, RequestFailedError, complete
from kvshare.servers.prompts import make_prompts, require_prompt_tokens, reusable
from kvshare.servers.readings import (
    Admission,
    ControllerProbe,
    Counters,
    PullSample,
    ServerProbe,
    Sources,
    Worker,
)
from kvshare.verify.evidence import CONTROL, PEER, REFERENCE, SAME_SPLIT, WARM_UP, Leg, Spec, Traffic
from kvshare.verify.ledger import of, total_sources

POLL_S = 0.2
ADMISSION_DEADLINE_S = 15.0
AFTER_A_MISS_S = 1.0  # once one prompt was not admitted, the others are not waited for as long
LEDGER_DEADLINE_S = 5.0
FLUSH_S = 3.0  # LMCache exports its counters every 2 s (configs/lmcache.yaml)
COUNTERS_DEADLINE_S = 25.0

Narrate = Callable[[str], None]
T = TypeVar("T")


def run(spec: Spec, api_key: str | None, narrate: Narrate) -> Traffic:
    """Send every leg of ``spec`` and return what was seen; KvshareError only for sizes that cannot work."""
    return _Run(spec, api_key, narrate).traffic()


def poll(look: Callable[[], T], done: Callable[[T], bool], deadline_s: float) -> T:
    """Return what ``look`` sees as soon as it is ``done``, or what it saw last at the deadline."""
    end = time.monotonic() + deadline_s
    while not done(seen := look()) and time.monotonic() < end:
        time.sleep(POLL_S)
    return seen


class _Run:
    """One verification's state: the connections, the prompts, and the legs so far."""

    def __init__(self, spec: Spec, api_key: str | None, narrate: Narrate) -> None:
        self.spec = spec
        self.narrate = narrate
        self.http = {"prefill": Http(spec.prefill, api_key), "decode": Http(spec.decode, api_key)}
        self.controller = Http(spec.controller)
        self.legs: list[Leg] = []
        self.admissions: list[Admission] = []
        self.pull: list[PullSample] = []
        self.expected = reusable(spec.prompt_tokens, spec.chunk_size)
        self.started = time.monotonic()
        self.probes: dict[str, ServerProbe] = {}
        self.watched = False
        self.refused = False  # waiting makes no key right

    def traffic(self) -> Traffic:
        self.probes = {node: self._ready(node) for node in ("prefill", "decode")}
        controller = self._probe_controller()
        for probe in self.probes.values():
            require_prompt_tokens(
                self.spec.prompt_tokens, self.spec.chunk_size, probe.max_model_len, self.spec.max_tokens
            )
        self.watched = controller.answers  # without a controller there is no admission to wait for
        self._sample_pull()
        owner_start, decode_start = self._counters("prefill"), self._counters("decode")
        after_control = self._send_all()
        self._await_counters(owner_start, decode_start)
        self._sample_pull()
        return Traffic(
            spec=self.spec,
            prefill=self.probes["prefill"],
            decode=self.probes["decode"],
            controller=replace(controller, pull=tuple(self.pull)),
            admissions=tuple(self.admissions),
            legs=tuple(self.legs),
            owner_start=owner_start,
            owner_after_control=after_control,
            owner_end=self._counters("prefill"),
            decode_start=decode_start,
            decode_end=self._counters("decode"),
            seconds=time.monotonic() - self.started,
        )

    # --- the legs -----------------------------------------------------------------------------------------

    def _send_all(self) -> Counters | None:
        """Send the control, then every prompt's legs; return the owner's counters from between the two.

        The control goes first: nothing was pulled yet, so whatever the owner counts by then is the control's.
        """
        *prompts, control = make_prompts(
            self.spec.prompts + 2, self.spec.prompt_tokens, self.spec.vocab, self.spec.seed
        )
        self._send(CONTROL, "decode", len(prompts), control)
        control_ended = time.monotonic()
        after_control = None
        for number, prompt in enumerate(prompts):
            keys_before = self._owner_keys()[0]
            self._send(REFERENCE, "prefill", number, prompt)
            self._await_admission(number, prompt, keys_before)
            self._send(SAME_SPLIT, "prefill", number, prompt)
            if not self._is_up("prefill", "decode"):
                continue
            if number == WARM_UP:
                time.sleep(max(0.0, FLUSH_S - (time.monotonic() - control_ended)))
                after_control = self._counters("prefill")
            self._send(PEER, "decode", number, prompt)
        return after_control

    def _send(self, name: str, node: str, number: int, prompt: Sequence[int]) -> None:
        """Send one leg if its server is up, and keep what came of it."""
        if not self._is_up(node):
            return
        request_id = f"kvshare-{self.spec.seed}-{number}-{name.replace(' ', '-')}"
        leg = Leg(number, name, node, request_id, len(prompt))
        earlier = self._sources(node)
        try:
            self._require_time()
            answer = complete(self.http[node], self._model(node), prompt, request_id, self.spec.max_tokens)
        except RequestFailedError as error:
            leg = replace(leg, error=str(error))
        else:
            leg = replace(
                leg,
                tokens=answer.prompt_tokens,
                ttft_ms=answer.ttft_ms,
                e2e_ms=answer.e2e_ms,
                sources=self._moved(node, earlier, answer.prompt_tokens),
                output=answer.output,
            )
        self.legs.append(leg)
        self.narrate(_describe(leg, self.spec.prompts))

    def _require_time(self) -> None:
        if time.monotonic() - self.started > self.spec.deadline_s:
            raise RequestFailedError(f"not sent, the deadline of {self.spec.deadline_s:.0f} s had passed")

    def _moved(self, node: str, earlier: Sources | None, tokens: int) -> Sources | None:
        """Return the server's prompt tokens by source since ``earlier``, once it has counted this request."""
        if earlier is None:
            return None
        now = poll(
            lambda: self._sources(node),
            lambda s: s is None or (s - earlier).total >= tokens,
            LEDGER_DEADLINE_S,
        )
        return None if now is None else now - earlier

    def _await_admission(self, number: int, prompt: Sequence[int], keys_before: int) -> None:
        """Wait until the controller knows the prompt's chunks at the owner; the count of its keys says so."""
        if not self.watched or not self._is_up("prefill") or self.legs[-1].error is not None:
            return
        start = time.monotonic()
        workers = max(self._owner_keys()[1], 1)
        expected = workers * (self.expected // self.spec.chunk_size)
        missed = any(not admission.how for admission in self.admissions)
        how, new = poll(
            lambda: self._admitted(prompt, keys_before, expected),
            lambda seen: bool(seen[0]),
            AFTER_A_MISS_S if missed else ADMISSION_DEADLINE_S,
        )
        self.admissions.append(Admission(number, expected, new, time.monotonic() - start, how))
        self._sample_pull()

    def _admitted(self, prompt: Sequence[int], keys: int, expected: int) -> tuple[str, int]:
        """Return how the controller knows the prompt's chunks, '' if not, and how the owner's keys grew.

        A full cache evicts as many keys as it admits, and the count stands still: then the controller is
        asked for the prompt itself. It only knows the default chunk size there.
        """
        new = self._owner_keys()[0] - keys
        if new >= expected:
            return "key count", new
        if self.spec.chunk_size == 256 and self._looked_up(prompt) >= self.expected:
            return "lookup", new
        return "", new

    # --- looking ------------------------------------------------------------------------------------------

    def _ready(self, node: str) -> ServerProbe:
        """Probe a server, waiting for its health within the common deadline."""
        left = self.spec.wait_s - (time.monotonic() - self.started)
        return poll(lambda: self._probe(node), lambda probe: probe.healthy or self.refused, left)

    def _probe(self, node: str) -> ServerProbe:
        try:
            self.http[node].get("/health")
            card = self.http[node].get("/v1/models").json()["data"][0]
        except RequestFailedError as error:
            self.refused = isinstance(error, RefusedKeyError)
            return ServerProbe(healthy=False, error=str(error))
        except (ValueError, LookupError):
            return ServerProbe(healthy=False, error=f"{self.http[node].base}/v1/models lists no model")
        return ServerProbe(True, None, card["id"], card.get("max_model_len"))

    def _is_up(self, *nodes: str) -> bool:
        return all(self.probes[node].healthy for node in nodes)

    def _model(self, node: str) -> str:
        return self.probes[node].model or ""

    def _probe_controller(self) -> ControllerProbe:
        """Probe the controller, waiting within the common deadline for the workers of servers that are up."""
        left = self.spec.wait_s - (time.monotonic() - self.started)
        wanted = {
            instance
            for node, instance in (
                ("prefill", self.spec.prefill_instance),
                ("decode", self.spec.decode_instance),
            )
            if self._is_up(node)
        }
        return poll(
            self._controller_now,
            lambda probe: probe.answers and wanted <= {w.instance for w in probe.workers},
            left,
        )

    def _controller_now(self) -> ControllerProbe:
        try:
            workers = self._workers()
        except RequestFailedError as error:
            return ControllerProbe(answers=False, error=str(error))
        except (ValueError, LookupError, TypeError):
            return ControllerProbe(
                answers=False, error=f"{self.controller.base}/controller/workers lists no workers"
            )
        return ControllerProbe(answers=True, workers=workers)

    def _workers(self) -> tuple[Worker, ...]:
        listed = self.controller.get("/controller/workers").json()["workers"]
        return tuple(Worker(w["instance_id"], w.get("peer_init_url"), int(w["key_count"])) for w in listed)

    def _owner_keys(self) -> tuple[int, int]:
        """Return the owner's number of keys and of workers; zeros if the controller does not say."""
        try:
            mine = [w.key_count for w in self._workers() if w.instance == self.spec.prefill_instance]
        except (RequestFailedError, ValueError, LookupError):
            return 0, 0
        return sum(mine), len(mine)

    def _looked_up(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of the prompt the controller finds at the owner."""
        try:
            found = self.controller.post("/lookup", {"tokens": list(prompt)}, timeout=5.0).json()[
                "layout_info"
            ]
        except (RequestFailedError, ValueError, LookupError):
            return 0
        return int(found.get(self.spec.prefill_instance, ("", 0))[1])

    def _scrape(self, http: Http) -> tuple[metrics.Sample, ...]:
        try:
            return metrics.parse(http.get("/metrics", timeout=10.0).text)
        except (RequestFailedError, ValueError):
            return ()

    def _sources(self, node: str) -> Sources | None:
        return metrics.sources(self._scrape(self.http[node]))

    def _counters(self, node: str) -> Counters | None:
        samples = self._scrape(self.http[node])
        return metrics.counters(samples) if samples else None

    def _sample_pull(self) -> None:
        sample = metrics.pull_sample(self._scrape(self.controller)) if self.watched else None
        if sample is not None:
            self.pull.append(sample)

    def _await_counters(self, owner: Counters | None, decode: Counters | None) -> None:
        """Wait until LMCache has exported what the legs moved, or for one export if they moved nothing."""
        if owner is None or decode is None or not self._is_up("prefill", "decode"):
            return
        peers = of(self.legs, PEER)
        moved = total_sources(peers).external_kv_transfer
        pulls = sum(1 for leg in peers if leg.sources is not None and leg.sources.external_kv_transfer)
        self.narrate("waiting for LMCache to export its counters")
        poll(
            lambda: (self._counters("prefill"), self._counters("decode")),
            lambda now: bool(moved) and _exported(now, owner, decode, moved, pulls),
            COUNTERS_DEADLINE_S if moved else FLUSH_S,
        )


def _exported(
    now: tuple[Counters | None, Counters | None], owner: Counters, decode: Counters, moved: int, pulls: int
) -> bool:
    owner_now, decode_now = now
    if owner_now is None or decode_now is None:
        return True
    return (
        owner_now.transfers - owner.transfers >= pulls and decode_now.hit_tokens - decode.hit_tokens >= moved
    )


def _describe(leg: Leg, prompts: int) -> str:
    label = (
        "control" if leg.leg == CONTROL else f"{leg.leg} {'warm-up' if leg.prompt == WARM_UP else leg.prompt}"
    )
    if leg.error is not None or leg.ttft_ms is None:
        return f"{label} on {leg.node}: {leg.error}"
    moved = (
        f", {leg.sources.external_kv_transfer} from the peer"
        if leg.sources and leg.leg in (PEER, CONTROL)
        else ""
    )
    of_prompts = "" if leg.leg == CONTROL or leg.prompt == WARM_UP else f" of {prompts}"
    times = f"{leg.tokens} tokens, first token after {leg.ttft_ms:.0f} ms"
    return f"{label}{of_prompts} on {leg.node}: {times}{moved}"
