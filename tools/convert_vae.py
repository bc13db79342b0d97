"""A VAE on its way through convert_checkpoint.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.checkpoint.diffusers_config import vae_config
from cogvideox.checkpoint.reading import load_strictly
from cogvideox.checkpoint.vae_names import diffusers_from_sat
from cogvideox.vae.autoencoder import VideoAutoencoderInferenceWrapper
from cogvideox.vae.decoder import ContextParallelDecoder3D
from cogvideox.vae.encoder import ContextParallelEncoder3D
from cogvideox.vae.posterior import DiagonalGaussianRegularizer


def check_vae(sat: Mapping[str, Tensor], path: Path) -> None:
    """UserError: these weights (SAT's names) are not the whole of a VAE, each of the shape that its sizes ask for."""
    config = vae_config(diffusers_from_sat(sat), {})
    widths = config["block_out_channels"]
    sizes: dict[str, Any] = {
        "z_channels": config["latent_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
    }
    with torch.device("meta"):
        empty = VideoAutoencoderInferenceWrapper(
            ContextParallelEncoder3D(in_channels=3, **sizes),
            ContextParallelDecoder3D(out_ch=3, **sizes),
            DiagonalGaussianRegularizer(),
        )
        outline = {name: torch.empty_like(tensor, device="meta") for name, tensor in sat.items()}
    load_strictly(empty, outline, str(path))
