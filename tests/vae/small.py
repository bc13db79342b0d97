"""A small autoencoder, and diffusers' of the same size with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from diffusers import AutoencoderKLCogVideoX

from cogvideox.checkpoint.reading import load_strictly
from cogvideox.checkpoint.vae_names import sat_from_diffusers
from cogvideox.vae.autoencoder import VideoAutoencoderInferenceWrapper
from cogvideox.vae.decoder import ContextParallelDecoder3D
from cogvideox.vae.encoder import ContextParallelEncoder3D
from cogvideox.vae.posterior import DiagonalGaussianRegularizer

CH_MULT = (1, 2, 2, 1)  # widens and narrows, so that shortcuts are convolutions both ways


def build(ch_mult: Sequence[int] = CH_MULT, blocks: int = 1, ch: int = 32, seed: int = 0):
    """Ours, with random weights."""
    torch.manual_seed(seed)
    encoder = ContextParallelEncoder3D(ch=ch, in_channels=3, z_channels=16, num_res_blocks=blocks, ch_mult=ch_mult)
    decoder = ContextParallelDecoder3D(ch=ch, out_ch=3, z_channels=16, num_res_blocks=blocks, ch_mult=ch_mult)
    return VideoAutoencoderInferenceWrapper(encoder, decoder, DiagonalGaussianRegularizer())


def build_diffusers(ch_mult: Sequence[int] = CH_MULT, blocks: int = 1, ch: int = 32):
    """Diffusers', with random weights; its norms' weights and biases are no ones and zeros."""
    torch.manual_seed(1)
    model = AutoencoderKLCogVideoX(
        block_out_channels=tuple(ch * mult for mult in ch_mult), layers_per_block=blocks, latent_channels=16
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


@cache
def pair(blocks: int = 1):
    """Ours and diffusers', with equal weights."""
    theirs, ours = build_diffusers(blocks=blocks), build(blocks=blocks)
    load_strictly(ours, sat_from_diffusers(theirs.state_dict()), "diffusers' weights")
    return ours, theirs


def clip(frames: int, height: int = 32, width: int = 48, batch: int = 2, seed: int = 3) -> torch.Tensor:
    """(B, 3, F, H, W): a smooth random clip in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, frames, height // 8, width // 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(frames, height, width), mode="trilinear")
    return fine.add_(0.1 * torch.randn(fine.shape, generator=generator)).clamp_(-1, 1)
