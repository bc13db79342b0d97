"""Which clips the autoencoder takes, and how they are cut in time.

# F frames, T latent frames, H W
"""

from __future__ import annotations

import math

from torch import Tensor

from cogvideox.errors import UserError


def time_levels(temporal_compress_times: int, steps: int) -> int:
    """How many of the `steps` between resolutions halve time: log2 of the compression."""
    levels = int(math.log2(temporal_compress_times)) if temporal_compress_times > 0 else -1
    if levels < 0 or 2**levels != temporal_compress_times or levels > steps:
        raise UserError(
            f"temporal_compress_times {temporal_compress_times} must be a power of two of at most {2**steps} "
            f"(2 to the number of steps between the levels of `ch_mult`)"
        )
    return levels


def check_clip(x: Tensor, channels: int, time_factor: int, space_factor: int) -> None:
    """UserError unless x is (B, channels, F, H, W) with F = time_factor·k + 1 and H, W multiples of space_factor."""
    if x.ndim != 5:
        raise UserError(f"a clip for the VAE has 5 dimensions (batch, channels, frames, height, width), not {x.ndim}")
    if x.shape[1] != channels:
        raise UserError(f"a clip of {x.shape[1]} channels does not fit the VAE, which takes {channels} (in_channels)")
    frames, height, width = x.shape[2:]
    if frames < 1 or (frames - 1) % time_factor:
        nearest = max(round((frames - 1) / time_factor), 0) * time_factor + 1
        raise UserError(
            f"a clip of {frames} frames does not fit the VAE, which takes {time_factor}k + 1: use {nearest} frames "
            f"(data.params.max_num_frames)"
        )
    for name, size in (("height", height), ("width", width)):
        if size < space_factor or size % space_factor:
            nearest = max(round(size / space_factor), 1) * space_factor
            raise UserError(
                f"a clip of {name} {size} does not fit the VAE, which takes multiples of {space_factor}: use {nearest} "
                f"(data.params.video_size)"
            )


def check_latent(z: Tensor, channels: int) -> None:
    """UserError unless z is (B, channels, T, h, w)."""
    if z.ndim != 5 or z.shape[1] != channels:
        raise UserError(f"a latent for the VAE is (B, {channels}, T, h, w) (z_channels), not {tuple(z.shape)}")


def split_in_time(x: Tensor, chunk: int) -> list[Tensor]:
    """Cut dim 2 into pieces of `chunk`; the first takes what is left over, so that it alone holds the odd frame."""
    count = max(x.shape[2] // chunk, 1)
    first = x.shape[2] - (count - 1) * chunk
    return list(x.split([first, *[chunk] * (count - 1)], dim=2))
