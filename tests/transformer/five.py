"""The five published models, at their real sizes and at a tiny one: our config's params and diffusers' options."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel

from cogvideox.checkpoint.transformer_names import to_diffusers
from cogvideox.transformer.lora import is_adapter
from cogvideox.transformer.model import DiffusionTransformer
from tests.transformer import tiny

HEAD_SIZE, OFS = 64, 2.0


@dataclass(frozen=True)
class Kind:
    """What tells the models apart at any size."""

    rotary: bool = True
    image: bool = False  # image latents join the noised ones on the channels
    learned: bool = False  # an additive learned table beside the rotary angles
    patch_t: int = 1
    ofs: bool = False


KINDS = {
    "2B": Kind(rotary=False),
    "5B": Kind(),
    "5B-I2V": Kind(image=True, learned=True),
    "1.5-5B": Kind(patch_t=2),
    "1.5-5B-I2V": Kind(patch_t=2, image=True, ofs=True),
}


@dataclass(frozen=True)
class Size:
    """`rows` and `columns` are those of the latent that the position table is made for."""

    layers: int
    heads: int
    text_tokens: int
    frames: int
    rows: int
    columns: int
    channels: int = 16
    text_width: int = 4096
    time_embed_dim: int = 512

    @property
    def width(self) -> int:
        return self.heads * HEAD_SIZE


REAL = {
    "2B": Size(30, 30, 226, 49, 60, 90),
    "5B": Size(42, 48, 226, 49, 60, 90),
    "5B-I2V": Size(42, 48, 226, 49, 60, 90),
    "1.5-5B": Size(42, 48, 224, 81, 300, 300),
    "1.5-5B-I2V": Size(42, 48, 224, 81, 300, 300),
}
TINY = Size(
    tiny.LAYERS,
    tiny.HEADS,
    tiny.TEXT_TOKENS,
    4 * (tiny.FRAMES - 1) + 1,
    tiny.ROWS,
    tiny.COLUMNS,
    channels=4,
    text_width=tiny.TEXT_WIDTH,
    time_embed_dim=32,
)


def params_of(kind: Kind, size: Size, lora: dict[str, Any] | None = None) -> dict[str, Any]:
    """The params of `network_config`."""
    params = tiny.config(
        rotary=kind.rotary,
        lora=lora,
        num_frames=size.frames,
        latent_width=size.columns,
        latent_height=size.rows,
        patch_size=2 if kind.patch_t == 1 else [kind.patch_t, 2, 2],
        in_channels=size.channels * (2 if kind.image else 1),
        out_channels=size.channels,
        hidden_size=size.width,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        time_embed_dim=size.time_embed_dim,
    )
    if kind.ofs:
        params["ofs_embed_dim"] = size.time_embed_dim
    positions = params["modules"]["pos_embed_config"]["params"]
    positions["text_length"] = size.text_tokens
    if kind.learned:
        positions["learnable_pos_embed"] = True
    params["modules"]["patch_embed_config"]["params"]["text_hidden_size"] = size.text_width
    return params


def diffusers_options(kind: Kind, size: Size) -> dict[str, Any]:
    """What CogVideoXTransformer3DModel is built with: the published models' `transformer/config.json`."""
    return {
        "num_attention_heads": size.heads,
        "attention_head_dim": HEAD_SIZE,
        "in_channels": size.channels * (2 if kind.image else 1),
        "out_channels": size.channels,
        "time_embed_dim": size.time_embed_dim,
        "ofs_embed_dim": size.time_embed_dim if kind.ofs else None,
        "text_embed_dim": size.text_width,
        "num_layers": size.layers,
        "sample_width": size.columns,
        "sample_height": size.rows,
        "sample_frames": size.frames,
        "patch_size_t": None if kind.patch_t == 1 else kind.patch_t,
        "max_text_seq_length": size.text_tokens,
        "use_rotary_positional_embeddings": kind.rotary,
        "use_learned_positional_embeddings": kind.learned,
    }


def tiny_model(kind: Kind, lora: dict[str, Any] | None = None) -> DiffusionTransformer:
    """Ours, tiny, with weights in which nothing is zero or one."""
    model = DiffusionTransformer(**params_of(kind, TINY, lora))
    tiny.fill_randomly(model)
    return model


def tiny_twin(ours: DiffusionTransformer, kind: Kind) -> CogVideoXTransformer3DModel:
    """diffusers' with the weights of `ours`, adapters left out; its last norm's eps is the published models' 1e-6.

    diffusers never trains the learned table; here it is a parameter, so that its gradient can be compared.
    """
    twin = CogVideoXTransformer3DModel(**diffusers_options(kind, TINY))
    base = {n.replace(".original.", "."): tensor for n, tensor in ours.state_dict().items() if not is_adapter(n)}
    twin.load_state_dict(to_diffusers(base, ours.patch, kind.learned), strict=True)
    twin.norm_out.norm.eps = 1e-6
    if kind.learned:
        table = twin.patch_embed.pos_embedding
        del twin.patch_embed.pos_embedding
        twin.patch_embed.pos_embedding = torch.nn.Parameter(table.clone())
    return twin


def tiny_inputs(kind: Kind, rows: int = tiny.ROWS, columns: int = tiny.COLUMNS, batch: int = 2) -> dict[str, Any]:
    """Keyword arguments of our forward; an odd number of latent frames is filled up to whole patches."""
    frames = tiny.FRAMES + -tiny.FRAMES % kind.patch_t
    inputs: dict[str, Any] = tiny.inputs(batch, frames, rows, columns)
    if kind.image:
        images = torch.zeros_like(inputs["x"])
        images[:, :1] = torch.randn(images[:, :1].shape, generator=torch.Generator().manual_seed(4))
        inputs["concat_images"] = images
    if kind.ofs:
        inputs["ofs"] = torch.full((batch,), OFS)
    return inputs


def run_twin(
    twin: CogVideoXTransformer3DModel,
    x: torch.Tensor,
    timesteps: torch.Tensor,
    context: torch.Tensor,
    concat_images: torch.Tensor | None = None,
    ofs: torch.Tensor | None = None,
) -> torch.Tensor:
    """diffusers' forward, with the rotary tables that its pipelines make for a latent of this size."""
    rotary = None
    if twin.config.use_rotary_positional_embeddings:
        pipeline = SimpleNamespace(transformer=twin, vae_scale_factor_spatial=8)
        sizes = {"height": 8 * x.shape[3], "width": 8 * x.shape[4], "num_frames": x.shape[1]}
        make = CogVideoXPipeline._prepare_rotary_positional_embeddings
        rotary = make(pipeline, **sizes, device=x.device)
    if concat_images is not None:
        x = torch.cat([x, concat_images], dim=2)
    return twin(x, context, timesteps, ofs=ofs, image_rotary_emb=rotary, return_dict=False)[0]
