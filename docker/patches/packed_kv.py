"""VLLMPagedMemGPUConnectorV2 hands vLLM's packed K and V to the transfer kernel as the kernel reads them."""

from patch import Patch, Replacement

PATCH = Patch(
    id="packed-kv",
    devices=frozenset({"cuda"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.gpu_connector.gpu_connectors",
    sha256_before="94b230d6ac7cb2fb1676a54a52dfdd322553180729e0eb812d9371d4a494a221",
    sha256_after="53cc897115268210579b0293799b4b1f8e3fb17c9d10225d28405700182161b4",
    replacements=(
        Replacement(
            old=(
                "        self.head_size = get_head_size(kv_caches, self.engine_kv_format)\n"
                "        self.block_stride_elems = (\n"
                "            resolve_block_stride_and_log_layout(\n"
                "                kv_caches, self.engine_kv_format, layer_idx=0, group_idx=0\n"
                "            )\n"
                "            or 0\n"
                "        )\n"
                "\n"
                "        return self.kv_cache_pointers_on_gpu[idx]\n"
            ),
            new=(
                "        self.head_size = get_head_size(kv_caches, self.engine_kv_format)\n"
                "        self.packs_kv = not self.use_mla and self.engine_kv_format in (\n"
                "            lmcache_native.EngineKVFormat.NL_X_NB_NH_BS_CS,\n"
                "            lmcache_native.EngineKVFormat.NL_X_NB_BS_NH_CS,\n"
                "        )\n"
                "        if self.packs_kv:\n"
                "            # The format's head size is K and V together; the kernel wants one.\n"
                "            self.head_size //= 2\n"
                "        self.block_stride_elems = (\n"
                "            resolve_block_stride_and_log_layout(\n"
                "                kv_caches, self.engine_kv_format, layer_idx=0, group_idx=0\n"
                "            )\n"
                "            or 0\n"
                "        )\n"
                "\n"
                "        return self.kv_cache_pointers_on_gpu[idx]\n"
                "\n"
                "    def _kernel_view(self, tensor: torch.Tensor) -> torch.Tensor:\n"
                '        """The same memory as the kernel takes it: packed K and V are one pass\n'
                '        over [1, layers, tokens, 2 * heads * head_size]."""\n'
                "        if not self.packs_kv:\n"
                "            return tensor\n"
                "        _, num_layers, num_tokens, width = tensor.shape\n"
                "        return tensor.view(1, num_layers, num_tokens, 2 * width)\n"
            ),
            reason="Learn with the format whether K and V are packed, and halve its head size if so.",
        ),
        Replacement(
            old=(
                "        device_ops.multi_layer_kv_transfer(\n"
                "            memory_obj.tensor,\n"
                "            kv_cache_pointers,\n"
            ),
            new=(
                "        device_ops.multi_layer_kv_transfer(\n"
                "            self._kernel_view(memory_obj.tensor),\n"
                "            kv_cache_pointers,\n"
            ),
            reason="to_gpu.",
        ),
        Replacement(
            old=(
                "                device_ops.multi_layer_kv_transfer(\n"
                "                    memory_obj.tensor,\n"
                "                    kv_cache_pointers,\n"
            ),
            new=(
                "                device_ops.multi_layer_kv_transfer(\n"
                "                    self._kernel_view(memory_obj.tensor),\n"
                "                    kv_cache_pointers,\n"
            ),
            reason="from_gpu, straight into the object (a chunk that is not whole, or no buffer).",
        ),
        Replacement(
            old=(
                "                device_ops.multi_layer_kv_transfer(\n"
                "                    tmp_gpu_buffer,\n"
                "                    kv_cache_pointers,\n"
            ),
            new=(
                "                device_ops.multi_layer_kv_transfer(\n"
                "                    self._kernel_view(tmp_gpu_buffer),\n"
                "                    kv_cache_pointers,\n"
            ),
            reason="from_gpu, through the GPU buffer (a whole chunk, so its slice is contiguous).",
        ),
    ),
    title="Right KV on a GPU with vLLM 0.26 and later",
    reason=(
        "vLLM packs K and V into one dimension, and the connector hands the transfer kernel a `[2, "
        "layers, tokens, heads * head_size]` object of which the kernel's single pass moves half, from "
        "wrong places: answers are wrong while every hit counter is green."
    ),
    upstream=(
        "[#4463](https://github.com/LMCache/LMCache/issues/4463), fixes proposed in "
        "[#4467](https://github.com/LMCache/LMCache/pull/4467) and "
        "[#4887](https://github.com/LMCache/LMCache/pull/4887), all open."
    ),
    probe=(
        "The patched connector runs with an emulation of the CUDA kernel's addressing, made from its "
        "source: what leaves the cache comes back bit for bit at other slots, in both packed layouts, in "
        "whole chunks and in part."
    ),
    drop_when="upstream's in-process connector moves packed K and V itself.",
)
