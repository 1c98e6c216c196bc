"""The dimensions of the models that are made for a GPU, as config.json names them."""

KV_BITS = 16  # of a value of K or V, in bfloat16
OF_70B = 80  # layers of Llama-3.1-70B, of which SIZES has as many as leave room for KV
SIZES = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
    },
    # 72 GB, which leave two GPUs of 80 GB as much for KV.
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
    },
    # To try the scripts without a GPU.
    "small": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 128256,
    },
}


def kv_bytes(size: str) -> int:
    """Bytes of KV a token: K and V of each layer and head."""
    shape = SIZES[size]
    heads = shape["num_key_value_heads"] * shape["head_dim"]
    return 2 * shape["num_hidden_layers"] * heads * KV_BITS // 8
