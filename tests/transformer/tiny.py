"""Tiny models for the tests of this folder: ours, and diffusers' with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from cogvideox.checkpoint.transformer_names import to_diffusers
from cogvideox.transformer.model import DiffusionTransformer

TEXT_TOKENS, TEXT_WIDTH, HEADS, HEAD_SIZE, LAYERS = 7, 24, 2, 64, 2
WIDTH = HEADS * HEAD_SIZE
ROWS, COLUMNS, FRAMES = 8, 12, 5  # the native latent


def config(rotary: bool = True, lora: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The params of `network_config` for a tiny 5B-like (rotary) or 2B-like model."""
    positions: dict[str, Any] = {
        "target": "dit_video_concat.Basic3DPositionEmbeddingMixin",
        "params": {"text_length": TEXT_TOKENS, "height_interpolation": 1.875, "width_interpolation": 1.875},
    }
    if rotary:
        positions = {
            "target": "dit_video_concat.Rotary3DPositionEmbeddingMixin",
            "params": {"text_length": TEXT_TOKENS, "hidden_size_head": HEAD_SIZE},
        }
    modules: dict[str, Any] = {
        "pos_embed_config": positions,
        "patch_embed_config": {
            "target": "dit_video_concat.ImagePatchEmbeddingMixin",
            "params": {"text_hidden_size": TEXT_WIDTH},
        },
        "adaln_layer_config": {"target": "dit_video_concat.AdaLNMixin", "params": {"qk_ln": True}},
        "final_layer_config": {"target": "dit_video_concat.FinalLayerMixin"},
    }
    if lora is not None:
        modules["lora_config"] = {"target": "sat.model.finetune.lora2.LoraMixin", "params": lora}
    params: dict[str, Any] = {
        "transformer_args": {"checkpoint_activations": False},
        "num_frames": 4 * (FRAMES - 1) + 1,
        "time_compressed_rate": 4,
        "latent_width": COLUMNS,
        "latent_height": ROWS,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "time_embed_dim": 32,
        "modules": modules,
    }
    return {**params, **changes}


def fill_randomly(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights in which nothing is zero or one, so that no gate hides what is behind it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embedding") and not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm_weight = parameter.ndim == 1 and name.endswith("weight")
        scale = 1.0 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.3
        parameter.data.copy_(noise * scale + (1.0 if is_norm_weight else 0.0))


def model(seed: int = 0, **kwargs: Any) -> DiffusionTransformer:
    built = DiffusionTransformer(**config(**kwargs))
    fill_randomly(built, seed)
    return built


def inputs(batch: int = 2, frames: int = FRAMES, rows: int = ROWS, columns: int = COLUMNS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, frames, 4, rows, columns, generator=generator),
        "timesteps": torch.tensor([17, 803, 400, 999][:batch]),
        "context": torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator),
    }


def diffusers_twin(ours: DiffusionTransformer, rotary: bool, **changes: Any) -> CogVideoXTransformer3DModel:
    """diffusers' class with our weights; its last norm's eps is set to the published models' 1e-6."""
    options: dict[str, Any] = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_SIZE,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 32,
        "text_embed_dim": TEXT_WIDTH,
        "num_layers": LAYERS,
        "sample_width": COLUMNS,
        "sample_height": ROWS,
        "sample_frames": 4 * (FRAMES - 1) + 1,
        "max_text_seq_length": TEXT_TOKENS,
        "use_rotary_positional_embeddings": rotary,
    }
    twin = CogVideoXTransformer3DModel(**{**options, **changes})
    weights = to_diffusers(ours.state_dict(), ours.patch, changes.get("use_learned_positional_embeddings", False))
    twin.load_state_dict(weights, strict=True)
    twin.norm_out.norm.eps = 1e-6
    return twin


def run_twin(
    twin: CogVideoXTransformer3DModel, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, **more: Any
) -> torch.Tensor:
    """diffusers' forward, with rotary tables for the grid of `x` where it wants them."""
    rotary = None
    if twin.config.use_rotary_positional_embeddings:
        pt = twin.config.patch_size_t
        grid = (x.shape[3] // 2, x.shape[4] // 2)
        if pt is None:
            rotary = get_3d_rotary_pos_embed(HEAD_SIZE, ((0, 0), grid), grid, x.shape[1], device=x.device)
        else:
            rotary = get_3d_rotary_pos_embed(
                HEAD_SIZE, None, grid, x.shape[1] // pt, grid_type="slice", max_size=grid, device=x.device
            )
    out = twin(x, context, timesteps, image_rotary_emb=rotary, return_dict=False, **more)
    return out[0]
