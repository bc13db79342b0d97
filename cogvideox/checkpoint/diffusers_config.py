"""`config.json` of diffusers' classes: from a training config, or of a published model, and held against weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cogvideox.checkpoint.published import MODELS
from cogvideox.checkpoint.transformer_names import POSITIONS
from cogvideox.errors import UserError

# What the published packages have in common.
TRANSFORMER: dict[str, Any] = {
    "_class_name": "CogVideoXTransformer3DModel",
    "_diffusers_version": "0.32.0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 64,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-05,
    "ofs_embed_dim": None,
    "out_channels": 16,
    "patch_bias": True,
    "patch_size": 2,
    "patch_size_t": None,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "timestep_activation_fn": "silu",
    "use_learned_positional_embeddings": False,
}
# Of a training config's `network_config.params`.
NEEDED = (
    "num_frames",
    "time_compressed_rate",
    "latent_width",
    "latent_height",
    "patch_size",
    "in_channels",
    "out_channels",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
)
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLCogVideoX",
    "_diffusers_version": "0.32.0",
    "act_fn": "silu",
    "force_upcast": True,
    "in_channels": 3,
    "invert_scale_latents": False,
    "latents_mean": None,
    "latents_std": None,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_height": 480,
    "sample_width": 720,
    "shift_factor": None,
    "temporal_compression_ratio": 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
# Configs give 1 / scale_factor with four digits or more.
SAME_SCALE = 1e-3


def published_transformer(model: str) -> dict[str, Any]:
    """`config.json` of a published model's transformer."""
    return dict(sorted((TRANSFORMER | dict(MODELS[model].transformer)).items()))


