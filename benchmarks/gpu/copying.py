"""Attention that goes on with what the prompt says: how a trained model's answer hangs on its prompt's KV.

Random attention averages over the whole prompt, and one chunk of it hardly shows in the answer. So the first
two layers are written by hand (an induction head, as in Olsson et al., 2022, "In-context Learning and
Induction Heads"): in the first each token looks at the one before it, in the second at the place where that
one was the token now asked for, and copies what stands there. Every head of both does the same, so that the
KV of each rank counts.

The residual stream holds four codes, each as wide as a head: the token's, the previous one's, the copied
one's, and a coordinate that is the same everywhere; random numbers fill the rest.
"""

import math
from dataclasses import dataclass, fields

import torch

THETA = 500000.0  # of the rotary embedding
UNLIKE = 0.15  # how far below the product of a code with itself that of two codes lies
CERTAIN = 20.0  # nats between the place looked at and the next best one
FIRST, SECOND = (f"model.layers.{number}.self_attn" for number in range(2))
COPIED = 3.0  # how much larger than the token's own code the copied one is
LOGIT = 12.0  # of the copied token; vLLM's logits are bfloat16, and larger ones are coarse
WRITES = 0.15  # what the random layers add, in lengths of a code


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, as its config.json names them."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @classmethod
    def of(cls, sizes: dict[str, int]) -> "Shape":
        return cls(**{field.name: sizes[field.name] for field in fields(cls)})

    @property
    def same(self) -> int:
        """The coordinate that is the same everywhere."""
        return 3 * self.head_dim

    def length(self, codes: float) -> float:
        """Of one code after a norm, where the stream's square holds that many."""
        return math.sqrt(self.hidden_size / codes)


def write(tensors: dict[str, torch.Tensor], shape: Shape, draw: torch.Generator) -> None:
    """Put the codes and the two layers in the place of what is random in a shard of the model's weights."""
    if "lm_head.weight" in tensors:
        tokens, last = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
        codes = torch.randn(len(tokens), shape.head_dim, generator=draw, device=draw.device)
        codes = torch.nn.functional.normalize(codes, dim=1)
        _embed(tokens, codes, shape)
        _name(last, codes, shape)
    if f"{FIRST}.q_proj.weight" in tensors:
        tensors |= {f"{FIRST}.{name}.weight": made for name, made in _previous(shape).items()}
    if f"{SECOND}.q_proj.weight" in tensors:
        tensors |= {f"{SECOND}.{name}.weight": made for name, made in _asked_for(shape, draw).items()}


def _embed(tokens: torch.Tensor, codes: torch.Tensor, shape: Shape) -> None:
    """[vocabulary, hidden]: a token's code, what is the same everywhere, random numbers as long as a code."""
    unit = shape.length(1)
    tokens[:, : shape.same] = 0
    tokens[:, : shape.head_dim] = codes * unit
    tokens[:, shape.same] = unit
    rest = tokens[:, shape.same + 1 :]
    tokens[:, shape.same + 1 :] = torch.nn.functional.normalize(rest, dim=1) * unit


def _name(last: torch.Tensor, codes: torch.Tensor, shape: Shape) -> None:
    """[vocabulary, hidden]: the copied code names its token; the random layers have their say beside it."""
    last[:, : shape.same + 1] = 0
    reached = shape.length(4 + COPIED**2) * COPIED
    last[:, 2 * shape.head_dim : 3 * shape.head_dim] = codes * (LOGIT / reached)


def _previous(shape: Shape) -> dict[str, torch.Tensor]:
    """The layer whose heads look at the token before.

    Query and key are the same at each place but for their rotation, and the key is turned one token further,
    so that they lie on each other where the distance is one.
    """
    angles = _angles(shape)
    fast = (angles > 1e-2).double()  # the others tell neighbours hardly apart
    apart = float((fast * (1 - torch.cos(angles))).sum())
    strength = math.sqrt(CERTAIN * math.sqrt(shape.head_dim) / apart) / shape.length(3)
    query = torch.cat([fast, 0 * fast]) * strength
    key = torch.cat([fast * torch.cos(angles), fast * torch.sin(angles)]) * strength
    return {
        "q_proj": _everywhere(query, shape.num_attention_heads, shape),
        "k_proj": _everywhere(key, shape.num_key_value_heads, shape),
        "v_proj": _value(shape, 3),
        "o_proj": _output(shape, 1, 1),
    }


def _asked_for(shape: Shape, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """The layer whose heads look for the place before which the token now asked for stands.

    Its code is the query, the previous token's the key; both where dimensions hardly turn over a prompt.
    """
    slow = (_angles(shape) < 3e-4).double()
    rows = torch.cat([slow, slow])
    size = (shape.head_dim, shape.head_dim)
    mixed = torch.randn(size, generator=draw, device=draw.device).double().cpu() * rows[:, None]
    mixed *= math.sqrt(CERTAIN * math.sqrt(shape.head_dim) / UNLIKE / float(rows.sum())) / shape.length(4)
    query = torch.zeros(shape.head_dim, shape.hidden_size, dtype=torch.float64)
    key = query.clone()
    query[:, : shape.head_dim] = mixed
    key[:, shape.head_dim : 2 * shape.head_dim] = mixed
    return {
        "q_proj": query.repeat(shape.num_attention_heads, 1),
        "k_proj": key.repeat(shape.num_key_value_heads, 1),
        "v_proj": _value(shape, 4),
        "o_proj": _output(shape, 2, COPIED),
    }


def _angles(shape: Shape) -> torch.Tensor:
    """By which each pair of a head's dimensions turns from a token to the next, in radians."""
    half = shape.head_dim // 2
    return THETA ** (-torch.arange(half, dtype=torch.float64) / half)


def _everywhere(rows: torch.Tensor, heads: int, shape: Shape) -> torch.Tensor:
    made = torch.zeros(heads * shape.head_dim, shape.hidden_size, dtype=torch.float64)
    made[:, shape.same] = rows.repeat(heads)
    return made


def _value(shape: Shape, codes: float) -> torch.Tensor:
    """The token's code, at length one."""
    made = torch.zeros(shape.num_key_value_heads * shape.head_dim, shape.hidden_size, dtype=torch.float64)
    one = torch.eye(shape.head_dim, dtype=torch.float64) / shape.length(codes)
    made[:, : shape.head_dim] = one.repeat(shape.num_key_value_heads, 1)
    return made


def _output(shape: Shape, code: int, times: float) -> torch.Tensor:
    """The heads' mean, written where that code stands."""
    made = torch.zeros(shape.hidden_size, shape.num_attention_heads * shape.head_dim, dtype=torch.float64)
    one = torch.eye(shape.head_dim, dtype=torch.float64) * shape.length(1) * times / shape.num_attention_heads
    made[code * shape.head_dim : (code + 1) * shape.head_dim] = one.repeat(1, shape.num_attention_heads)
    return made
