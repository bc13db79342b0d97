"""Continue from a checkpoint of DeepSpeed's: weights, optimizer, and every random state, also on other ranks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideox.checkpoint.manifest import Damaged, Manifest
from cogvideox.checkpoint.recutting import Recut
from cogvideox.checkpoint.safe_loading import load_safely
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import restore_device_random_states


def resume_engine(engine: Any, checkpoint: Path) -> dict[str, Any]:
    """Load `checkpoint`, a run's folder with a number, into an engine; every rank must call this.

    Returns the client state. On another number of data parallel ranks than saved it the optimizer's state is cut anew.
    Parameters that the checkpoint leaves out (those frozen in a LoRA run) keep what they have. Its files are taken to
    be whole (`manifest.fault_of`). Raises UserError: no checkpoint, or of another model.
    """
    engine.checkpoint_engine.load = load_safely
    groups: list[dict[str, Any]] = engine.optimizer.param_groups
    wanted = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    before = _ranks_of(checkpoint) // current().model.size
    if before != current().data.size and engine.zero_optimization():
        recut = Recut(engine, checkpoint, before)
        engine.checkpoint_engine.load = recut.read
        engine._get_all_ckpt_names = lambda *_: [recut.model_file(rank) for rank in range(current().model.size)]
    try:
        path, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name, load_module_strict=False)
    except (RuntimeError, KeyError, AssertionError) as error:
        raise UserError(f"{checkpoint} does not fit the model or the optimizer of this run: {error}") from error
    finally:
        engine.checkpoint_engine.load = load_safely
        engine.__dict__.pop("_get_all_ckpt_names", None)
    if path is None:
        raise UserError(f"{checkpoint} is not a whole checkpoint: files are missing (--resume)")
    for group, settings in zip(engine.optimizer.param_groups, wanted, strict=True):
        group.update(settings)  # this run's, not those of the one that saved; the schedule multiplies `lr`
    return state


def _ranks_of(checkpoint: Path) -> int:
    """How many ranks saved it. UserError where it does not say, or they had another number of model parallel ranks."""
    try:
        ranks = Manifest.read(checkpoint).ranks
    except Damaged as error:
        raise UserError(f"{checkpoint} {error} (--resume)") from error
    files = len(list(checkpoint.glob("mp_rank_*_model_states.pt")))
    size = current().model.size
    if files != size:
        raise UserError(
            f"{checkpoint} is cut for {files} model parallel ranks and this run has {size}: resume with "
            f"--model-parallel-size {files}, or start a new run from its weights with --load {checkpoint.parent} "
            "--mode finetune"
        )
    return ranks


def random_state_of(states: list[dict[str, Any]], rank: int, ranks: int) -> dict[str, Any] | None:
    """Where `rank` goes on with its draws; None on another number of ranks than saved them: draws begin anew there."""
    return states[rank] if len(states) == ranks else None


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the draws where `saving.random_state` was taken."""
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    restore_device_random_states(state["device"])
