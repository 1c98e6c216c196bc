"""The demo model: a small Llama with seeded random weights and a byte-level tokenizer, made on the spot.

Nothing is downloaded. The weights are a function of the seed alone, so every node makes the same model.
They are drawn wider than a trained model's: with the usual 0.02 a random Llama all but ignores its own
attention, and an answer computed from corrupted KV would look right.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

SEED = 20261124
STATE = "kvshare-demo.json"
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
# Of the plainest kind: a message a line, and whose turn it is.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

ARCHITECTURE = {
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 10,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "initializer_range": 0.08,
}


def ensure(path: Path) -> Path:
    """Make the demo model at ``path`` unless a complete one of this recipe is already there.

    Several servers of one machine share the models volume, so the work is done under a file lock
    and the result appears by one rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _recipe_of(path) != _recipe():
            _make(path)
    return path


def _recipe() -> dict[str, object]:
    return {"seed": SEED, "chat_template": CHAT_TEMPLATE, **ARCHITECTURE}


def _recipe_of(path: Path) -> object:
    try:
        return json.loads((path / STATE).read_text())
    except (OSError, ValueError):
        return None


def _make(path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        **ARCHITECTURE,
    )
    scratch = path.with_name(f".{path.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    LlamaForCausalLM(config).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    (scratch / STATE).write_text(json.dumps(_recipe()))
    shutil.rmtree(path, ignore_errors=True)
    scratch.rename(path)


def _tokenizer() -> Any:  # transformers is imported only when a model is made
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=CHAT_TEMPLATE,
    )
