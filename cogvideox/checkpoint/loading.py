"""The weights that a run starts from: which files, of which iteration, on top of which others."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cogvideox.checkpoint.reading import read_state_dict
from cogvideox.errors import UserError


@dataclass(frozen=True)
class StartingWeights:
    """A state dict and what the checkpoint says about itself.

    `is_shard`: the tensors are one model parallel rank's own, not the whole. `base`: where the frozen weights are that
    a checkpoint of adapters goes with.
    """

    state_dict: dict[str, Tensor]
    source: Path
    iteration: int = 0
    is_shard: bool = False
    base: Path | None = None


def read_starting_weights(path: str | Path, model_rank: int = 0, model_size: int = 1) -> StartingWeights:
    """Weights from `path`: a SAT folder (this rank's file where there is one per model parallel rank), or any form that
    `read_state_dict` knows. UserError: missing, unreadable, or cut for another number of model parallel ranks.
    """
    path = Path(path)
    latest = path / "latest"
    if not latest.is_file():
        return StartingWeights(read_state_dict(path), path)
    name = latest.read_text(encoding="utf-8").strip()
    files = sorted((path / name).glob("mp_rank_*_model_states.pt"))
    if not files:
        raise UserError(f"{latest} names {name!r}, but there is no {path / name}/mp_rank_00_model_states.pt")
    if len(files) not in (1, model_size):
        raise UserError(
            f"{path / name} is cut for model_parallel_size {len(files)}, the run has {model_size}: "
            f"run with --model-parallel-size {len(files)} or 1 file"
        )
    file = files[0] if len(files) == 1 else files[model_rank]
    base = _base_of(file)
    iteration = int(name) if name.isdigit() else 0
    return StartingWeights(read_state_dict(file), file, iteration, is_shard=len(files) > 1, base=base)


def _base_of(file: Path) -> Path | None:
    """What our own checkpoints note beside the weights; others note nothing."""
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError):
        return None  # `read_state_dict` says what is wrong with it
    base = content.get("base_weights") if isinstance(content, dict) else None
    return Path(base) if isinstance(base, str) and content.get("adapters_only") else None
