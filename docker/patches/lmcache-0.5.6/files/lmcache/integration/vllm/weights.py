# SPDX-License-Identifier: Apache-2.0
"""Digests of weights in files, from enough of them to tell two fine-tunes apart."""

# Standard
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The first of these that there is is what vLLM loads.
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.npz")
# Of every tensor this much is read at its beginning, its middle and its end:
# training moves all of a tensor, so that two fine-tunes differ there.
SAMPLE_BYTES = 4096
# A file without an index of its tensors is sampled at this many places.
SAMPLES = 1024
# Read whole: adapters, and what else is small.
WHOLE_FILE_BYTES = 64 * 1024 * 1024


class UnknownError(Exception):
    """What is served cannot be told; its KV is nobody else's."""


def weights_digest(folder: Path) -> str:
    """A digest of the weights in a folder, from every tensor's name, shape and samples.

    Of 140 GB it reads some 10 MB. Raises UnknownError if there are no weights.
    """
    kinds = (sorted(folder.glob(form)) for form in WEIGHTS)
    files = next((files for files in kinds if files), [])
    if not files:
        raise UnknownError(f"{folder} holds no weights")
    try:
        return digest({path.name: file_digest(path) for path in files})
    except OSError as error:
        raise UnknownError(f"{folder} cannot be read: {error}") from error


def file_digest(path: Path) -> str:
    """A digest of one file: all of a small one, samples of a large one."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            while part := file.read(1 << 20):
                found.update(part)
            return found.hexdigest()
        for offset in _samples(file, path, size):
            file.seek(offset)
            found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()


def digest(value: Any) -> str:
    """The sha256 of plain data, in hexadecimal, of which 128 bits are plenty."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _samples(file: Any, path: Path, size: int) -> Iterator[int]:
    """Offsets to sample a large file at: of each tensor three, and of its index all."""
    if path.suffix != ".safetensors":
        yield from range(0, size, max(size // SAMPLES, 1))
        return
    # https://github.com/huggingface/safetensors#format
    (length,) = struct.unpack("<Q", file.read(8))
    index = file.read(length)
    yield from range(0, 8 + length, SAMPLE_BYTES)
    for name, tensor in json.loads(index).items():
        if name == "__metadata__":
            continue
        first, end = (8 + length + offset for offset in tensor["data_offsets"])
        last = max(end - SAMPLE_BYTES, first)
        yield from (first, (first + last) // 2, last)
