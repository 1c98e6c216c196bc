# SPDX-License-Identifier: Apache-2.0
"""What the multiprocess mode's keys hold beside the tokens: the model as served, its layout, the request.

Its keys have two fields for that: the model's name, and a salt.
"""

# Standard
from collections.abc import Sequence
from typing import TYPE_CHECKING

# First Party
from lmcache.integration.vllm.identity import model_identity, request_identity
from lmcache.integration.vllm.weights import UnknownError, digest
from lmcache.logging import init_logger

if TYPE_CHECKING:
    # Third Party
    from vllm.config import VllmConfig
    from vllm.v1.request import Request

logger = init_logger(__name__)


def model_as_served(name: str, vllm_config: "VllmConfig", role: str, tokens_per_block: Sequence[int]) -> str:
    """A model's name with a digest: engines whose digests differ share nothing."""
    served = digest([model_identity(vllm_config, role), _layout(vllm_config, tokens_per_block)])
    return f"{name}:{served}"


def _layout(vllm_config: "VllmConfig", tokens_per_block: Sequence[int]) -> list[object]:
    """How KV lies in a block, which is moved as it is."""
    # Third Party
    from vllm.platforms import current_platform

    layout: list[object] = [current_platform.device_type, list(tokens_per_block)]
    if current_platform.is_cpu():
        # The kernels keep a head's keys transposed, or in tiles, by the CPU's instructions.
        # Third Party
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        model = vllm_config.model_config
        layout.append(
            [_get_attn_isa(model.dtype, block, model.get_head_size()) for block in tokens_per_block]
        )
    return layout


def salt_of(request: "Request") -> str | None:
    """What sets a request's KV apart; None if nobody may share it."""
    try:
        return request_identity(request)
    except UnknownError as reason:
        logger.warning("KV of %s is not shared: %s", request.request_id, reason)
        return None
