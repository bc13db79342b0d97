"""The five published models: what tells them apart, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

HEAD_SIZE = 64


@dataclass(frozen=True)
class Published:
    """One model: its package on the hub, its config and its task's here, and what differs from model to model.

    `transformer` has the names of diffusers' `CogVideoXTransformer3DModel`, `vae` those of `AutoencoderKLCogVideoX`.
    """

    repository: str
    config: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    task: str = "sft.yaml"


_2B = {"num_layers": 30, "num_attention_heads": 30, "use_rotary_positional_embeddings": False}
_5B = {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True}
_1_5 = _5B | {
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_frames": 81,
    "sample_height": 300,
    "sample_width": 300,
    "max_text_seq_length": 224,
}
_IMAGE = {"in_channels": 32}
_SCALE = {"scaling_factor": 0.7}

MODELS: dict[str, Published] = {
    "2b": Published("zai-org/CogVideoX-2b", "cogvideox_2b.yaml", _2B, {"scaling_factor": 1.15258426}),
    "5b": Published("zai-org/CogVideoX-5b", "cogvideox_5b.yaml", _5B, _SCALE),
    "5b-i2v": Published(
        "zai-org/CogVideoX-5b-I2V",
        "cogvideox_5b_i2v.yaml",
        _5B | _IMAGE | {"use_learned_positional_embeddings": True},
        _SCALE,
    ),
    "1.5-5b": Published("zai-org/CogVideoX1.5-5B", "cogvideox1.5_5b.yaml", _1_5, _SCALE, "sft1.5.yaml"),
    "1.5-5b-i2v": Published(
        "zai-org/CogVideoX1.5-5B-I2V",
        "cogvideox1.5_5b_i2v.yaml",
        _1_5 | _IMAGE | {"ofs_embed_dim": 512},
        # Its image latents were not scaled in training, and diffusers is told so.
        _SCALE | {"invert_scale_latents": True},
        "sft1.5.yaml",
    ),
}


def recognize(sat: Mapping[str, Tensor]) -> str | None:
    """The published model that a transformer with SAT's names has the sizes of; None where there is none."""
    shapes = {name: tuple(tensor.shape) for name, tensor in sat.items()}
    layers = {name.split(".")[2] for name in shapes if name.startswith("transformer.layers.")}
    width, *patch = shapes.get("mixins.patch_embed.proj.weight", (0, 0))
    columns = 1
    for size in patch:
        columns *= size
    found = (len(layers), width, columns, any(name.startswith("ofs_embed.") for name in shapes))
    for name, model in MODELS.items():
        settings = model.transformer
        volume = 4 * settings.get("patch_size_t", 1)
        wanted = (
            settings["num_layers"],
            settings["num_attention_heads"] * HEAD_SIZE,
            settings.get("in_channels", 16) * volume,
            "ofs_embed_dim" in settings,
        )
        output = shapes.get("mixins.final_layer.linear.weight", (0,))[0]
        if found == wanted and output == 16 * volume:
            return name
    return None
