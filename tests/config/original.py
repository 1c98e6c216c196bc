"""The system that kvshare follows, as it was started by hand, and why ours differs where it does."""

from __future__ import annotations

from typing import Any

PREFILL, DECODE = "192.168.110.13", "192.168.110.97"

# By node: what was on its command line, in its environment and in its LMCache YAML.
VLLM: dict[str, Any] = {
    "model": "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "--host": "0.0.0.0",
    "--gpu-memory-utilization": "0.9",
    "--max-model-len": "1600",
    "--kv-transfer-config kv_connector": "LMCacheConnectorV1",
    "--kv-transfer-config kv_role": "kv_both",
}
ENVIRONMENT = {"PYTHONHASHSEED": "123", "UCX_TLS": "tcp", "CUDA_VISIBLE_DEVICES": "0"}
LMCACHE: dict[str, Any] = {
    "chunk_size": 256,
    "local_cpu": True,
    "max_local_cpu_size": 5,
    "enable_async_loading": True,
    "enable_p2p": True,
    "transfer_channel": "nixl",
    "enable_controller": True,
    "controller_pull_url": f"{PREFILL}:8300",
    "controller_reply_url": f"{PREFILL}:8400",
}
OF_PREFILL: dict[str, Any] = {
    "--port": "8010",
    "p2p_host": PREFILL,
    "p2p_init_ports": 8200,
    "p2p_lookup_ports": 8201,
    "lmcache_instance_id": "lmcache_instance_1",
    "lmcache_worker_ports": 8500,
}
OF_DECODE: dict[str, Any] = {
    "--port": "8011",
    "p2p_host": DECODE,
    "p2p_init_ports": 8202,
    "p2p_lookup_ports": 8203,
    "lmcache_instance_id": "lmcache_instance_2",
    "lmcache_worker_ports": 8501,
}
NODES: dict[str, dict[str, Any]] = {
    "prefill": {**VLLM, **ENVIRONMENT, **LMCACHE, **OF_PREFILL},
    "decode": {**VLLM, **ENVIRONMENT, **LMCACHE, **OF_DECODE},
    "controller": {
        "--host": "0.0.0.0",
        "--port": "9000",
        "--monitor-ports pull": 8300,
        "--monitor-ports reply": 8400,
        "PYTHONHASHSEED": "123",
    },
}

SERVERS, CONTROLLER = "prefill and decode", "controller"
# Why each setting differs, in the order of the page.
REASONS: dict[tuple[str, str], str] = {
    (SERVERS, "--host"): "The API listens on the node's own address and on no other.",
    (SERVERS, "--dtype"): "vLLM's default, said so that both nodes can be compared.",
    (SERVERS, "--kv-cache-dtype"): "vLLM's default, as well; `KV_CACHE_DTYPE=fp8` halves the bytes.",
    (SERVERS, "--middleware"): (
        "What a client may tell LMCache is looked at where its request enters; "
        "with an API key, every route asks for it."
    ),
    (SERVERS, "--kv-transfer-config kv_load_failure_policy"): (
        "vLLM 0.32 fails a request whose KV does not arrive, unless told to compute it."
    ),
    (SERVERS, "CUDA_VISIBLE_DEVICES"): (
        "The container is given its GPUs, by index or UUID (`PREFILL_GPU`, `DECODE_GPU`), and sees no others."
    ),
    (SERVERS, "CUDA_DEVICE_ORDER"): "A GPU's index means the card that nvidia-smi shows under it.",
    (SERVERS, "UCX_TLS"): "NIXL 1.5.1 refuses transports without CUDA memory where there is a GPU.",
    (SERVERS, "UCX_NET_DEVICES"): (
        "UCX may otherwise advertise docker0, whose address every Docker host has."
    ),
    (SERVERS, "UCX_TCP_PORT_RANGE"): "UCX otherwise takes any port, and no firewall can be closed.",
    (SERVERS, "GLOO_SOCKET_IFNAME"): (
        "gloo otherwise listens on the address of the host's name, at a port of the kernel's choice."
    ),
    (SERVERS, "NCCL_SOCKET_IFNAME"): "The same of NCCL, where a server has several GPUs.",
    (SERVERS, "NIXL_TELEMETRY_ENABLE"): "NIXL counts the bytes that it sends, for `verify`.",
    (SERVERS, "NIXL_TELEMETRY_EXPORTER"): "The exporter that serves several ranks at one port.",
    (SERVERS, "NIXL_TELEMETRY_PROMETHEUS_LOCAL"): (
        "It listens on every address otherwise, and asks nobody who calls."
    ),
    (SERVERS, "HF_ENDPOINT"): "The hub's own default, said so that .env can name another.",
    (SERVERS, "HF_HUB_OFFLINE"): "The hub's own default, said so that .env can turn it.",
    (SERVERS, "HF_HOME"): "The hub's cache lies on the models volume and outlives the container.",
    (SERVERS, "VLLM_USE_FLASHINFER_SAMPLER"): "The image leaves FlashInfer's run-time compiler out.",
    (SERVERS, "VLLM_NO_USAGE_STATS"): "No usage report leaves the machine.",
    (SERVERS, "LMCACHE_TRACK_USAGE"): "No usage report leaves the machine.",
    (SERVERS, "lookup_timeout_ms"): "LMCache's default, said because it caps a whole pull.",
    (SERVERS, "p2p_min_tokens"): (
        "A setting of ours ([patches.md](patches.md)): pulls of fewer tokens are not made; 0 makes all."
    ),
    (SERVERS, "p2p_checksum"): (
        "A setting of ours ([patches.md](patches.md)): on, no pulled chunk is used whose bytes differ."
    ),
    (SERVERS, "pre_caching_hash_algorithm"): "LMCache's default, said because nodes must agree on it.",
    (SERVERS, "save_unfull_chunk"): "LMCache's default, said because hits come in whole chunks.",
    (SERVERS, "extra_config"): (
        "The scheduler does not sleep 10 ms a step for each request that waits for an answer: hits are "
        "sooner, and who generates waits for nobody's pull. "
        "Counters are exported every 2 s, not 10: a verification waits for them. "
        "The controller hears of a key at once, not after 10 ms: who asks decode next finds it."
    ),
    (SERVERS, "lmcache_worker_heartbeat_delay_time"): (
        "When heartbeats begin; without them a controller restart ends all sharing."
    ),
    (SERVERS, "lmcache_worker_heartbeat_time"): (
        "A worker's heartbeats bring it back after a controller restart."
    ),
    (CONTROLLER, "--host"): "Its HTTP port shows its environment: to the nodes' network and no other.",
    (CONTROLLER, "--monitor-ports heartbeat"): "Where the heartbeats go.",
    (CONTROLLER, "--health-check-interval"): "Workers without heartbeats are looked for.",
    (CONTROLLER, "--lmcache-worker-timeout"): "… and removed, so that nobody asks a peer that is gone.",
    (CONTROLLER, "LMCACHE_TRACK_USAGE"): "No usage report leaves the machine.",
    (CONTROLLER, "VLLM_NO_USAGE_STATS"): "The image is the servers' too.",
}
