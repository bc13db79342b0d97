"""The decoder: latent → clip.

# B batch, T latent frames, F = 4(T − 1) + 1 frames, H W, h w = H/8, W/8
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cogvideox.vae.blocks import Chunks, MidBlock3D, ResnetBlock3D, Upsample3D, norm_swish_conv
from cogvideox.vae.causal_conv import CausalConv3d
from cogvideox.vae.norms import SpatialNorm3D
from cogvideox.vae.shapes import time_levels


class DecoderLevel(nn.Module):
    """The residual blocks of one resolution, and the step to the next higher one where there is one."""

    def __init__(
        self, widths: Sequence[int], dropout: float, z_channels: int, upsample: bool, compress_time: bool
    ) -> None:
        super().__init__()
        pairs = zip(widths, widths[1:], strict=False)
        self.block = nn.ModuleList(ResnetBlock3D(before, after, dropout, z_channels) for before, after in pairs)
        self.upsample = Upsample3D(widths[-1], compress_time) if upsample else None

    def forward(self, chunks: Chunks, z: Chunks) -> Chunks:
        """(B, C, T, H, W) chunks and the latent's → (B, C', T', H', W') chunks."""
        for block in self.block:
            chunks = block(chunks, z)
        return chunks if self.upsample is None else [self.upsample(x) for x in chunks]


class ContextParallelDecoder3D(nn.Module):
    """Causal 3D decoder; the name is the one that existing configs know.

    `in_channels` and `double_z` are the encoder's (configs give both the same keys); `gather_norm` has no meaning on
    one device.
    """

    def __init__(
        self,
        ch: int,
        out_ch: int,
        z_channels: int,
        num_res_blocks: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        in_channels: int = 3,
        dropout: float = 0.0,
        double_z: bool = True,
        gather_norm: bool = False,
        temporal_compress_times: int = 4,
    ) -> None:
        super().__init__()
        del in_channels, double_z, gather_norm
        widths = [ch * mult for mult in ch_mult]
        last = len(widths) - 1
        # The lowest resolutions double time, the encoder's highest halved it: names count levels from the highest.
        static = last - time_levels(temporal_compress_times, last)
        self.time_factor = temporal_compress_times
        self.widest = max(widths[:2])  # channels at the full resolution: the second level's, once upsampled
        self.conv_in = CausalConv3d(z_channels, widths[-1], kernel_size=3)
        self.mid = MidBlock3D(widths[-1], dropout, z_channels)
        self.up = nn.ModuleList(
            DecoderLevel(
                [widths[min(i + 1, last)], *[width] * (num_res_blocks + 1)], dropout, z_channels, i > 0, i > static
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = SpatialNorm3D(widths[0], z_channels)
        self.conv_out = CausalConv3d(widths[0], out_ch, kernel_size=3)

    def forward(self, z: Chunks) -> Chunks:
        """(B, z_channels, T, h, w) chunks → (B, 3, F, H, W) chunks."""
        chunks = self.mid([self.conv_in(x) for x in z], z)
        for level in reversed(self.up):
            chunks = level(chunks, z)
        return norm_swish_conv(self.norm_out, self.conv_out, chunks, z)
