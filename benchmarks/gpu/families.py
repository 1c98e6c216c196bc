"""Families that only a GPU serves, or serves by kernels of its own: a small model of each, judged."""

import os
from pathlib import Path

from benchmarks import families
from benchmarks.gpu import chain
from benchmarks.models import Seen, why
from benchmarks.models import seen as seen_of
from kvshare.site.native import EndedError

PROMPTS, TOKENS = 3, 522  # of few chunks, so that each counts for much


def see(family: str, device: str, folder: Path) -> Seen:
    """Make the family's model in ``folder``, serve it as it was decided, and verify."""
    model = folder / "model"
    families.make(family, model, on_gpu=True)
    os.environ["MODEL"] = str(model)
    try:
        with chain.serving(device, True, folder) as native:
            return seen_of(chain.verify(native, native.stack, PROMPTS, TOKENS, folder / "evidence.json"))
    except EndedError as error:
        return Seen(why(str(error)))
