"""Options, adapters, tenants, odd requests, strangers: no KV but one's own, and none that ends a server."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from kvshare.servers import metrics
from kvshare.servers.http import Http, RefusedKeyError
from tests.conftest import ROOT
from tests.scenarios.conftest import WITH_ADAPTERS, Outcome, Rig, letters, make_adapters
from tests.scenarios.keys import controllers_token

HERE = Path(__file__).parent / "tenants"
CONTROLLER = "http://127.0.0.1:9000"
BASE, TOKENS, WHOLE_CHUNKS = "/models/kvshare-demo", 700, 512
TOOLS = "--enable-auto-tool-choice --tool-call-parser hermes --chat-template '/models/its chat.jinja'"
IDENTITY = ROOT / "docker/patches/lmcache-0.5.6/files/lmcache/integration/vllm/identity.py"
LIMIT = 0.001  # nats; two honest answers in float32 are 0.00001 apart
ADMITTED_S = 3.0

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Answer:
    """The log-probabilities of an answer's tokens, and how many tokens of the prompt came from the peer."""

    logprobs: tuple[float, ...]
    pulled: int

    def equals(self, other: Answer) -> bool:
        return all(abs(a - b) <= LIMIT for a, b in zip(self.logprobs, other.logprobs, strict=True))


@dataclass(frozen=True)
class Server:
    url: str

    def post(self, prompt: str, **fields: Any) -> requests.Response:
        body = {"model": BASE, "prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 1, **fields}
        return requests.post(f"{self.url}/v1/completions", json=body, timeout=60)

    def ask(self, prompt: str, **fields: Any) -> Answer:
        before = self.pulled()
        response = self.post(prompt, **fields)
        assert response.status_code == 200, response.text
        logprobs = response.json()["choices"][0]["logprobs"]["token_logprobs"]
        return Answer(tuple(logprobs), self.pulled() - before)

    def pulled(self) -> int:
        sources = metrics.sources(metrics.parse(requests.get(f"{self.url}/metrics", timeout=10).text))
        assert sources is not None
        return sources.external_kv_transfer


CLIENT = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0, timeout=60)
PREFILL, DECODE = Server("http://127.0.0.1:8010"), Server("http://127.0.0.1:8011")


@pytest.fixture(scope="module", autouse=True)
def stack(rig: Rig, images: dict[str, str]) -> Rig:
    """Both servers with options that nobody but .env gives them."""
    make_adapters(images["prefill"])
    rig.use(VLLM_ARGS=f"{WITH_ADAPTERS} {TOOLS}")
    return rig


