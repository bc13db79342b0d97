# T latent frames, H W latent rows and columns
"""The models that tools/benchmark.py times, and the clips that they are timed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LATENT_CHANNELS, HEAD_SIZE, TIME_COMPRESSION, SPACE_COMPRESSION = 16, 64, 4, 8


@dataclass(frozen=True)
class Size:
    """A model and the clip that it is timed on."""

    hidden: int
    layers: int
    time_embed: int
    text_tokens: int
    text_width: int
    frames: int
    height: int  # pixels
    width: int
    rotary: bool = False

    @property
    def heads(self) -> int:
        return self.hidden // HEAD_SIZE

    @property
    def latent(self) -> tuple[int, int, int]:
        """T, H, W of the latent."""
        frames = (self.frames - 1) // TIME_COMPRESSION + 1
        return frames, self.height // SPACE_COMPRESSION, self.width // SPACE_COMPRESSION


SIZES = {
    "tiny": Size(128, 2, 64, 16, 64, 9, 32, 48),
    "medium": Size(512, 8, 512, 226, 256, 49, 96, 144),
    "2b": Size(1920, 30, 512, 226, 4096, 49, 480, 720),
    "5b": Size(3072, 42, 512, 226, 4096, 49, 480, 720, rotary=True),
}

# T5 v1.1's encoders: width, width of the feed-forward layers, layers, heads of 64. CogVideoX has "xxl".
TEXT_ENCODERS = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}


def network_params(size: Size, rotary: bool, checkpointing: bool, text_width: int) -> dict[str, Any]:
    """`network_config.params` of the model."""
    room = "cogvideox.transformer"
    positions: dict[str, Any] = {
        "target": f"{room}.positions.{'Rotary' if rotary else 'Basic'}3DPositionEmbeddingMixin",
        "params": {"text_length": size.text_tokens} | ({"hidden_size_head": HEAD_SIZE} if rotary else {}),
    }
    patches = {"target": f"{room}.patching.ImagePatchEmbeddingMixin", "params": {"text_hidden_size": text_width}}
    _, rows, columns = size.latent
    return {
        "transformer_args": {"checkpoint_activations": checkpointing},
        "num_frames": size.frames,
        "time_compressed_rate": TIME_COMPRESSION,
        "latent_width": columns,
        "latent_height": rows,
        "patch_size": 2,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "hidden_size": size.hidden,
        "num_layers": size.layers,
        "num_attention_heads": size.heads,
        "time_embed_dim": size.time_embed,
        "modules": {
            "pos_embed_config": positions,
            "patch_embed_config": patches,
            "adaln_layer_config": {"target": f"{room}.adaln.AdaLNMixin"},
            "final_layer_config": {"target": f"{room}.patching.FinalLayerMixin"},
        },
    }
