"""Weights of a transformer under the model's own names, whatever layout they came in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from cogvideox.checkpoint.lora_names import from_peft, is_peft
from cogvideox.checkpoint.transformer_names import to_sat

NETWORK_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
OTHER_PREFIXES = (VAE_PREFIX, "conditioner.", "denoiser.", "loss_fn.")


def is_diffusers_transformer(names: Iterable[str]) -> bool:
    """Whether these are diffusers' names of this transformer."""
    return any(name.startswith("transformer_blocks.") for name in names)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's weights without its prefix; those of other networks are passed over."""
    bare = {name.removeprefix(NETWORK_PREFIX): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in bare.items() if not name.startswith(OTHER_PREFIXES)}


def network_names(state: Mapping[str, Tensor], adapter_scaling: float = 1.0) -> dict[str, Tensor]:
    """The transformer's weights under SAT's names without a prefix, from SAT's, diffusers' or PEFT's; a VAE or T5 that
    a checkpoint holds besides is passed over.

    `adapter_scaling` is alpha / r of the adapters that PEFT's are for: their B is divided by it. UserError: a name that
    the transformer does not have.
    """
    bare = without_prefix(state)
    if is_peft(bare):
        return from_peft(bare, 1 / adapter_scaling)
    return to_sat(bare) if is_diffusers_transformer(bare) else bare