def test_a_chat_may_call_tools_by_a_template_of_ones_own() -> None:
    function = {"name": "now", "parameters": {"type": "object", "properties": {}}}
    body = {
        "model": BASE,
        "messages": [{"role": "user", "content": "?"}],
        "tools": [{"type": "function", "function": function}],
        "max_tokens": 4,
    }
    response = requests.post(f"{DECODE.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] == len("now?")


def test_the_controllers_health_check_has_the_clusters_key(stack: Rig) -> None:
    check = ("python", "-m", "kvshare_engine", "health")
    assert stack.docker("exec", "kvshare-controller-1", *check) == "healthy"


def test_a_port_lets_in_who_has_the_clusters_key_and_no_stranger(stack: Rig) -> None:
    every = json.loads(stack.kvshare("ports", "--format", "json").out)
    ports = [port for port in every if port["protocol"] == "ZeroMQ"]
    asked = [f"{port['host']}:{port['first']}{':PULL' * port['purpose'].endswith(' pull')}" for port in ports]
    script = (HERE / "strangers.py").read_text()
    key = "KVSHARE_CLUSTER_KEY_FILE=/run/secrets/cluster_key"  # pragma: allowlist secret
    run = ("exec", "--env", key, "kvshare-prefill-1", "python", "-c", script, *asked)
    found = json.loads(stack.docker(*run).splitlines()[-1])
    assert found == {str(port["first"]): [False, True] for port in ports}
    for http in (Http(CONTROLLER, controllers_token()), Http(PREFILL.url), Http(DECODE.url)):
        assert 'lmcache:rejected_messages_total{socket="port' in http.get("/metrics", timeout=10)


def test_the_controllers_http_asks_for_what_follows_from_the_clusters_key(stack: Rig) -> None:
    for path in ("/", "/env", "/docs", "/controller/workers"):
        with pytest.raises(RefusedKeyError):
            Http(CONTROLLER).get(path)
    ask = ("python", "-m", "kvshare_engine", "ask", "/env")
    assert "KVSHARE_CONTROLLER_HOST" in stack.docker("exec", "kvshare-controller-1", *ask)


def prompt(seed: int, tokens: int = TOKENS) -> str:
    return letters(seed, tokens)


def held_by_prefill(text: str, **fields: Any) -> Answer:
    """The answer that prefill computes, once its KV can be pulled."""
    answer = PREFILL.ask(text, **fields)
    time.sleep(ADMITTED_S)
    return answer


def test_an_adapter_is_answered_from_its_own_kv_alone() -> None:
    text = prompt(1)
    of_a = held_by_prefill(text, model="a")
    of_b, of_base = DECODE.ask(text, model="b"), DECODE.ask(text)
    assert (of_b.pulled, of_base.pulled) == (0, 0)
    assert not of_b.equals(of_a)
    assert not of_base.equals(of_a)
    pulled = DECODE.ask(text, model="a")
    assert pulled.pulled == WHOLE_CHUNKS
    assert pulled.equals(of_a)


def test_the_base_model_is_answered_beside_adapters_that_fill_every_slot() -> None:
    text, models = prompt(11), ("a", "b", BASE)
    alone = [PREFILL.ask(text, model=model, max_tokens=16) for model in models]
    with ThreadPoolExecutor() as threads:
        beside = threads.map(lambda model: PREFILL.ask(text, model=model, max_tokens=16), models)
        assert [one.equals(other) for one, other in zip(alone, beside, strict=True)] == [True] * 3


def test_a_salt_keeps_tenants_apart_across_machines() -> None:
    text = prompt(2)
    of_a = held_by_prefill(text, cache_salt="a")
    assert DECODE.ask(text, cache_salt="b").pulled == 0
    assert DECODE.ask(text).pulled == 0
    pulled = DECODE.ask(text, cache_salt="a")
    assert pulled.pulled == WHOLE_CHUNKS
    assert pulled.equals(of_a)


def test_log_probabilities_of_a_prompt_pull_nothing_and_leave_its_kv_to_others() -> None:
    text = prompt(3)
    computed = held_by_prefill(text)
    assert DECODE.ask(text, prompt_logprobs=1).equals(computed)
    assert PREFILL.ask(text).equals(computed)


@pytest.mark.parametrize(
    "params",
    [{"disagg_spec": {}}, {"ret_first_tok": 1}, {"lmcache.tag.x": ["a"]}, {"lmcache.identity": "mine"}, "x"],
    ids=str,
)
def test_a_field_that_is_not_understood_is_refused_with_a_sentence(params: Any) -> None:
    response = DECODE.post(prompt(4), kv_transfer_params=params)
    assert response.status_code == 400
    assert "kv_transfer_params" in response.json()["error"]["message"]


def test_a_request_that_is_not_to_be_saved_does_not_wait() -> None:
    began = time.monotonic()
    answer = DECODE.ask(prompt(5), kv_transfer_params={"lmcache.skip_save": True})
    assert time.monotonic() - began < 3.0  # LOOKUP_TIMEOUT_MS, which such a request waited for
    assert answer.pulled == 0


# Through the gateway, with OpenAI's own client


def test_every_model_that_the_servers_have_is_listed() -> None:
    assert [model.id for model in CLIENT.models.list()] == [BASE, "a", "b"]


def test_a_completion_is_the_servers_own_with_logprobs_or_streamed() -> None:
    text = prompt(20)
    asked: dict[str, Any] = {"model": BASE, "prompt": text, "max_tokens": 8, "temperature": 0}
    answer = CLIENT.completions.create(**asked, logprobs=2)
    own = PREFILL.post(text, max_tokens=8, logprobs=2).json()["choices"][0]
    assert answer.choices[0].text == own["text"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == own["logprobs"]["tokens"]
    stream = CLIENT.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *events, last = stream
    assert "".join(event.choices[0].text for event in events) == own["text"]
    assert last.usage is not None
    assert answer.usage is not None
    assert last.usage.prompt_tokens == answer.usage.prompt_tokens == TOKENS
    assert last.usage.completion_tokens == answer.usage.completion_tokens


def test_several_answers_to_one_prompt() -> None:
    answer = CLIENT.completions.create(
        model=BASE, prompt=prompt(21), n=3, max_tokens=4, temperature=1, seed=7
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_a_chat_with_tools_with_logprobs_or_streamed() -> None:
    asked: dict[str, Any] = {
        "model": BASE, "messages": [{"role": "user", "content": prompt(22)}], "temperature": 0,
        "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}],
        "max_completion_tokens": 4,
    }  # fmt: skip
    answer = CLIENT.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("now") + TOKENS
    assert answer.choices[0].logprobs is not None
    assert [len(token.top_logprobs) for token in answer.choices[0].logprobs.content or ()] == [2] * 4
    events = list(CLIENT.chat.completions.create(**asked, stream=True))
    assert (
        "".join(event.choices[0].delta.content or "" for event in events) == answer.choices[0].message.content
    )


@pytest.mark.parametrize("tenant", [{}, {"cache_salt": "c"}, {"model": "a"}], ids=["base", "salt", "adapter"])
def test_a_long_prompt_is_pulled_whoever_it_is_of(tenant: dict[str, str]) -> None:
    model, more = tenant.get("model", BASE), {k: v for k, v in tenant.items() if k != "model"}
    for attempt in range(5):  # the gateway does not wait until prefill's KV can be found
        text = letters(f"{tenant}{attempt}", TOKENS)
        before = DECODE.pulled()
        answer = CLIENT.completions.create(
            model=model, prompt=text, max_tokens=4, temperature=0, logprobs=1, extra_body=more
        )
        pulled = DECODE.pulled() - before
        assert answer.choices[0].logprobs is not None
        found = Answer(tuple(map(float, answer.choices[0].logprobs.token_logprobs or ())), pulled)
        assert found.equals(PREFILL.ask(text, **tenant))
        if pulled == WHOLE_CHUNKS:
            return
    pytest.fail(f"of five prompts none was pulled whole, the last one {pulled} of {WHOLE_CHUNKS} tokens")


def test_a_servers_refusal_is_the_clients_own_error() -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        CLIENT.completions.create(model="nobody", prompt="x")


def test_verify_deep_proves_it_with_these_options(stack: Rig) -> None:
    outcome = stack.verify("--deep")
    assert outcome.code == 0, outcome.said
    results = {name: check["result"] for name, check in deep(outcome).items()}
    assert results == dict.fromkeys((f"DEEP-0{number}" for number in range(1, 7)), "success")


def deep(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """The checks that --deep adds, by their ids."""
    (found,) = (one for one in outcome.report["categories"] if one["name"] == "deep")
    return {check["id"]: check for check in found["checks"]}


def test_the_servers_are_those_that_were_started(stack: Rig) -> None:
    """After all of the above, and after clients that hang up."""
    for seed in range(6, 10):
        with pytest.raises(requests.Timeout):
            requests.post(
                f"{DECODE.url}/v1/completions",
                json={"model": BASE, "prompt": prompt(seed, 1500), "max_tokens": 16},
                timeout=0.05,
            )
    assert "EngineDeadError" not in stack.compose("logs", "prefill", "decode")
    assert DECODE.ask(prompt(1), model="a").logprobs


def test_verify_deep_names_tenants_that_share(stack: Rig, long: bool) -> None:
    """Servers whose keys hold neither salt nor adapter; what else there is to see stays green."""
    if not long:
        pytest.skip("one more restart of both servers: make test-long")
    text, honest = IDENTITY.read_text(), 'return digest(apart) if apart else ""'
    assert text.count(honest) == 1
    broken = ROOT / ".kvshare/scenarios/identity.py"
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_text(text.replace(honest, 'return ""'))
    stack.use(HERE / "no_identity.yaml", VLLM_ARGS=WITH_ADAPTERS)
    outcome = stack.verify("--deep")
    assert outcome.code == 1, outcome.said
    assert outcome.report["cause"] == "DEEP-01"
    assert deep(outcome)["DEEP-01"]["found"] == "KV of one salt for another: 256"
    assert "DEEP-03" in outcome.failed_ids()
