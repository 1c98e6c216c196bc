"""What is watched: the targets that follow from compose.yaml, and what the canary's own metrics say."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from kvshare.config.keys import Keys
from kvshare.config.settings import Settings, validate_node
from kvshare.errors import KvshareError
from kvshare.site import images
from kvshare.stack.members import WATCHERS, members_of
from kvshare.verify.canary import State
from kvshare.watch.dashboard import PANELS
from kvshare.watch.exporter import Canaries, Neighbours
from kvshare.watch.prometheus import TOKEN, configuration
from kvshare.watch.rules import rules
from kvshare.watch.watched import Watched
from tests.conftest import ROOT
from tests.unit import scrape
from tests.unit.build import WATCHED as STACK
from tests.unit.fake_stack import FakeStack, serve


def environment(**changes: str) -> dict[str, str]:
    """What compose.yaml tells the services, with the defaults of what it leaves to `.env`."""
    facts = yaml.safe_load((ROOT / "compose.yaml").read_text())["x-kvshare"]["observe"]
    told = {name: re.sub(r"\$\{\w+:-(.*?)\}+", r"\1", str(value)) for name, value in facts.items()}
    told["KVSHARE_OBSERVE_DECODES"] = "127.0.0.1"
    return told | {f"KVSHARE_OBSERVE_{name}": value for name, value in changes.items()}


def test_the_stack_is_read_from_the_services_environment() -> None:
    watched = Watched.of(environment())
    assert [(node.name, node.url, node.instance) for node in watched.servers] == [
        ("prefill", "http://127.0.0.1:8010", "lmcache_instance_1"),
        ("decode", "http://127.0.0.1:8011", "lmcache_instance_2"),
    ]
    assert watched.prefill.peer_init_urls == ("127.0.0.1:8200",)
    assert watched.controller == "http://127.0.0.1:9000"


def test_each_rank_of_each_decode_node_has_its_own_address() -> None:
    watched = Watched.of(environment(GPUS="0,1", DECODES="192.168.110.97, 192.168.110.98"))
    assert [(node.name, node.instance, node.peer_init_urls) for node in watched.decodes] == [
        ("decode-1", "lmcache_instance_2", ("192.168.110.97:8202", "192.168.110.97:8212")),
        ("decode-2", "lmcache_instance_3", ("192.168.110.98:8202", "192.168.110.98:8212")),
    ]


def test_every_member_is_scraped_under_its_own_name() -> None:
    watched = Watched.of(environment(DECODES="192.168.110.97 192.168.110.98"))
    targets = {
        target["labels"]["node"]: target["targets"]
        for job in configuration(watched)["scrape_configs"]
        for target in job["static_configs"]
    }
    assert targets == {
        "prefill": ["127.0.0.1:8010"],
        "decode-1": ["192.168.110.97:8011"],
        "decode-2": ["192.168.110.98:8011"],
        "controller": ["127.0.0.1:9000"],
        "gateway": ["127.0.0.1:8000"],
        "canary": ["127.0.0.1:9091"],
    }


def test_what_is_alarming_says_what_to_type() -> None:
    alerts = [rule for group in rules(Watched.of(environment()))["groups"] for rule in group["rules"]]
    named = [rule for rule in alerts if "alert" in rule]
    assert len({rule["alert"] for rule in named}) == len(named) > 10
    assert all("make " in rule["annotations"]["description"] for rule in named)


def test_a_node_without_observe_is_refused_and_with_it_both_watchers_belong_to_it() -> None:
    for node in ("observe", *WATCHERS):
        with pytest.raises(KvshareError, match="set OBSERVE=5"):
            validate_node(node, Settings(ROOT, {}))
        assert validate_node(node, Settings(ROOT, {"OBSERVE": "5"})) == node
    assert [member.name for member in members_of(STACK, "observe")] == list(WATCHERS)
    assert set(members_of(STACK, "observe")) < set(members_of(STACK, "prefill"))


def shown(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}


def neighbours(stack: FakeStack, token: str | None = None) -> dict[str, float]:
    """What is seen of a controller that gives both servers prefill's address."""
    registry = CollectorRegistry()
    with serve(stack) as spec:
        of = {"PREFILL_PORT": spec.prefill, "DECODE_PORT": spec.decode, "CONTROLLER_PORT": spec.controller}
        ports = {name: url.rsplit(":", 1)[1] for name, url in of.items()}
        registry.register(Neighbours(Watched.of(environment(**ports)), Keys(controller=token)))
        return shown(registry)


