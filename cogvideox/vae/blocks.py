"""What the encoder and the decoder are made of: residual blocks and the steps between resolutions.

A clip is a list of time chunks, in order; a whole clip is a list of one. Blocks take such a list and give a new one.

# B batch, C channels, T frames (at any level), H W; z: the latent's chunks, where the decoder conditions on it
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.vae.causal_conv import CausalConv3d, CausalModule, per_frame
from cogvideox.vae.norms import GroupNorm, SpatialNorm3D, Statistics

Chunks = list[Tensor]
Norm = GroupNorm | SpatialNorm3D


def make_norm(channels: int, z_channels: int | None) -> Norm:
    """The encoder's norm, or the decoder's where the latent's channel count is given."""
    return GroupNorm(channels) if z_channels is None else SpatialNorm3D(channels, z_channels)


def norm_swish_conv(norm: Norm, conv: CausalConv3d, chunks: Chunks, z: Chunks | None, dropout: float = 0.0) -> Chunks:
    """conv(swish(norm(·))) of each chunk (B, C, T, H, W), with the statistics of the whole clip; empties `chunks`."""
    statistics = norm.statistics(chunks)
    out: Chunks = []
    while chunks:
        h = _normalize(norm, chunks.pop(0), statistics, None if z is None else z[len(out)])
        h = F.silu(h, inplace=not h.requires_grad)
        out.append(conv(F.dropout(h, dropout, training=norm.training)))
    return out


def _normalize(norm: Norm, x: Tensor, statistics: Statistics | None, z: Tensor | None) -> Tensor:
    if isinstance(norm, GroupNorm):
        return norm(x, statistics)
    assert z is not None, "the decoder's norms are conditioned on the latent"
    return norm(x, statistics, z)


class ResnetBlock3D(nn.Module):
    """Two times norm, swish, causal convolution, around a shortcut that is 1×1×1 where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, z_channels: int | None) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = make_norm(in_channels, z_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, kernel_size=3)
        self.norm2 = make_norm(out_channels, z_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, kernel_size=3)
        self.nin_shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, chunks: Chunks, z: Chunks | None = None) -> Chunks:
        """(B, C_in, T, H, W) chunks → (B, C_out, T, H, W) chunks."""
        h = norm_swish_conv(self.norm1, self.conv1, list(chunks), z)
        h = norm_swish_conv(self.norm2, self.conv2, h, z, self.dropout)
        return [
            y + self._shortcut(x) if y.requires_grad else y.add_(self._shortcut(x))
            for x, y in zip(chunks, h, strict=True)
        ]

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.nin_shortcut is None:
            return x
        weight, bias = self.nin_shortcut.weight.to(x.dtype), self.nin_shortcut.bias
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


class MidBlock3D(nn.Module):
    """Two residual blocks at the lowest resolution."""

    def __init__(self, channels: int, dropout: float, z_channels: int | None) -> None:
        super().__init__()
        self.block_1 = ResnetBlock3D(channels, channels, dropout, z_channels)
        self.block_2 = ResnetBlock3D(channels, channels, dropout, z_channels)

    def forward(self, chunks: Chunks, z: Chunks | None = None) -> Chunks:
        """(B, C, T, H, W) chunks → the same."""
        return self.block_2(self.block_1(chunks, z), z)


class Downsample3D(CausalModule):
    """Halves H and W by a strided convolution and, with `compress_time`, T by averaging pairs after the first frame."""

    def __init__(self, channels: int, compress_time: bool) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, C, T', H/2, W/2), T' = (T+1)/2 where the clip starts, T/2 later, or T."""
        if self.compress_time:
            first = int(self.starts_clip())
            pairs = (x[:, :, first::2] + x[:, :, first + 1 :: 2]) * 0.5
            x = torch.cat([x[:, :, :first], pairs], dim=2) if first else pairs
        return per_frame(self.conv, F.pad(x, (0, 1, 0, 1)))


class Upsample3D(CausalModule):
    """Doubles H and W and, with `compress_time`, all frames but the first, by nearest interpolation, then convolves."""

    def __init__(self, channels: int, compress_time: bool) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, C, T', 2H, 2W), T' = 2T − 1 where the clip starts, 2T later, or T."""
        x = per_frame(self.conv, F.interpolate(x, scale_factor=(1.0, 2.0, 2.0)))
        if not self.compress_time:
            return x
        # The convolution is within frames: doubled frames are doubled after it, at half the work.
        first = int(self.starts_clip())
        frames = x.split(1, dim=2)
        return torch.cat([*frames[:first], *(frame for frame in frames[first:] for _ in range(2))], dim=2)