def transformer_from_training(model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`config.json` from the node `model:` of a training config. UserError: what diffusers' class cannot be told."""
    network = _at(model, "network_config.params", where)
    absent = [f"model.network_config.params.{key}" for key in NEEDED if key not in network]
    if absent:
        raise UserError(f"{where}: {', '.join(absent)} not there, but config.json is made from it (--base)")
    modules = "network_config.params.modules"
    positions = _at(model, f"{modules}.pos_embed_config", where)
    node = positions.get("params") or {}
    rotary = str(positions.get("target", "")).rpartition(".")[2].startswith("Rotary")
    patch = network["patch_size"]
    pt, ph, pw = (1, patch, patch) if isinstance(patch, int) else patch
    if ph != pw:
        raise UserError(f"{where}: patch_size {patch}: diffusers' class has square patches only")
    heads, width = network["num_attention_heads"], network["hidden_size"]
    own = {
        "num_layers": network["num_layers"],
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": network["in_channels"],
        "out_channels": network["out_channels"],
        "patch_size": ph,
        "patch_size_t": pt if pt > 1 else None,
        "patch_bias": pt == 1,  # as published; the class reads it for a temporal patch of 1 alone, and has a bias then
        "time_embed_dim": network.get("time_embed_dim") or width,
        "text_embed_dim": _at(model, f"{modules}.patch_embed_config.params", where)["text_hidden_size"],
        "ofs_embed_dim": network.get("ofs_embed_dim"),
        "sample_frames": network["num_frames"],
        "sample_width": network["latent_width"],
        "sample_height": network["latent_height"],
        "temporal_compression_ratio": network["time_compressed_rate"],
        "norm_elementwise_affine": network.get("elementwise_affine", True),
        "max_text_seq_length": node.get("text_length", 0),
        "use_rotary_positional_embeddings": rotary,
        "use_learned_positional_embeddings": rotary and bool(node.get("learnable_pos_embed", False)),
    }
    if not rotary:
        own |= _interpolation({**network, **node}, where)
    return dict(sorted((TRANSFORMER | own).items()))


def _interpolation(node: Mapping[str, Any], where: str) -> dict[str, float]:
    rows, columns = (float(node.get(f"{axis}_interpolation", 1.0)) for axis in ("height", "width"))
    if rows != columns:
        raise UserError(
            f"{where}: height_interpolation {rows} and width_interpolation {columns}: diffusers' class has one for both"
        )
    times = float(node.get("time_interpolation", 1.0))
    return {"spatial_interpolation_scale": rows, "temporal_interpolation_scale": times}


def _at(node: Mapping[str, Any], path: str, where: str) -> Mapping[str, Any]:
    for key in path.split("."):
        node = node.get(key) or {}
        if not isinstance(node, Mapping) or not node:
            raise UserError(f"{where}: model.{path} is not there, but config.json is made from it (--base)")
    return node


def seen_in_transformer(sat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The values of `config.json` that the shapes of a transformer with SAT's names decide."""
    shapes = {name: tuple(tensor.shape) for name, tensor in sat.items()}
    width = shapes["mixins.patch_embed.text_proj.weight"][0]
    head_size = next((s[0] for name, s in shapes.items() if "query_layernorm_list" in name), None)
    layers = {name.split(".")[2] for name in shapes if name.startswith("transformer.layers.")}
    seen = {
        "num_layers": len(layers),
        "text_embed_dim": shapes["mixins.patch_embed.text_proj.weight"][1],
        "time_embed_dim": shapes["time_embed.2.weight"][0],
        "ofs_embed_dim": shapes.get("ofs_embed.2.weight", (None,))[0],
    }
    if head_size is not None:
        seen |= {"attention_head_dim": head_size, "num_attention_heads": width // head_size}
    return seen


def check_transformer(config: Mapping[str, Any], sat: Mapping[str, Tensor], where: str) -> None:
    """UserError where the weights (SAT's names) have other sizes than `config` says; `where` the config is from."""
    seen = seen_in_transformer(sat)
    shapes = {name: tuple(tensor.shape) for name, tensor in sat.items()}
    volume = config["patch_size"] ** 2 * (config["patch_size_t"] or 1)
    sizes = {
        "in_channels · patch": (
            config["in_channels"] * volume,
            math.prod(shapes["mixins.patch_embed.proj.weight"][1:]),
        ),
        "out_channels · patch": (config["out_channels"] * volume, shapes["mixins.final_layer.linear.weight"][0]),
    }
    if config["use_learned_positional_embeddings"]:
        sizes["learned positions"] = (position_rows(config), shapes.get(POSITIONS, (0, 0))[1])
    pairs = {name: (config[name], found) for name, found in seen.items()} | sizes
    wrong = [f"{name} {a}, the weights {b}" for name, (a, b) in pairs.items() if a != b]
    if wrong:
        raise UserError(f"the weights are not of the model that {where} describes: it has " + "; ".join(wrong))


def position_rows(config: Mapping[str, Any]) -> int:
    """Rows of a table of positions: one a text token and one a token of the longest, largest clip."""
    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    rows, columns = (config[f"sample_{side}"] // config["patch_size"] for side in ("height", "width"))
    return config["max_text_seq_length"] + frames * rows * columns


def vae_config(diffusers: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of a VAE with diffusers' names; `settings` are `scaling_factor` and what else no shape shows."""
    shapes = {name: tuple(tensor.shape) for name, tensor in diffusers.items()}
    blocks = "encoder.down_blocks.{}.resnets.{}.conv2.conv.weight"
    for needed in ("encoder.conv_out.conv.weight", blocks.format(0, 0)):
        if needed not in shapes:
            raise UserError(
                f"the VAE's weights are not whole: {needed} (in diffusers' naming) is missing: fetch them again"
            )
    widths: list[int] = []
    while (shape := shapes.get(blocks.format(len(widths), 0))) is not None:
        widths.append(shape[0])
    deep = 0
    while blocks.format(0, deep) in shapes:
        deep += 1
    own = {
        "block_out_channels": widths,
        "layers_per_block": deep,
        "latent_channels": shapes["encoder.conv_out.conv.weight"][0] // 2,
        "down_block_types": ["CogVideoXDownBlock3D"] * len(widths),
        "up_block_types": ["CogVideoXUpBlock3D"] * len(widths),
    }
    return dict(sorted((VAE | own | dict(settings)).items()))


def vae_settings_from_training(model: Mapping[str, Any]) -> dict[str, Any]:
    """What `model:` of a training config says about a VAE that its weights do not show."""
    scale, image_scale = _scales(model)
    return {"scaling_factor": scale, "invert_scale_latents": image_scale != scale and _same(image_scale, 1 / scale)}


def image_scale_note(model: Mapping[str, Any], inverted: bool | None) -> str | None:
    """What to say where diffusers multiplies an image's latents by another number than `model:` of a training config.

    `inverted`: `invert_scale_latents` of the VAE, None where that is not known, as it is another file's.
    """
    scale, image_scale = _scales(model)
    factors = {False: scale, True: 1 / scale}
    if any(_same(image_scale, factor) for known, factor in factors.items() if inverted in (None, known)):
        return None
    by = f"{scale:.5g}, or by {1 / scale:.5g} where the VAE's config.json says invert_scale_latents"
    if inverted is not None:
        by = f"{factors[inverted]:.5g} (invert_scale_latents {str(inverted).lower()})"
    return (
        f"note: diffusers' pipeline multiplies the image's latents by {by}; the config trains with image_scale_factor "
        f"{image_scale:.5g}, which diffusers cannot be told. For use in diffusers train with "
        f"model.image_scale_factor={1 / scale:.5g}"
    )


def _scales(model: Mapping[str, Any]) -> tuple[float, float]:
    """What latents, and those of the image that a clip starts from, are multiplied by in training."""
    scale = float(model.get("scale_factor", 1.0))
    image_scale = model.get("image_scale_factor")
    return scale, scale if image_scale is None else float(image_scale)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME_SCALE)
