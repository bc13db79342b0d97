"""The encoder: clip → mean and log variance of the latent.

# B batch, F frames (4k + 1), T = k + 1 latent frames, H W, h w = H/8, W/8
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cogvideox.vae.blocks import Chunks, Downsample3D, MidBlock3D, ResnetBlock3D, norm_swish_conv
from cogvideox.vae.causal_conv import CausalConv3d
from cogvideox.vae.norms import GroupNorm
from cogvideox.vae.shapes import time_levels


class EncoderLevel(nn.Module):
    """The residual blocks of one resolution, and the step to the next lower one where there is one."""

    def __init__(self, widths: Sequence[int], dropout: float, downsample: bool, compress_time: bool) -> None:
        super().__init__()
        pairs = zip(widths, widths[1:], strict=False)
        self.block = nn.ModuleList(ResnetBlock3D(before, after, dropout, None) for before, after in pairs)
        self.downsample = Downsample3D(widths[-1], compress_time) if downsample else None

    def forward(self, chunks: Chunks) -> Chunks:
        """(B, C, T, H, W) chunks → (B, C', T', H', W') chunks."""
        for block in self.block:
            chunks = block(chunks)
        return chunks if self.downsample is None else [self.downsample(x) for x in chunks]


class ContextParallelEncoder3D(nn.Module):
    """Causal 3D encoder; the name is the one that existing configs know.

    `out_ch` is the decoder's (configs give both the same keys); `gather_norm` has no meaning on one device.
    """

    def __init__(
        self,
        ch: int,
        in_channels: int,
        z_channels: int,
        num_res_blocks: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        out_ch: int = 3,
        dropout: float = 0.0,
        double_z: bool = True,
        gather_norm: bool = False,
        temporal_compress_times: int = 4,
    ) -> None:
        super().__init__()
        del out_ch, gather_norm
        widths = [ch * mult for mult in ch_mult]
        last = len(widths) - 1
        halvings = time_levels(temporal_compress_times, last)
        self.time_factor, self.space_factor = temporal_compress_times, 2**last
        self.conv_in = CausalConv3d(in_channels, widths[0], kernel_size=3)
        self.down = nn.ModuleList(
            EncoderLevel([widths[max(i - 1, 0)], *[width] * num_res_blocks], dropout, i < last, i < halvings)
            for i, width in enumerate(widths)
        )
        self.mid = MidBlock3D(widths[-1], dropout, None)
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], z_channels * 2 if double_z else z_channels, kernel_size=3)

    def forward(self, chunks: Chunks) -> Chunks:
        """(B, 3, F, H, W) chunks → (B, 2·z_channels, T, h, w) chunks."""
        chunks = [self.conv_in(x) for x in chunks]
        for level in self.down:
            chunks = level(chunks)
        chunks = self.mid(chunks)
        return norm_swish_conv(self.norm_out, self.conv_out, chunks, None)
