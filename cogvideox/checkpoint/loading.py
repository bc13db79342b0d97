"""The weights that a run starts from: which files, of which iteration, on top of which others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cogvideox.checkpoint.choosing import MODEL_FILES
from cogvideox.checkpoint.pointers import read_latest
from cogvideox.checkpoint.reading import read_state_dict
from cogvideox.checkpoint.safe_loading import load_safely
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


def read_starting_weights(
    path: str | Path, model_rank: int = 0, model_size: int = 1, ema: bool = False
) -> StartingWeights:
    """Weights from `path`: a SAT folder, one checkpoint in it or its model file (this rank's file where there is one
    per model parallel rank), or any form that `read_state_dict` knows.

    `ema`: with the moving averages of what was trained in place of the weights themselves. UserError: missing,
    unreadable, cut for another number of model parallel ranks, or without averages.
    """
    path = Path(path)
    folder = checkpoint_folder(path)
    if folder is None:
        if ema:
            raise _no_averages(path)
        return StartingWeights(read_state_dict(path), path)
    files = sorted(folder.glob(MODEL_FILES))
    if len(files) not in (1, model_size):
        raise UserError(
            f"{folder} is cut for model_parallel_size {len(files)}, the run has {model_size}: "
            f"run with --model-parallel-size {len(files)} or 1 file"
        )
    file = files[0] if len(files) == 1 else files[model_rank]
    number = folder.name.partition(".")[0]
    iteration = int(number) if number.isdigit() else 0
    weights = StartingWeights(read_state_dict(file), file, iteration, is_shard=len(files) > 1, base=_base_of(file))
    return _with_averages(weights) if ema else weights


def read_chain(path: str | Path, model_rank: int = 0, model_size: int = 1, ema: bool = False) -> list[StartingWeights]:
    """As `read_starting_weights`, after the weights that a checkpoint of adapters was trained on, if it is one: in the
    order in which to load them. Only the last may have averages in their place.

    UserError: as there, and adapters whose bases lead back to themselves.
    """
    chain = [read_starting_weights(path, model_rank, model_size, ema)]
    seen = {chain[0].source.resolve()}
    while (base := chain[0].base) is not None:
        under = read_starting_weights(base, model_rank, model_size)
        if under.source.resolve() in seen:
            raise UserError(
                f"{chain[0].source} holds adapters for the weights in {base}, but those are in turn adapters for "
                "these, or the same: name a checkpoint that stands on whole weights"
            )
        seen.add(under.source.resolve())
        chain.insert(0, under)
    return chain


def checkpoint_folder(path: Path) -> Path | None:
    """The folder of checkpoint files that `path` (it, its run, or one of the files) names; None for other forms."""
    if path.is_file() and path.match(MODEL_FILES):
        return path.parent
    latest = path / "latest"
    if not latest.is_file():
        return path if path.is_dir() and any(path.glob(MODEL_FILES)) else None
    name = read_latest(latest)
    if not any((path / name).glob(MODEL_FILES)):
        raise UserError(f"{latest} names {name!r}, but there is no {path / name}/mp_rank_00_model_states.pt")
    return path / name


def _with_averages(weights: StartingWeights) -> StartingWeights:
    """The same with the tensors of the averages' file, which must be some of the model file's."""
    file = weights.source.with_name(weights.source.name.replace("_model_states", "_ema_states"))
    if not file.is_file():
        raise _no_averages(file)
    averages = read_state_dict(file)
    strange = [
        name
        for name, average in averages.items()
        if name not in weights.state_dict or weights.state_dict[name].shape != average.shape
    ]
    if strange:
        raise UserError(
            f"{file} does not belong to {weights.source.name} beside it: {len(strange)} of its tensors are not there "
            f"or of another shape ({strange[0]}); take both from one checkpoint"
        )
    return replace(weights, state_dict={**weights.state_dict, **averages}, source=file)


def _no_averages(path: Path) -> UserError:
    return UserError(
        f"there are no averaged weights in {path}: a run saves them if its deepspeed.optimizer.type is EmaAdamW (in "
        "old configs sat.ops.FusedEmaAdam); use the weights themselves, without EMA"
    )


def _base_of(file: Path) -> Path | None:
    """What our own checkpoints note beside the weights; others note nothing."""
    try:
        content = load_safely(file, mmap=True)
    except UserError:
        return None  # `read_state_dict` says what is wrong with it
    base = content.get("base_weights") if isinstance(content, dict) else None
    return Path(base) if isinstance(base, str) and content.get("adapters_only") else None
