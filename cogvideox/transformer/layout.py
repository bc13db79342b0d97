"""Where each token of the sequence comes from: text first, then video patches in (time, height, width) order.

Shapes: B batch, T latent frames, C channels, H W latent rows and columns, N text tokens, S video tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cogvideox.errors import UserError

Patch = tuple[int, int, int]


def as_patch(patch_size: int | Sequence[int]) -> Patch:
    """`patch_size` of the config as (time, height, width); a single number p means (1, p, p)."""
    patch = (1, patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    if len(patch) != 3 or min(patch) < 1:
        raise UserError(f"patch_size {patch_size!r}: give one number p (for 1, p, p) or three, all at least 1")
    return patch[0], patch[1], patch[2]


def pad_in_front(latent: torch.Tensor, patch_t: int) -> torch.Tensor:
    """(B, T, C, H, W) with its first frame repeated in front, so that `patch_t` divides T: what 1.5 was trained on."""
    extra = -latent.shape[1] % patch_t
    return torch.cat([latent[:, :1].expand(-1, extra, -1, -1, -1), latent], dim=1) if extra else latent


@dataclass(frozen=True)
class TokenLayout:
    """N text tokens, then a grid of `frames` x `height` x `width` video tokens, each a `patch` of the latent."""

    text_length: int
    frames: int
    height: int
    width: int
    patch: Patch

    @classmethod
    def of(cls, latent_shape: torch.Size, text_length: int, patch: Patch) -> TokenLayout:
        """The layout of a latent (B, T, C, H, W) after `text_length` text tokens. Raises UserError if it is uneven."""
        if len(latent_shape) != 5:
            raise UserError(f"latent of shape {tuple(latent_shape)}: expected 5 axes, (B, T, C, H, W)")
        _, latent_frames, _, rows, columns = latent_shape
        sizes = (("frames", latent_frames), ("rows", rows), ("columns", columns))
        for axis, ((name, size), step) in enumerate(zip(sizes, patch, strict=True)):
            if size % step or size == 0:
                lower, upper = size // step * step, (size // step + 1) * step
                remedy = f"use {lower} or {upper}" if lower else f"use {upper}"
                raise UserError(f"{size} latent {name}, but patch_size[{axis}] is {step}: {remedy} latent {name}")
        return cls(text_length, latent_frames // patch[0], rows // patch[1], columns // patch[2], patch)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Video tokens along time, height and width."""
        return self.frames, self.height, self.width

    @property
    def video_length(self) -> int:
        """S, the number of video tokens."""
        return self.frames * self.height * self.width

    @property
    def length(self) -> int:
        """N + S, the whole sequence."""
        return self.text_length + self.video_length

    def fits(self, largest_grid: tuple[int, int, int]) -> bool:
        """Whether the grid is within a table of positions for `largest_grid`."""
        return all(have <= limit for have, limit in zip(self.grid, largest_grid, strict=True))

    def check_fits(self, largest_grid: tuple[int, int, int]) -> None:
        """Raise UserError where the grid is larger than what the position table was built for."""
        if not self.fits(largest_grid):
            keys = "num_frames, latent_height and latent_width of the transformer's params"
            raise UserError(
                f"{_times(self.grid)} video tokens (time x height x width), but positions go up to "
                f"{_times(largest_grid)}: use fewer frames or smaller pictures, raise {keys}, or set "
                "`interpolate: true` in pos_embed_config.params"
            )


def _times(grid: tuple[int, int, int]) -> str:
    return " x ".join(str(size) for size in grid)
