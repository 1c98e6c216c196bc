"""cpu-connector: bit-exact both ways, against the cache as vLLM's own kernel writes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lmcache.v1.gpu_connector import cpu_connector
from lmcache.v1.gpu_connector.cpu_connector import VLLMPagedMemCPUConnector
from lmcache.v1.memory_management import MemoryFormat
from probes import ProbeError
from probes.cpu_connector import Model, check, connector_for, metadata_for, object_for

MODELS = st.builds(
    Model,
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_size=st.sampled_from([32, 64, 80]),
    blocks=st.integers(2, 5),
    block_size=st.sampled_from([16, 32, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)


@given(model=MODELS, share=st.floats(0, 1), skip=st.integers(0, 200), seed=st.integers(0, 999))
def test_k_and_v_of_vllm_round_trip(model: Model, share: float, skip: int, seed: int) -> None:
    torch.manual_seed(seed)
    slots = torch.randperm(model.blocks * model.block_size)
    tokens = max(1, int(share * len(slots)))
    check(model, slots[:tokens], min(skip, tokens))


def test_a_connector_that_ignores_vllms_order_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cpu_connector, "_learn_order", lambda block, width, _: torch.arange(block * width).view(block, width)
    )
    with pytest.raises(ProbeError, match="The object should hold the K that vLLM wrote"):
        check(Model(), torch.arange(40))


def test_v_half_corrupted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    read = VLLMPagedMemCPUConnector.from_gpu

    def corrupt(self: Any, memory_obj: Any, start: int, end: int, **kwargs: Any) -> None:
        read(self, memory_obj, start, end, **kwargs)
        memory_obj.tensor[1] = 0

    monkeypatch.setattr(VLLMPagedMemCPUConnector, "from_gpu", corrupt)
    with pytest.raises(ProbeError, match="The object should hold the V that vLLM wrote"):
        check(Model(), torch.arange(40))


def packed(model: Model, layout: str) -> list[torch.Tensor]:
    """Random caches of a layout, one a layer."""
    middle = (model.heads, model.block_size) if layout == "HND" else (model.block_size, model.heads)
    return [torch.randn(model.blocks, *middle, 2 * model.head_size) for _ in range(model.layers)]


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@given(cuts=st.lists(st.integers(0, 96), max_size=4), seed=st.integers(0, 999))
def test_chunks_of_any_size_reach_another_cache(layout: str, cuts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = Model()
    source, target = packed(model, layout), packed(model, layout)
    leave, come_back = torch.randperm(192).split(96)
    bounds = sorted({0, 96, *cuts})
    starts, ends = bounds[:-1], bounds[1:]
    objects = [object_for(model, end - start) for start, end in zip(starts, ends, strict=True)]
    connector_for(model, layout).batched_from_gpu(objects, starts, ends, slot_mapping=leave, kvcaches=source)
    connector_for(model, layout).batched_to_gpu(
        objects, starts, ends, slot_mapping=come_back, kvcaches=target
    )
    returned = [object_for(model, end - start) for start, end in zip(starts, ends, strict=True)]
    connector_for(model, layout).batched_from_gpu(
        returned, starts, ends, slot_mapping=come_back, kvcaches=target
    )
    for sent, received in zip(objects, returned, strict=True):
        assert not sent.tensor.isnan().any()
        assert torch.equal(sent.tensor, received.tensor)


def test_nhd_objects_hold_k_then_v_of_each_row() -> None:
    model = Model()
    caches = packed(model, "NHD")
    slots = torch.randperm(192)[:50]
    memory_object = object_for(model, 50)
    connector_for(model, "NHD").from_gpu(memory_object, 0, 50, slot_mapping=slots, kvcaches=caches)
    for layer, cache in enumerate(caches):
        rows = cache.view(192, model.heads, 2, model.head_size)[slots]
        assert torch.equal(memory_object.tensor[0, layer], rows[:, :, 0].flatten(1))
        assert torch.equal(memory_object.tensor[1, layer], rows[:, :, 1].flatten(1))


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_other_slots_and_gaps_between_blocks_are_left_alone(layout: str) -> None:
    model = Model()
    block = model.heads * model.block_size * 2 * model.head_size
    memory = torch.full((model.layers, model.blocks, block + 64), torch.inf)
    caches = [layer[:, :block].unflatten(1, packed(model, layout)[0].shape[1:]) for layer in memory]
    memory_object = object_for(model, 20)
    memory_object.tensor.zero_()
    slots = torch.randperm(192)[:20]
    connector_for(model, layout).to_gpu(memory_object, 0, 20, slot_mapping=slots, kvcaches=caches)
    assert int((memory == 0).sum()) == memory_object.tensor.numel()
    assert bool((memory[:, :, block:] == torch.inf).all())


def test_the_prefix_that_vllm_cached_is_not_overwritten() -> None:
    model = Model()
    caches = [torch.ones_like(cache) for cache in packed(model, "NHD")]
    memory_object = object_for(model, 64)
    memory_object.tensor.zero_()
    move = {"slot_mapping": torch.arange(128), "kvcaches": caches, "vllm_cached_tokens": 80}
    connector_for(model, "NHD").to_gpu(memory_object, 64, 128, **move)
    written = [(cache == 0).flatten(2).all(2).flatten().nonzero().flatten().tolist() for cache in caches]
    assert written == [list(range(80, 128))] * model.layers


def test_a_tensor_that_shows_nhd_over_hnd_memory_is_recognised() -> None:
    model = Model()
    caches = packed(model, "HND")
    shown = [cache.transpose(1, 2) for cache in caches]
    slots = torch.randperm(192)[:50]
    objects = object_for(model, 50), object_for(model, 50)
    connector_for(model).from_gpu(objects[0], 0, 50, slot_mapping=slots, kvcaches=caches)
    connector_for(model).from_gpu(objects[1], 0, 50, slot_mapping=slots, kvcaches=shown)
    assert torch.equal(objects[0].tensor, objects[1].tensor)


def test_new_tensors_of_the_engine_are_noticed() -> None:
    model, slots = Model(), torch.arange(10)
    connector = connector_for(model)
    objects = object_for(model, 10), object_for(model, 10)
    for memory_object, value in zip(objects, (1.0, 2.0), strict=True):
        caches = [torch.full_like(cache, value) for cache in packed(model, "HND")]
        connector.from_gpu(memory_object, 0, 10, slot_mapping=slots, kvcaches=caches)
        assert bool((memory_object.tensor == value).all())


def test_shape_of_an_object() -> None:
    assert connector_for(Model()).get_shape(7) == torch.Size([2, 2, 7, 96])


def test_mla_is_refused() -> None:
    config = SimpleNamespace(use_layerwise=False)
    with pytest.raises(
        ValueError, match="supports no MLA model: serve one without multi-head latent attention"
    ):
        VLLMPagedMemCPUConnector.from_config(config, metadata_for(Model(), use_mla=True))


def test_layerwise_is_refused() -> None:
    with pytest.raises(ValueError, match="moves whole objects, not layers: set use_layerwise to false"):
        connector_for(Model(), use_layerwise=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kvcaches": [torch.zeros(2, 6, 32, 3, 32)] * 2}, "knows only packed K and V, not the cache format"),
        ({"kvcaches": [torch.zeros(6, 4, 32, 64)] * 2}, r"Expected \(layers, heads, 2 \* head_size\)"),
        ({"kvcaches": [torch.zeros(6, 3, 32, 64)] * 3}, r"Expected \(layers, heads, 2 \* head_size\)"),
        (
            {"kvcaches": [torch.zeros(6, 3, 32, 64), torch.zeros(7, 3, 32, 64)]},
            "same cache shape in every layer",
        ),
        (
            {"kvcaches": [torch.zeros(6, 3, 32, 64).half()] * 2},
            "holds torch.float32, but vLLM's cache torch.float16",
        ),
        ({"slot_mapping": torch.tensor([0, -1, 2])}, r"A token without a slot \(-1\) cannot be moved"),
        ({"kvcaches": None}, "needs 'kvcaches' and 'slot_mapping'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], sentence: str) -> None:
    move = {"slot_mapping": torch.arange(3), "kvcaches": [torch.zeros(6, 3, 32, 64)] * 2, **change}
    arguments = {name: value for name, value in move.items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        connector_for(Model()).from_gpu(object_for(Model(), 3), 0, 3, **arguments)


def test_another_object_format_is_refused() -> None:
    memory_object = object_for(Model(), 3)
    memory_object.metadata.fmt = MemoryFormat.KV_T2D
    move = {"slot_mapping": torch.arange(3), "kvcaches": [torch.zeros(6, 3, 32, 64)] * 2}
    with pytest.raises(ValueError, match="moves KV_2LTD objects, not"):
        connector_for(Model()).to_gpu(memory_object, 0, 3, **move)
