"""CreateGPUConnector knows the CPU: it returns our connector, cpu_connector.py, instead of raising."""

from patch import AddedFile, Patch, Replacement

PATCH = Patch(
    id="cpu-connector",
    devices=frozenset({"cpu"}),
    distribution="lmcache",
    version="0.5.6",
    module="lmcache.v1.gpu_connector",
    sha256_before="a0df027df808c3312128fa18a2aa3053d5d8ed48c4c904f8b8ba27749a73b6e6",
    sha256_after="e030f7fe9e3c000a422c0363264253648ec47fbc63b240e5a9cd121277cd38e0",
    replacements=(
        Replacement(
            old=(
                "        else:\n"
                '            raise RuntimeError(f"No supported {torch_device_type} connector found.")\n'
            ),
            new=(
                '        elif torch_device_type == "cpu":\n'
                "            # First Party\n"
                "            from lmcache.v1.gpu_connector.cpu_connector import (\n"
                "                VLLMPagedMemCPUConnector,\n"
                "            )\n"
                "\n"
                "            return VLLMPagedMemCPUConnector.from_config(\n"
                "                config, metadata, layout_hints=layout_hints\n"
                "            )\n"
                "        else:\n"
                '            raise RuntimeError(f"No supported {torch_device_type} connector found.")\n'
            ),
            reason="The branch for vLLM on the CPU, before the refusal of unknown devices.",
        ),
    ),
    title="A connector for vLLM on the CPU",
    reason=(
        "LMCache's in-process mode has no connector for the CPU (`No supported cpu connector found`). "
        "vLLM's CPU attention stores a block in an order of its own (keys transposed, on AMX in tiles), "
        "so the connector learns that order from vLLM (`pack_kv_cache`) and keeps plain K and V in "
        "LMCache's objects."
    ),
    upstream="No issue known; upstream's CPU path is its multiprocess mode.",
    probe=(
        "The connector that CreateGPUConnector returns moves keys and values, which vLLM's own kernel "
        "wrote into the cache, out and back, bit for bit; the object holds exactly those keys and "
        "values."
    ),
    drop_when="upstream's CreateGPUConnector supports the CPU.",
    added=(AddedFile(source="cpu_connector.py", module="lmcache.v1.gpu_connector.cpu_connector"),),
)
