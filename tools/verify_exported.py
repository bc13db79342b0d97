"""The same weights in the diffusers package's class: do all of them have a place there, and does it compute the same?

# B batch, T latent frames, C channels, h w latent size
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogvideox.checkpoint.adapters import merge_adapters
from cogvideox.checkpoint.diffusers_config import transformer_from_training
from cogvideox.checkpoint.fixed_noise import fixed_inputs, patch_of
from cogvideox.checkpoint.transformer_names import POSITIONS, SAT_ONLY, to_diffusers, to_sat
from cogvideox.errors import UserError
from cogvideox.transformer.layout import TokenLayout
from cogvideox.transformer.positions import crop_table

DEFAULT_OFS = 2.0


class NotComparable(Exception):
    """Why this model has no form in diffusers, or why it could not be tried here."""


@dataclass(frozen=True)
class Exported:
    """`output` of diffusers' class; `names` went there and came back, `changed` of them not as they were."""

    output: Tensor
    names: int
    changed: list[str]


def exported(engine: Any, model: Mapping[str, Any], where: str) -> Exported:
    """The weights of `engine`, adapters merged, in diffusers' class; `model` is the config's node, `where` its file.

    Raises NotComparable.
    """
    if not is_installed("diffusers"):
        raise NotComparable("diffusers is not installed (pip install diffusers)")
    network = model["network_config"]["params"]
    try:
        config = transformer_from_training(model, where)
        weights = _merged(engine.network.state_dict(), network)
        has_table = bool(config["use_learned_positional_embeddings"])
        theirs = to_diffusers(weights, patch_of(network), has_table)
    except UserError as error:
        raise NotComparable(str(error)) from error
    _refuse_stretched_rotary(engine.network, config)
    changed = _changed(weights, to_sat(theirs), has_table)
    twin = _twin(config, theirs, network, engine.network)
    return Exported(_forward(twin, network, engine.dtype), len(theirs), changed)


def is_installed(package: str) -> bool:
    """Whether `package` can be imported here."""
    return importlib.util.find_spec(package) is not None


def _merged(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> dict[str, Tensor]:
    lora = (network["modules"].get("lora_config") or {}).get("params")
    if lora is None:
        return dict(state)
    return merge_adapters(state, lora.get("lora_alpha", 1.0) / lora["r"])


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor], has_table: bool) -> list[str]:
    """Names that did not come back from diffusers' layout as they were, to the bit."""
    computed = {*SAT_ONLY, *(() if has_table else (POSITIONS,))}
    kept = {name: tensor for name, tensor in before.items() if name not in computed}
    return [name for name, tensor in kept.items() if name not in after or not torch.equal(after[name], tensor)]


def _refuse_stretched_rotary(network: Any, config: Mapping[str, Any]) -> None:
    """diffusers' pipelines make rotary tables; there is nothing in the class that could stretch them."""
    positions = network.mixins["pos_embed"]
    if config["use_rotary_positional_embeddings"] and (
        positions.theta != 10000.0 or any(factor != 1 for factor in positions.interpolation)
    ):
        raise NotComparable("its rotary positions are not those of diffusers' pipelines (theta, *_interpolation)")


def _twin(config: Mapping[str, Any], weights: dict[str, Tensor], network: Mapping[str, Any], ours: Any) -> Any:
    """diffusers' class holding `weights`, without a copy of them, for a latent of the size of `fixed_inputs`.

    It takes learned positions at their full size only: here it gets the part of the table that is read. Its last norm's
    eps is set to the published models' 1e-6, where the class has 1e-5.
    """
    from diffusers import CogVideoXTransformer3DModel

    x, _, context = fixed_inputs(network)
    _, frames, _, height, width = x.shape
    rate = config["temporal_compression_ratio"]
    size = {"sample_frames": (frames - 1) * rate + 1, "sample_height": height, "sample_width": width}
    options = {name: value for name, value in config.items() if not name.startswith("_")} | size
    if config["use_learned_positional_embeddings"]:
        name, text_tokens = "patch_embed.pos_embedding", context.shape[1]
        layout = TokenLayout.of(x.shape, text_tokens, ours.patch)
        read = crop_table(weights[name], ours.mixins["pos_embed"].grid, layout)
        weights = weights | {name: torch.cat([weights[name][:, :text_tokens], read], dim=1)}
    with torch.device("meta"):
        twin: Any = CogVideoXTransformer3DModel(**options)
    twin.load_state_dict(weights, strict=True, assign=True)
    if not config["use_rotary_positional_embeddings"]:
        twin.patch_embed.pos_embedding = _computed_positions(options)
    twin.norm_out.norm.eps = 1e-6
    return twin.eval()


def _computed_positions(options: Mapping[str, Any]) -> Tensor:
    """The sine-cosine table that diffusers makes, which is not among the weights."""
    from diffusers.models.embeddings import CogVideoXPatchEmbed

    sizes = ("patch_size", "sample_width", "sample_height", "sample_frames", "temporal_compression_ratio")
    scales = ("spatial_interpolation_scale", "temporal_interpolation_scale", "max_text_seq_length")
    given = {name: options[name] for name in (*sizes, *scales)}
    width = options["num_attention_heads"] * options["attention_head_dim"]
    small: Any = CogVideoXPatchEmbed(
        **given, in_channels=1, text_embed_dim=1, embed_dim=width, use_learned_positional_embeddings=False
    )
    return small.pos_embedding


@torch.no_grad()
def _forward(twin: Any, network: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    x, t, context = fixed_inputs(network)
    ofs = None
    if twin.config.ofs_embed_dim is not None:
        ofs = torch.full((1,), float(network.get("ofs", DEFAULT_OFS)))
    rotary = _rotary(twin.config, x) if twin.config.use_rotary_positional_embeddings else None
    out = twin(x.to(dtype), context.to(dtype), t, ofs=ofs, image_rotary_emb=rotary, return_dict=False)[0]
    return out.float()


def _rotary(config: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines as diffusers makes them, counted from 0."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    _, frames, _, height, width = x.shape
    grid = (height // config.patch_size, width // config.patch_size)
    make: Any = get_3d_rotary_pos_embed
    if config.patch_size_t is None:
        return make(config.attention_head_dim, ((0, 0), grid), grid, frames)
    tokens = frames // config.patch_size_t
    return make(config.attention_head_dim, None, grid, tokens, grid_type="slice", max_size=grid)
