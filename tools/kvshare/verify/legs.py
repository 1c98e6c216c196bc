"""The client's side of a verification: it sends the traffic, reads the counters, and reports what it saw.

It judges nothing and needs no Docker. A server that is down costs its own legs, not the others.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from kvshare.config.keys import Keys
from kvshare.servers.completion import VLLM_ONLY, Ask
from kvshare.servers.http import Http
from kvshare.servers.prompts import Prompt, make_prompts, quoting, require_prompt_tokens, with_other_chunk
from kvshare.servers.readings import Admission, Counters, Mark, PullSample, Reading, ServerProbe, Wire
from kvshare.servers.server import FLUSH_S, ServerClient, await_wire, read_wire
from kvshare.servers.sharing import await_export, read_settled, servers_of, sharing_of
from kvshare.verify.deep import DeepRun
from kvshare.verify.evidence import (
    CHANGED,
    CONTROL,
    HONEST,
    JUDGED,
    PEER,
    REFERENCE,
    SAME_SPLIT,
    THROUGH,
    WARM_UP,
    Deep,
    Leg,
    Spec,
    Through,
    Traffic,
)
from kvshare.verify.ledger import median_ttft_ms, of, total_sources
from kvshare.verify.sending import answered, late

ADMISSION_DEADLINE_S = 15.0
AFTER_A_MISS_S = 1.0  # once one prompt was not admitted, the others are not waited for as long

Narrate = Callable[[str], None]


def run(spec: Spec, keys: Keys, narrate: Narrate) -> Traffic:
    """Send every leg of ``spec`` and return what was seen; KvshareError only for sizes that cannot work."""
    return _Run(spec, keys, narrate).traffic()


class _Run:
    """One verification's state: the servers, the prompts, and the legs so far."""

    def __init__(self, spec: Spec, keys: Keys, narrate: Narrate) -> None:
        self.spec, self.api_key = spec, keys.api
        self.narrate = narrate
        self.servers = servers_of(spec, keys)
        self.sharing = sharing_of(spec, spec.chunk_size, keys)
        self.nixl = Http(spec.nixl) if spec.nixl else None
        self.legs: list[Leg] = []
        self.admissions: list[Admission] = []
        self.pull: list[PullSample] = []
        self.started = time.monotonic()
        self.probes: dict[str, ServerProbe] = {}
        self.watched = False

    def traffic(self) -> Traffic:
        self.probes = {node: server.await_healthy(self._wait_left) for node, server in self.servers.items()}
        instances = {"prefill": self.spec.prefill_instance, "decode": self.spec.decode_instance}
        controller = self.sharing.await_workers(
            {instance for node, instance in instances.items() if self._is_up(node)}, self._wait_left
        )
        for probe in self.probes.values():
            require_prompt_tokens(
                self.spec.prompt_tokens, self.spec.chunk_size, probe.max_model_len, self.spec.max_tokens
            )
        self.watched = controller.answers  # without a controller there is no admission to wait for
        self._sample_pull()
        start = read_settled(self.servers)
        wire_start = read_wire(self.nixl) if self.nixl else None
        pulled_start = self.sharing.pulled()
        after_control = self._send_all()
        self._await_counters(start)
        self._sample_pull()
        chunk_bytes, wire = self._sent(wire_start)
        pulled = _rise(pulled_start, self.sharing.pulled())
        ends = {node: _counters(server.read()) for node, server in self.servers.items()}
        gateway = self._through() if self.spec.gateway and self._is_up("prefill", "decode") else None
        deep = self._deep() if self.spec.deep and self._is_up("prefill", "decode") else None
        return Traffic(
            spec=self.spec,
            prefill=self.probes["prefill"],
            decode=self.probes["decode"],
            controller=replace(controller, pull=tuple(self.pull)),
            admissions=tuple(self.admissions),
            legs=tuple(self.legs),
            owner_start=_counters(start["prefill"]),
            owner_after_control=_counters(after_control),
            owner_end=ends["prefill"],
            decode_start=_counters(start["decode"]),
            decode_end=ends["decode"],
            wire=wire,
            chunk_bytes=chunk_bytes,
            pulled=pulled,
            gateway=gateway,
            deep=deep,
            seconds=time.monotonic() - self.started,
        )

    @property
    def _wait_left(self) -> float:
        """Seconds of the common deadline for what is still starting."""
        return self.spec.wait_s - (time.monotonic() - self.started)

    def _is_up(self, *nodes: str) -> bool:
        return all(self.probes[node].healthy for node in nodes)

    def _send_all(self) -> Reading | None:
        """Send the control, then every prompt's legs; return the owner's counters from between the two.

        The control goes first: nothing was pulled yet, so whatever the owner counts by then is the control's.
        """
        *prompts, control = make_prompts(
            self.spec.prompts + 2, self.spec.prompt_tokens, self.spec.vocab, self.spec.seed
        )
        chunks = self.spec.prompt_tokens // self.spec.chunk_size
        prompts = [quoting(p, n % chunks, self.spec.chunk_size) for n, p in enumerate(prompts)]
        self._send(CONTROL, "decode", len(prompts), control)
        control_ended = time.monotonic()
        after_control = None
        for number, prompt in enumerate(prompts):
            before = self.sharing.mark()
            self._send(REFERENCE, "prefill", number, prompt)
            self._await_admission(number, prompt, before)
            self._send(SAME_SPLIT, "prefill", number, prompt)
            if not self._is_up("prefill", "decode"):
                continue
            if number == WARM_UP:
                time.sleep(max(0.0, FLUSH_S - (time.monotonic() - control_ended)))
                after_control = self.servers["prefill"].read()
            self._send(PEER, "decode", number, prompt)
        self._send_changed(prompts[JUDGED], JUDGED % chunks)
        return after_control

    def _through(self) -> Through:
        """Send one more fresh prompt, through the gateway, and then to prefill, whose own cache answers."""
        number = self.spec.prompts + 2
        *_, prompt = make_prompts(number + 1, self.spec.prompt_tokens, self.spec.vocab, self.spec.seed)
        model, earlier = self.probes["decode"].model or "", {n: s.read() for n, s in self.servers.items()}

        def send(name: str, node: str, server: ServerClient) -> Leg:
            leg = Leg(number, name, node, f"kvshare-{self.spec.seed}-{number}-{name[-5:]}", len(prompt))
            ask = Ask(leg.request_id, prompt, self.spec.max_tokens, logprobs=True)
            return late(leg, self.spec) if self._is_late() else answered(leg, server.http, model, ask)

        leg = send(THROUGH, "gateway", ServerClient(self.spec.gateway, self.api_key))
        rises = {
            node: server.await_counted(earlier[node], len(prompt)) if leg.error is None else None
            for node, server in self.servers.items()
        }
        honest = send(HONEST, "prefill", self.servers["prefill"])
        sources = {node: rise.sources if rise else None for node, rise in rises.items()}
        through = Through(leg, sources["prefill"], sources["decode"], honest)
        self.narrate(_describe(leg, self.spec.prompts))
        return through

    def _deep(self) -> Deep:
        run = DeepRun(self.spec, self.api_key, self.servers, self.probes, self.sharing, self.narrate)
        return run.run((median_ttft_ms(self.legs, PEER) or 0.0) / 1000)

    def _send_changed(self, prompt: Prompt, chunk: int) -> None:
        """Send a prompt once more with the chunk changed that its tail quotes, past LMCache."""
        changed = with_other_chunk(
            prompt, chunk, self.spec.chunk_size, self.spec.vocab, self.spec.seed + len(prompt)
        )
        self._send(CHANGED, "prefill", JUDGED, changed, f"{VLLM_ONLY}{self.spec.seed}")

    def _send(self, name: str, node: str, number: int, prompt: Prompt, salt: str | None = None) -> None:
        """Send one leg if its server is up, and keep what came of it."""
        if not self._is_up(node):
            return
        request_id = f"kvshare-{self.spec.seed}-{number}-{name.replace(' ', '-')}"
        leg = Leg(number, name, node, request_id, len(prompt))
        server, model = self.servers[node], self.probes[node].model or ""
        earlier = server.read()
        if self._is_late():
            leg = late(leg, self.spec)
        else:
            ask = Ask(request_id, prompt, self.spec.max_tokens, salt, logprobs=True)
            leg = answered(leg, server.http, model, ask)
        if leg.error is None:
            rise = server.await_counted(earlier, leg.tokens)
            leg = replace(leg, sources=rise.sources if rise else None)
        self.legs.append(leg)
        self.narrate(_describe(leg, self.spec.prompts))

    def _is_late(self) -> bool:
        return time.monotonic() - self.started > self.spec.deadline_s

    def _await_admission(self, number: int, prompt: Prompt, before: Mark) -> None:
        """Wait until the controller knows the prompt's chunks at the owner."""
        if not self.watched or not self._is_up("prefill") or self.legs[-1].error is not None:
            return
        missed = any(not admission.how for admission in self.admissions)
        deadline_s = AFTER_A_MISS_S if missed else ADMISSION_DEADLINE_S
        self.admissions.append(self.sharing.await_admission([prompt], before, deadline_s, number))
        self._sample_pull()

    def _sample_pull(self) -> None:
        sample = self.sharing.pull_sample() if self.watched else None
        if sample is not None:
            self.pull.append(sample)

    def _sent(self, since: Wire | None) -> tuple[float | None, Wire | None]:
        """Return the bytes of a chunk's KV, and what NIXL has counted since, once it is what the legs got."""
        share = self.servers["prefill"].object_bytes()
        chunk = None if share is None else share * self.spec.ranks
        tokens = total_sources(of(self.legs, PEER)).external_kv_transfer
        due = (chunk or 0.0) * tokens / self.spec.chunk_size
        return chunk, await_wire(self.nixl, since, due) if self.nixl else None

    def _await_counters(self, start: dict[str, Reading | None]) -> None:
        """Wait until LMCache has exported what the legs moved, or for one export if they moved nothing."""
        if None in start.values() or not self._is_up("prefill", "decode"):
            return
        peers = of(self.legs, PEER)
        moved = total_sources(peers).external_kv_transfer
        pulls = sum(1 for leg in peers if leg.sources is not None and leg.sources.external_kv_transfer)
        self.narrate("waiting for LMCache to export its counters")
        if moved:
            await_export(self.sharing, self.servers, start, pulls, moved)
        else:
            time.sleep(FLUSH_S)


def _counters(reading: Reading | None) -> Counters | None:
    return None if reading is None else reading.counters


def _rise(before: dict[str, float] | None, now: dict[str, float] | None) -> dict[str, float] | None:
    if before is None or now is None:
        return None
    return {peer: total - before.get(peer, 0.0) for peer, total in now.items()}


def _describe(leg: Leg, prompts: int) -> str:
    of_prompt = f"{leg.leg} {'warm-up' if leg.prompt == WARM_UP else leg.prompt}"
    label = leg.leg if leg.leg in (CONTROL, CHANGED, THROUGH) else of_prompt
    if leg.error is not None or leg.ttft_ms is None:
        return f"{label} on {leg.node}: {leg.error}"
    moved = (
        f", {leg.sources.external_kv_transfer} from the peer"
        if leg.sources and leg.leg in (PEER, CONTROL)
        else ""
    )
    of_prompts = "" if leg.leg in (CONTROL, CHANGED, THROUGH) or leg.prompt == WARM_UP else f" of {prompts}"
    times = f"{leg.tokens} tokens, first token after {leg.ttft_ms:.0f} ms"
    return f"{label}{of_prompts} on {leg.node}: {times}{moved}"
