"""Group normalization over whole clips, also where a clip comes as a list of time chunks.

# B batch, C channels, G groups, T frames (at any level), H W; t h w the latent's
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.errors import UserError
from cogvideox.vae.causal_conv import CausalConv3d, CausalModule

GROUPS = 32
EPSILON = 1e-6


class Statistics(NamedTuple):
    """Mean and reciprocal standard deviation of each group over a whole clip, float32 (B, G)."""

    mean: Tensor
    inverse_std: Tensor


def clip_statistics(chunks: list[Tensor]) -> Statistics:
    """Statistics over all time chunks (B, C, T_i, H, W) of a clip, as if they were one (Chan et al. 1979)."""
    counts, means, deviations = [], [], []
    for chunk in chunks:
        x = chunk.float()
        mean = x.mean(dim=(2, 3, 4), keepdim=True)
        counts.append(x[0, 0].numel())
        means.append(mean.flatten(1))
        deviations.append((x - mean).square().sum(dim=(2, 3, 4)))
    count = torch.tensor(counts, dtype=torch.float32, device=chunks[0].device)
    per_channel = torch.stack(means, dim=-1).unflatten(1, (GROUPS, -1))  # b g (c/g) chunk
    width = per_channel.shape[2]
    mean = (per_channel @ count).mean(dim=2) / count.sum()
    between = ((per_channel - mean[..., None, None]).square() @ count).sum(dim=2)
    within = torch.stack(deviations, dim=-1).sum(dim=-1).unflatten(1, (GROUPS, -1)).sum(dim=2)
    return Statistics(mean, ((within + between) / (count.sum() * width) + EPSILON).rsqrt())


class GroupNorm(nn.GroupNorm):
    """GroupNorm with 32 groups, over the frames at hand or with statistics of the clip that they come from."""

    def __init__(self, channels: int) -> None:
        if channels % GROUPS:
            raise UserError(
                f"a VAE level has {channels} channels, which {GROUPS} normalization groups do not divide: choose "
                f"`ch` and `ch_mult` (encoder_config and decoder_config) so that each product is a multiple of {GROUPS}"
            )
        super().__init__(GROUPS, channels, eps=EPSILON)

    def statistics(self, chunks: list[Tensor]) -> Statistics | None:
        """The clip's statistics, or None where torch's GroupNorm finds them: a clip in one chunk.

        Not on a CPU: there, and in channels-last order, torch 2.13's loses 1e-3 on a clip of 49 frames of 96×144.
        """
        return clip_statistics(chunks) if len(chunks) > 1 or chunks[0].device.type == "cpu" else None

    def forward(self, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """(B, C, T, H, W) → the same."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if statistics is None:
            return F.group_norm(x, GROUPS, weight, bias, EPSILON)
        scale = statistics.inverse_std[..., None] * self.weight.float().unflatten(0, (GROUPS, -1))
        shift = self.bias.float().unflatten(0, (GROUPS, -1)) - statistics.mean[..., None] * scale
        scale, shift = (s.flatten(1)[:, :, None, None, None] for s in (scale, shift))
        return torch.addcmul(shift, x.float(), scale).to(x.dtype)


class SpatialNorm3D(CausalModule):
    """GroupNorm whose scale and shift at each place are read from the latent there (Zheng et al. 2022, MoVQ)."""

    def __init__(self, channels: int, z_channels: int) -> None:
        super().__init__()
        self.norm_layer = GroupNorm(channels)
        self.conv_y = CausalConv3d(z_channels, channels, kernel_size=1)
        self.conv_b = CausalConv3d(z_channels, channels, kernel_size=1)

    def statistics(self, chunks: list[Tensor]) -> Statistics | None:
        """See `GroupNorm.statistics`."""
        return self.norm_layer.statistics(chunks)

    def forward(self, x: Tensor, statistics: Statistics | None, z: Tensor) -> Tensor:
        """x (B, C, T, H, W), z (B, C_z, t, h, w) → (B, C, T, H, W)."""
        first = self.starts_clip()
        # A 1×1×1 convolution commutes with nearest interpolation: done on the latent's grid it is far less work.
        scale = stretch(self.conv_y(z), x.shape[2:], first)
        shift = stretch(self.conv_b(z), x.shape[2:], first)
        return torch.addcmul(shift, self.norm_layer(x, statistics), scale)


def stretch(z: Tensor, size: torch.Size, first: bool) -> Tensor:
    """Nearest interpolation of (B, C, t, h, w) to `size` (T, H, W); a clip's `first` frame stays one frame."""
    frames, height, width = size
    if z.shape[2] == frames or not first:
        return F.interpolate(z, size=(frames, height, width))
    head = F.interpolate(z[:, :, :1], size=(1, height, width))
    rest = F.interpolate(z[:, :, 1:], size=(frames - 1, height, width))
    return torch.cat([head, rest], dim=2)
