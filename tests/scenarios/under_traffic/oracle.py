"""The pair under traffic, and a third server without sharing that answers the same requests."""

from __future__ import annotations

import itertools
import random
import re
import string
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import requests
from prometheus_client.samples import Sample

from kvshare.servers import metrics
from kvshare.servers.readings import Sums
from kvshare.servers.wait import poll
from tests.scenarios.conftest import Rig
from tests.scenarios.under_faults.machines import MUST_NOT_SAY, anonymous_bytes
from tests.scenarios.under_traffic.answers import Answer, ask, problem
from tests.scenarios.under_traffic.requests import BURST, MODEL, Case, Request, Wave
from tests.scenarios.under_traffic.reuse import too_much
from tests.scenarios.under_traffic.shrink import as_test, shrink

PORTS = {"prefill": 8010, "decode": 8011, "alone": 8012}
SERVERS = ("prefill", "decode")
ALONE = "kvshare-alone"
STEP_TOKENS = 512  # that the pair computes in a step, at most
HEALTHY_S = 240.0
ADMITTED_S = 0.5  # by when the controller has heard of a wave's prompts
QUIET_S = 30.0  # by when nothing of an ended request may be held
# What must be zero once nobody asks: gauges of vLLM's and of LMCache's.
MUST_BE_ZERO = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "lmcache:pinned_memory_objs_count",
    "lmcache:storage_events_ongoing_count",
    "lmcache:storage_events_done_count",
)
CAUSE = re.compile(r"\b[A-Z]\w+(Error|Exception): ")  # the last line of a traceback
TRIES, SHRINK_S = 60, 300.0  # how many cases are tried to shrink one, and for how long


@dataclass(frozen=True)
class Problem:
    """A request and what was wrong with its answer."""

    request: Request
    sentence: str

    @property
    def kind(self) -> str:
        """The sentence without its numbers, which are another's in a smaller case."""
        return re.sub(r"[-\d.]+", "", self.sentence)


@dataclass
class Oracle:
    """Plays cases; every run has other letters, so that no case meets another's cache."""

    rig: Rig
    seed: int
    played: list[Request] = field(default_factory=list)
    reused: int = 0  # tokens of prompts that were not computed for them, by the answers
    longest_s: float = 0.0
    answered: set[str] = field(default_factory=set)  # fields that an answered request has carried
    _runs: Iterator[int] = field(default_factory=itertools.count)

    def require(self, case: Case) -> None:
        """Play a case; AssertionError with the smallest case that still fails, as a test."""
        if problems := self.play(case):
            said = "\n".join(f"{one.sentence}\n    {one.request}" for one in problems[:5])
            said = f"{len(problems)} problems, the first ones:\n{said}\n" + "\n".join(self.causes())
            print(said, flush=True)  # it takes minutes to make the case small
            smallest = shrink(case, lambda smaller: self._fails_alike(smaller, problems), TRIES, SHRINK_S)
            raise AssertionError(f"{said}\n\n{as_test(smallest)}")

    def _fails_alike(self, case: Case, problems: Sequence[Problem]) -> bool:
        """Whether a case has a problem of the same kind: another one would lead away from it."""
        kinds = {one.kind for one in problems}
        return any(one.kind in kinds for one in self.play(case, lambda one: one.kind in kinds))

    def play(self, case: Case, enough: Callable[[Problem], bool] = lambda _: False) -> list[Problem]:
        """Return what was wrong with the answers of a case's requests, until one problem is enough."""
        run, before = f"{self.seed}-{next(self._runs)}", len(self.played)
        found: list[Problem] = []
        with ThreadPoolExecutor(4 * BURST) as threads:
            for wave in case:
                found += self._wave(threads, wave, run, before)
                if any(map(enough, found)):
                    break
        self._await_healthy()
        return found

    def _wave(self, threads: ThreadPoolExecutor, wave: Wave, run: str, before: int) -> list[Problem]:
        """Play a wave; ``before`` says where in ``played`` the run begins."""
        self.played += wave
        shared = [threads.submit(self._timed, request, run) for request in wave]
        alone = [threads.submit(_alone, request, run) for request in wave]
        found: list[tuple[Request, str | None]] = []
        for request, asked, honest in zip(wave, shared, alone, strict=True):
            answer = asked.result()
            self.reused += answer.reused
            if answer.choices and answer.error is None:
                self.answered |= request.fields.keys()
            found.append((request, problem(request, answer, honest.result())))
            found.append((request, too_much(request, answer.reused, self.played[before:], run)))
        time.sleep(ADMITTED_S)
        return [Problem(request, sentence) for request, sentence in found if sentence]

    def _timed(self, request: Request, run: str) -> Answer:
        begun = time.monotonic()
        answer = ask(url(request.node), request, run)
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        return answer

    def _await_healthy(self) -> None:
        """Wait for a server that a request has ended, so that the next case finds it."""
        assert poll(lambda: all(map(_is_healthy, PORTS)), bool, HEALTHY_S), "a server did not come back"

    def started_at(self) -> dict[str, str]:
        """When each server's container was started last."""
        return {
            one: self.rig.docker("inspect", "--format={{.State.StartedAt}}", one)
            for one in self._containers()
        }

    def causes(self) -> list[str]:
        """Why engines have ended, as each server's log has it."""
        logs = {name: self.rig.compose("logs", name) for name in SERVERS} | {
            "alone": self.rig.docker("logs", ALONE)
        }
        return [
            f"{name}: {line.partition('] ')[2][-300:]}"
            for name, text in logs.items()
            for line in text.splitlines()
            if "EngineCore" in line and CAUSE.search(line)
        ]

    def meet_every_length(self) -> None:
        """Have each server compute every number of tokens that a step may have: it keeps kernels for each."""
        letters = random.Random(self.seed)
        for length in range(1, STEP_TOKENS + 1):
            prompt = "".join(letters.choices(string.ascii_lowercase, k=length))
            for server in SERVERS:
                body = {"model": MODEL, "prompt": prompt, "max_tokens": 1}
                requests.post(f"{url(server)}/v1/completions", json=body, timeout=60).raise_for_status()

    def memory_bytes(self) -> int:
        """Anonymous memory of all processes of both servers."""
        tops = (self.rig.docker("top", one, "-eo", "pid") for one in self._containers())
        pids = (pid for top in tops for pid in top.split()[1:])
        return sum(anonymous_bytes(int(pid)) for pid in pids)

    def left_behind(self) -> dict[str, float]:
        """What servers still hold though nobody asks; waits until they hold nothing, or QUIET_S."""
        return poll(_held, lambda held: not held, QUIET_S)

    def said(self) -> list[str]:
        """What a server must never log and has."""
        logs = self.rig.compose("logs", *SERVERS)
        return [words for words in MUST_NOT_SAY if words in logs]

    def _containers(self) -> list[str]:
        return self.rig.compose("ps", "--quiet", *SERVERS).split()


