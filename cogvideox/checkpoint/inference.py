"""The weights to draw samples with, in the order in which they are laid over each other."""

from __future__ import annotations

from pathlib import Path

from cogvideox.checkpoint.loading import StartingWeights, read_chain, read_starting_weights
from cogvideox.checkpoint.lora_names import holds_adapters_alone
from cogvideox.errors import UserError


def weights_to_sample_with(
    path: Path, ema: bool, base: Path | None, model_rank: int = 0, model_size: int = 1
) -> list[StartingWeights]:
    """What to load, in this order: the first is whole, what follows replaces a part of it.

    A checkpoint of adapters comes after the weights that it was trained on: `base`, or those that it names. `ema` takes
    the moving averages of what was trained.

    Raises UserError: a file is missing or damaged, or `base` is given to a checkpoint that is whole by itself.
    """
    own = read_starting_weights(path, model_rank, model_size, ema)
    is_bare = own.base is None and holds_adapters_alone(own.state_dict)  # adapters that do not say for which weights
    if base is not None and own.base is None and not is_bare:
        raise UserError(f"{own.source} holds all weights, not adapters alone: leave out --base-weights {base}")
    under = base or own.base
    if under is None:
        if is_bare:
            raise UserError(f"{own.source} holds adapters alone: name the weights under them with --base-weights PATH")
        return [own]
    if not under.exists():
        raise UserError(
            f"{own.source} holds adapters for the weights in {under}, and those are not there: "
            "say where they are with --base-weights PATH"
        )
    return [*read_chain(under, model_rank, model_size), own]
