"""Make `import sat` work on a machine without triton.

SAT 0.4.12 imports `sat.model.position_embedding.triton_rotary_embeddings` while it imports itself, and that module
needs triton, which CPU builds of torch do not bring. We never use it: where triton is missing, an empty stand-in takes
its place. Triton itself is never faked, since torch and DeepSpeed look for it. To go when SAT imports it lazily.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from types import ModuleType

from cogvideox.platform import has_gpu

TRITON_MODULE = "sat.model.position_embedding.triton_rotary_embeddings"


def prepare() -> None:
    """Call before the first `import sat` of a process; idempotent."""
    os.environ.setdefault("SAT_LOGLEVEL", "WARNING")
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for one, and warns that it found none
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if TRITON_MODULE in sys.modules or importlib.util.find_spec("triton") is not None:
        return
    stand_in = ModuleType(TRITON_MODULE)
    stand_in.__dict__["FastRotaryEmbedding"] = None
    sys.modules[TRITON_MODULE] = stand_in


prepare()
