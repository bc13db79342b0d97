"""Continue from a checkpoint of DeepSpeed's: weights, optimizer, and every random state, on as many ranks as it had."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import restore_device_random_states


def read_safely(path: str, map_location: Any = None) -> Any:
    """The content of a checkpoint file, without running code from it; in place of DeepSpeed's own reader.

    Beside tensors and plain values only what DeepSpeed itself pickles is let in. UserError if it is damaged or asks for
    anything else.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read safely ({error}); resume from another checkpoint") from error


def resume_engine(engine: Any, folder: Path) -> dict[str, Any]:
    """Load `folder`'s latest checkpoint into a fresh engine; every rank must call this. Returns the client state.

    Parameters that the checkpoint leaves out (those frozen in a LoRA run) keep what they have.
    Raises UserError: no checkpoint, damaged, of another model, or saved on another number of ranks.
    """
    latest = folder / "latest"
    if not latest.is_file():
        raise UserError(f"{folder} holds no checkpoint to resume: there is no file `latest` in it (--resume)")
    tag = latest.read_text(encoding="utf-8").strip()
    engine.checkpoint_engine.load = read_safely
    factors = [group["lr"] for group in engine.optimizer.param_groups]
    _check_ranks(folder / tag)
    try:
        path, state = engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
    except (RuntimeError, KeyError, AssertionError) as error:
        raise UserError(f"{folder / tag} does not fit the model or the optimizer of this run: {error}") from error
    if path is None:
        raise UserError(f"{folder / tag} is not a whole checkpoint: files are missing (--resume)")
    for group, factor in zip(engine.optimizer.param_groups, factors, strict=True):
        group["lr"] = factor  # the schedule multiplies it
    return state


def _check_ranks(checkpoint: Path) -> None:
    """Shards of optimizer state fit the number of ranks that wrote them."""
    files = sorted(checkpoint.glob("*mp_rank_00_model_states.pt"))
    if not files:
        raise UserError(f"{checkpoint} is not a whole checkpoint: it has no model file (--resume)")
    states = read_safely(str(files[0]), map_location="cpu").get("random_states", [])
    size = current().world.size
    if len(states) != size:
        raise UserError(
            f"{checkpoint} was saved by {len(states)} ranks and this run has {size}: resume on as many, or start a new "
            f"run from its weights with --load {checkpoint.parent}"
        )


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the draws where `saving.random_state` was taken."""
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    restore_device_random_states(state["device"])