@dataclass(frozen=True)
class Moved(Sums):
    """What the pair did since it was started; the scenario proves nothing where one of these is zero."""

    pulled_tokens: float
    preemptions: float
    evicted_keys: float


def moved() -> Moved:
    both = [_scrape(server) for server in SERVERS]

    def counted(name: str, **labels: str) -> float:
        return sum(metrics.total(one, name, **labels) or 0.0 for one in both)

    return Moved(
        counted(metrics.PROMPT_TOKENS, source="external_kv_transfer"),
        counted("vllm:num_preemptions_total"),
        counted("lmcache:local_cpu_evict_keys_count_total"),
    )


@contextmanager
def server_alone(rig: Rig, options: str) -> Iterator[None]:
    """A server of the same image and model that shares nothing and caches nothing."""
    environment = {
        "KVSHARE_API_PORT": str(PORTS["alone"]),
        "KVSHARE_KV_TRANSFER_CONFIG": "",
        "KVSHARE_USER_VLLM_ARGS": f"{options} --no-enable-prefix-caching",
    }
    given = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    rig.compose("run", "--detach", "--no-deps", "--name", ALONE, *given, "decode")
    rig.docker("update", "--restart=unless-stopped", ALONE)
    try:
        up = poll(lambda: _is_healthy("alone"), bool, HEALTHY_S)
        assert up, rig.docker("logs", "--tail", "50", ALONE)
        yield
    finally:
        rig.docker("rm", "--force", ALONE)


def url(server: str) -> str:
    return f"http://127.0.0.1:{PORTS[server]}"


def _alone(request: Request, run: str) -> Answer:
    """What the server alone says; nobody hangs up there, and it is told nothing for LMCache."""
    if request.refused:
        return Answer(None)
    return ask(url("alone"), replace(request, hang_up_s=None), run, kv_transfer_params=None)


def _is_healthy(server: str) -> bool:
    try:
        return requests.get(f"{url(server)}/health", timeout=5).ok
    except requests.RequestException:
        return False


def _scrape(server: str) -> Sequence[Sample]:
    return metrics.parse(requests.get(f"{url(server)}/metrics", timeout=30).text)


def _held() -> dict[str, float]:
    scraped = {server: _scrape(server) for server in SERVERS}
    return {
        f"{name} of {server}": value
        for server, samples in scraped.items()
        for name in MUST_BE_ZERO
        if (value := metrics.total(samples, name))
    }