def test_a_worker_under_anothers_address_is_not_known() -> None:
    found = neighbours(FakeStack())
    assert found['kvshare_worker_known{node="prefill",rank="0"}'] == 1
    assert found['kvshare_worker_known{node="decode",rank="0"}'] == 0
    assert found['kvshare_worker_keys{node="prefill",rank="0"}'] == 12


def test_a_controller_that_asks_for_the_clusters_key_is_given_what_follows_from_it() -> None:
    assert neighbours(FakeStack(token="t0ken"), "t0ken")['kvshare_worker_keys{node="prefill",rank="0"}'] == 12
    assert not any(name.startswith("kvshare_worker") for name in neighbours(FakeStack(token="t0ken")))


def test_prometheus_sends_the_controller_alone_a_token_and_shows_none() -> None:
    configured = configuration(Watched.of(environment()), keyed=True)
    given = {job["job_name"]: job.get("authorization") for job in configured["scrape_configs"]}
    assert given.pop("controller") == {"credentials_file": TOKEN}
    assert set(given.values()) == {None}
    assert "authorization" not in str(configuration(Watched.of(environment())))


def test_each_server_tells_its_version() -> None:
    stack = FakeStack()
    stack.decode.version = "0.33.0"
    found = neighbours(stack)
    assert found['kvshare_version{node="prefill",version="0.32.0"}'] == 1
    assert found['kvshare_version{node="decode",version="0.33.0"}'] == 1


def test_of_a_controller_that_is_silent_nothing_is_said() -> None:
    found = neighbours(FakeStack(controller_up=False))
    assert not any(name.startswith("kvshare_worker") for name in found)


def test_how_a_canary_ended_is_one_state_of_all() -> None:
    registry = CollectorRegistry()
    canaries = Canaries(registry, State)
    canaries.ended("decode", State.WRONG, {"pulled": 0.5, "computed": None})
    canaries.ended("decode", State.PROVEN, {"pulled": 0.25, "computed": None})
    found = shown(registry)
    states = {name: value for name, value in found.items() if name.startswith("kvshare_canary_state")}
    assert len(states) == len(State)
    assert [name for name, value in states.items() if value] == [
        'kvshare_canary_state{node="decode",state="proven"}'
    ]
    assert found['kvshare_canary_ttft_seconds{kv="pulled",node="decode"}'] == 0.25
    assert not any('kv="computed"' in name for name in found)


SELECTOR = re.compile(r"\b((?:vllm|lmcache|kvshare|process)[:_][\w:]+)(?:\{([^}]*)\})?")


def missing(queries: Iterable[str], recorded: Iterable[str]) -> set[str]:
    """The selectors that no series of a real stack answers."""
    series = [sample for samples in scrape.by_member().values() for sample in samples]
    found = set()
    for query in queries:
        for name, matchers in SELECTOR.findall(query):
            wanted = dict(re.findall(r'(\w+)="([^"]*)"', matchers))
            if name not in recorded and not any(
                name == sample.name and wanted.items() <= sample.labels.items() for sample in series
            ):
                found.add(f"{name}{wanted or ''}")
    return found


def every_query() -> tuple[list[str], set[str]]:
    """What is asked by rules and panels, and what rules record."""
    ruled = [rule for group in rules(Watched.of(environment()))["groups"] for rule in group["rules"]]
    asked = [rule["expr"] for rule in ruled]
    asked += [query for panel in PANELS for query in panel.queries.values()]
    return asked, {rule["record"] for rule in ruled if "record" in rule}


# With KV_CHECKSUM=on alone; tests/scenarios/one_engine has it fire on a real stack.
OF_CHECKSUMS = "lmcache:checksum_mismatches_total"


def test_a_real_stack_has_every_series_that_a_rule_or_a_panel_asks_for() -> None:
    assert missing(*every_query()) == {OF_CHECKSUMS}


def test_a_series_that_no_stack_has_is_found() -> None:
    asked = ['rate(vllm:prompt_tokens_by_source_total{source="gpu"}[5m]) / lmcache:num_pulls_total']
    assert missing(asked, set()) == {
        "lmcache:num_pulls_total",
        "vllm:prompt_tokens_by_source_total{'source': 'gpu'}",
    }


def test_its_image_is_built_and_pushed_only_where_it_is_wanted() -> None:
    assert images.built(Settings(ROOT, {})) == ("prefill", "client")
    assert images.built(Settings(ROOT, {"OBSERVE": "5"})) == ("prefill", "client", "prometheus")
