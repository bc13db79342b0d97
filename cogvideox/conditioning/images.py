"""What an image-to-video model is told of the first frame: its latent, joined to the noised one on channels.

# B batch, T latent frames, C channels, H W pixels, h w latent size
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_SIGMA_MEAN, LOG_SIGMA_STD = -3.0, 0.5


# CogVideoX (Yang et al. 2024, appendix D): noise on the image, of a strength that varies, closes the gap to inference.
def noised_images(images: Tensor) -> Tensor:
    """(B,3,H,W) plus noise of σ = exp(N(−3, 0.5)), drawn for each sample."""
    sigma = (LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.randn(len(images), device=images.device)).exp()
    return images + sigma.to(images)[:, None, None, None] * torch.randn_like(images)


def placed_in_time(image_latents: Tensor, frames: int, everywhere: bool = False) -> Tensor:
    """(B,1,C,h,w) → (B,T,C,h,w): at the first of `frames` latent frames, zeros after it; or the same at all of them."""
    if everywhere:
        return image_latents.expand(-1, frames, -1, -1, -1)
    rest = image_latents.new_zeros(len(image_latents), frames - 1, *image_latents.shape[2:])
    return torch.cat([image_latents, rest], dim=1)


def with_dropout(image_latents: Tensor, rate: float) -> Tensor:
    """Each sample's latents, all zero with probability `rate`."""
    kept = torch.rand(len(image_latents), device=image_latents.device) >= rate
    return image_latents * kept.to(image_latents.dtype)[:, None, None, None, None]


def coarsened(clips: Tensor, scale: float) -> Tensor:
    """(B,F,3,H,W) at 1/`scale` of the resolution, brought back to its size."""
    frames = clips.flatten(0, 1).float()
    low = F.interpolate(frames, scale_factor=1 / scale, mode="bilinear", antialias=True, recompute_scale_factor=True)
    back = F.interpolate(low, size=frames.shape[-2:], mode="bilinear")
    return back.unflatten(0, clips.shape[:2]).to(clips.dtype)
