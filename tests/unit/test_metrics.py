"""Scrapes as the servers really write them, labels and all."""

from __future__ import annotations

import pytest

from kvshare.servers import metrics
from kvshare.servers.readings import Counters, PullSample, Sources

SERVER = """\
# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="/models/x",source="local_compute"} 1556.0
vllm:prompt_tokens_by_source_total{engine="1",model_name="/models/x",source="local_compute"} 10.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="/models/x",source="local_cache_hit"} 16.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="/models/x",source="external_kv_transfer"} 1536.0
# TYPE lmcache:num_hit_tokens_total counter
lmcache:num_hit_tokens_total{model_name="/models/x",role="worker",worker_id="0"} 1536.0
# TYPE lmcache:num_requested_tokens_total counter
lmcache:num_requested_tokens_total{model_name="/models/x",role="worker",worker_id="0"} 1536.0
# TYPE lmcache:retrieve_hit_rate gauge
lmcache:retrieve_hit_rate{model_name="/models/x",role="worker",worker_id="0"} 1.0
lmcache:retrieve_hit_rate{model_name="/models/x",role="worker",worker_id="1"} 0.5
# TYPE lmcache:p2p_time_to_transfer histogram
lmcache:p2p_time_to_transfer_bucket{le="0.1",worker_id="0"} 2.0
lmcache:p2p_time_to_transfer_bucket{le="+Inf",worker_id="0"} 3.0
lmcache:p2p_time_to_transfer_count{worker_id="0"} 3.0
lmcache:p2p_time_to_transfer_sum{worker_id="0"} 0.21
# TYPE lmcache:p2p_transfer_speed histogram
lmcache:p2p_transfer_speed_count{worker_id="0"} 3.0
lmcache:p2p_transfer_speed_sum{worker_id="0"} 60000.0
"""


def test_sources_are_summed_over_other_labels() -> None:
    assert metrics.sources(metrics.parse(SERVER)) == Sources(1566, 16, 1536)


def test_a_server_that_does_not_count_is_not_one_that_counted_zero() -> None:
    assert metrics.sources(metrics.parse("# TYPE x counter\nx_total 1\n")) is None


def test_lmcache_counters() -> None:
    assert metrics.counters(metrics.parse(SERVER)) == Counters(1536, 1536, 0.5, 3, 0.21, 60000)


def test_counters_not_exported_yet_are_zero() -> None:
    assert metrics.counters(()) == Counters()


def test_total_tells_absent_from_zero() -> None:
    samples = metrics.parse(SERVER)
    assert metrics.total(samples, "lmcache:num_hit_tokens_total", role="worker") == 1536
    assert metrics.total(samples, "lmcache:num_hit_tokens_total", role="scheduler") is None


@pytest.mark.parametrize(("pending", "expected"), [("0.0", False), ("1.0", True)])
def test_pull_socket(pending: str, expected: bool) -> None:
    text = (
        "# TYPE lmcache:cache_controller_pull_socket_message_count gauge\n"
        'lmcache:cache_controller_pull_socket_message_count{host="a"} 7.0\n'
        f'lmcache:cache_controller_pull_socket_has_pending{{host="a"}} {pending}\n'
    )
    assert metrics.pull_sample(metrics.parse(text)) == PullSample(7, expected)


def test_pull_socket_that_is_not_shown() -> None:
    assert metrics.pull_sample(()) is None


def test_no_prometheus_text() -> None:
    with pytest.raises(ValueError, match=r".+"):
        metrics.parse("<html>not here</html>")
