"""packed-kv: wrong before, right after, on the emulated kernel; what is not packed is left as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from guard.hunks import Hunk, unpatched
from guard.series import find
from hypothesis import given
from hypothesis import strategies as st
from lmcache.v1.memory_management import MemoryFormat
from probes.packed_kv import (
    BLOCK_SIZE,
    BLOCKS,
    CHUNK,
    HEAD_SIZE,
    HEADS,
    LAYERS,
    LAYOUTS,
    connector_on_cpu,
    on_gpu,
    round_trip_is_exact,
)

from tests.patches.upstream import EVERY, Probe, original

PATH = "lmcache/v1/gpu_connector/gpu_connectors.py"
PATCH = find([EVERY["lmcache"]], "packed-kv")
BEFORE = (original(PATH) or "").encode()
AFTER = PATCH.applied(PATH, BEFORE) or b""
SLOTS = BLOCKS * BLOCK_SIZE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [CHUNK, CHUNK - 1, 17, 1], ids=lambda tokens: f"{tokens}-tokens")
def test_packed_kv_is_wrong_before_and_right_after(layout: str, tokens: int) -> None:
    assert not round_trip_is_exact(BEFORE, layout, tokens)
    assert round_trip_is_exact(AFTER, layout, tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(tokens=st.integers(1, CHUNK), skip=st.integers(0, CHUNK), seed=st.integers(0, 999))
def test_any_slots_and_any_skipped_prefix_round_trip(layout: str, tokens: int, skip: int, seed: int) -> None:
    assert round_trip_is_exact(AFTER, layout, tokens, min(skip, tokens), seed)


@pytest.mark.parametrize("missing", PATCH.hunks[PATH], ids=lambda hunk: f"line-{hunk.line}")
def test_no_hunk_can_be_left_out(missing: Hunk) -> None:
    source = unpatched(AFTER.decode(), (missing,)).encode()
    with pytest.raises((AssertionError, AttributeError)):
        assert all(round_trip_is_exact(source, layout, n) for layout in LAYOUTS for n in (CHUNK, CHUNK - 1))


@pytest.mark.parametrize("source", [BEFORE, AFTER], ids=["before", "after"])
@pytest.mark.parametrize("tokens", [CHUNK, 17])
def test_separate_k_and_v_are_moved_as_before(source: bytes, tokens: int) -> None:
    caches = [torch.randn(2, BLOCKS, BLOCK_SIZE, HEADS, HEAD_SIZE) for _ in range(LAYERS)]
    rows = [cache.view(2, SLOTS, HEADS * HEAD_SIZE) for cache in caches]
    assert_moved(source, caches, rows, tokens, width=HEADS * HEAD_SIZE, use_mla=False)


@pytest.mark.parametrize("source", [BEFORE, AFTER], ids=["before", "after"])
@pytest.mark.parametrize("tokens", [CHUNK, 17])
def test_mla_is_moved_as_before(source: bytes, tokens: int) -> None:
    caches = [torch.randn(BLOCKS, BLOCK_SIZE, 24) for _ in range(LAYERS)]
    rows = [cache.view(1, SLOTS, 24) for cache in caches]
    assert_moved(source, caches, rows, tokens, width=24, use_mla=True)


def assert_moved(
    source: bytes,
    caches: list[torch.Tensor],
    rows: list[torch.Tensor],
    tokens: int,
    width: int,
    use_mla: bool,
) -> None:
    """``rows`` of each layer, [planes, slots, width], leave for the object and come back at other slots."""
    leave, come_back = torch.randperm(SLOTS).split(SLOTS // 2)
    leave, come_back = leave[:tokens], come_back[:tokens]
    wanted = torch.stack([layer[:, leave] for layer in rows], dim=1)
    memory_object = SimpleNamespace(
        tensor=torch.zeros(len(wanted), LAYERS, tokens, width),
        metadata=SimpleNamespace(fmt=MemoryFormat.KV_MLA_FMT if use_mla else MemoryFormat.KV_2LTD),
    )
    connector = connector_on_cpu(source, "NHD", caches, width, use_mla)
    connector.batched_from_gpu([memory_object], [0], [tokens], slot_mapping=leave, kvcaches=on_gpu(caches))
    assert torch.equal(memory_object.tensor, wanted)
    connector.batched_to_gpu([memory_object], [0], [tokens], slot_mapping=come_back, kvcaches=on_gpu(caches))
    assert torch.equal(torch.stack([layer[:, come_back] for layer in rows], dim=1), wanted)


def test_the_probe_fails_on_the_upstream_file(probe: Probe) -> None:
    result = probe("packed-kv", {PATH: BEFORE.decode()})
    assert result.returncode == 1
    assert "packed-kv: FAILED. ProbeError: 64 tokens of packed HND KV should come back" in result.stderr


def test_the_probe_passes_on_the_patched_file(probe: Probe) -> None:
    result = probe("packed-kv", {PATH: AFTER.decode()})
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["packed-kv: ok"]), result.stderr
