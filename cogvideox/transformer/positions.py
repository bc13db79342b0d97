"""Where a video token is: 3D sine-cosine embeddings that are added, or 3D rotary angles for queries and keys.

Shapes: T H W token grid, S = T*H*W video tokens, N text tokens, D width, E head size.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from sat.model.base_model import BaseMixin
from torch import nn

from cogvideox.errors import UserError
from cogvideox.transformer.layout import TokenLayout

logger = logging.getLogger(__name__)

Grid = tuple[int, int, int]
Additions = tuple[torch.Tensor | None, torch.Tensor | None]  # for the text tokens (1, N, D), for the video (1, S, D)
TABLES_KEPT = 8  # one for each (layout, device) in use; buckets of several sizes come and go


class PositionMixin(Protocol):
    """What the model asks of its `pos_embed` mixin, beside SAT's hook."""

    def rotary(self, layout: TokenLayout, device: torch.device) -> torch.Tensor | None:
        """Unit complex numbers (N + S, 1, E/2) to turn queries and keys by, or None."""


def positions_along(count: int, interpolation: float) -> torch.Tensor:
    """0, 1, ... as float64, divided by the interpolation factor. (count,)"""
    return torch.arange(count, dtype=torch.float64) / interpolation


# Sinusoids of "Attention Is All You Need" (Vaswani et al. 2017, section 3.5), sines first.
def sincos_1d(positions: torch.Tensor, width: int) -> torch.Tensor:
    """(P,) float64 -> (P, width) float32"""
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = torch.outer(positions, frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_3d(grid: Grid, width: int, interpolation: tuple[float, float, float]) -> torch.Tensor:
    """A quarter of `width` for time, three eighths each for the column and the row. (S, width) float32"""
    if width % 16:
        raise UserError(f"hidden_size {width}: 3D sine-cosine positions need a multiple of 16")
    frames, rows, columns = grid
    time, row, column = (positions_along(n, scale) for n, scale in zip(grid, interpolation, strict=True))
    spatial_width = width // 4 * 3 // 2
    parts = [
        repeat(sincos_1d(time, width // 4), "t d -> t h w d", h=rows, w=columns),
        repeat(sincos_1d(column, spatial_width), "w d -> t h w d", t=frames, h=rows),
        repeat(sincos_1d(row, spatial_width), "h d -> t h w d", t=frames, w=columns),
    ]
    return rearrange(torch.cat(parts, dim=-1), "t h w d -> (t h w) d")


# Rotary position embedding (Su et al. 2021), one share of the head for each axis.
def rotary_3d(
    layout: TokenLayout, head_size: int, theta: float, interpolation: tuple[float, float, float]
) -> torch.Tensor:
    """exp(i angle) for each pair of a head: a quarter for time, three eighths for row and column; 1 for text.

    (N + S, 1, E/2) complex64
    """
    shares = (head_size // 4, head_size // 8 * 3, head_size // 8 * 3)
    axes = ["t d -> t h w d", "h d -> t h w d", "w d -> t h w d"]
    sizes = dict(zip("thw", layout.grid, strict=True))
    angles = []
    for axis, (share, pattern) in enumerate(zip(shares, axes, strict=True)):
        frequencies = theta ** -(torch.arange(0, share, 2, dtype=torch.float64) / share)
        along = torch.outer(positions_along(layout.grid[axis], interpolation[axis]), frequencies)
        others = {name: size for name, size in sizes.items() if name != pattern[0]}
        angles.append(repeat(along, pattern, **others))
    video = rearrange(torch.cat(angles, dim=-1), "t h w d -> (t h w) 1 d")
    text = torch.zeros(layout.text_length, 1, video.shape[-1], dtype=video.dtype)
    all_angles = torch.cat([text, video])
    return torch.polar(torch.ones_like(all_angles), all_angles).to(torch.complex64)


def crop_table(table: torch.Tensor, largest: Grid, layout: TokenLayout) -> torch.Tensor:
    """The rows of `layout`'s video tokens in a table (1, N + largest S, D), as (1, S, D)."""
    rows = table[:, table.shape[1] - largest[0] * largest[1] * largest[2] :]
    if layout.grid == largest:
        return rows
    frames, height, width = layout.grid
    cropped = rows.unflatten(1, largest)[:, :frames, :height, :width]
    return rearrange(cropped, "1 t h w d -> 1 (t h w) d")


def squeezed(interpolation: tuple[float, float, float], grid: Grid, largest: Grid) -> tuple[float, float, float]:
    """`interpolation`, larger where `grid` is beyond `largest`, so that its last position is within."""
    factors = (max(1.0, (have - 1) / max(1, limit - 1)) for have, limit in zip(grid, largest, strict=True))
    time, row, column = (own * factor for own, factor in zip(interpolation, factors, strict=True))
    return time, row, column


def resize_table(table: torch.Tensor, largest: Grid, layout: TokenLayout) -> torch.Tensor:
    """As `crop_table`, with linear interpolation along the axes on which `layout`'s grid is beyond the table."""
    frames, height, width = (min(have, limit) for have, limit in zip(layout.grid, largest, strict=True))
    kept = TokenLayout(layout.text_length, frames, height, width, layout.patch)
    grid = crop_table(table, largest, kept).unflatten(1, kept.grid)
    resized = F.interpolate(
        rearrange(grid, "1 t h w d -> 1 d t h w").float(), size=layout.grid, mode="trilinear", align_corners=True
    )
    return rearrange(resized, "1 d t h w -> 1 (t h w) d").to(table.dtype)


class Basic3DPositionEmbeddingMixin(BaseMixin):
    """Frozen 3D sine-cosine embeddings, added to the video tokens (CogVideoX-2B).

    A grid beyond the table is refused, or with `interpolate` squeezed into it: its positions lie closer together.
    """

    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = ("height", "width", "compressed_num_frames", "hidden_size")

    def __init__(
        self,
        height: int,
        width: int,
        compressed_num_frames: int,
        hidden_size: int,
        text_length: int = 0,
        height_interpolation: float = 1.0,
        width_interpolation: float = 1.0,
        time_interpolation: float = 1.0,
        interpolate: bool = False,
    ) -> None:
        super().__init__()
        self.grid: Grid = (compressed_num_frames, height, width)
        self.text_length = text_length
        self.interpolate = interpolate
        self.interpolation = (time_interpolation, height_interpolation, width_interpolation)
        video = sincos_3d(self.grid, hidden_size, self.interpolation)
        table = torch.cat([torch.zeros(text_length, hidden_size), video])
        self.pos_embedding = nn.Parameter(table.unsqueeze(0), requires_grad=False)
        self.register_load_state_dict_pre_hook(_keep_own_table)

    def rotary(self, layout: TokenLayout, device: torch.device) -> torch.Tensor | None:  # noqa: ARG002
        """Nothing turns queries and keys here."""
        return None

    def position_embedding_forward(self, position_ids: None, *, layout: TokenLayout) -> Additions:  # noqa: ARG002
        """SAT hook. What to add to the video tokens; text has no position."""
        if layout.fits(self.grid):
            return None, crop_table(self.pos_embedding, self.grid, layout)
        if not self.interpolate:
            layout.check_fits(self.grid)
        interpolation = squeezed(self.interpolation, layout.grid, self.grid)
        table = sincos_3d(layout.grid, self.pos_embedding.shape[-1], interpolation)
        return None, table.to(self.pos_embedding)[None]


def _keep_own_table(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_load_arguments: Any) -> None:
    """The table is a formula: a file without it, or with that of another size, is as good as one with it."""
    assert isinstance(module, Basic3DPositionEmbeddingMixin)
    key = prefix + "pos_embedding"
    found = state_dict.get(key)
    if found is None or found.shape != module.pos_embedding.shape:
        if found is not None:
            own = tuple(module.pos_embedding.shape)
            logger.info("%s: kept our positions %s, the file has %s", key, own, tuple(found.shape))
        state_dict[key] = module.pos_embedding.data


class Rotary3DPositionEmbeddingMixin(BaseMixin):
    """3D rotary positions (CogVideoX-5B and 1.5), with an additive learned table where the model has one (5B-I2V).

    The tables are made in float64 and kept as float32 pairs outside of the module's parameters and buffers, so that
    neither `half()` nor a checkpoint touches them. `interpolate` as for the sine-cosine embeddings; a learned table is
    resized.
    """

    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = ("height", "width", "compressed_num_frames", "hidden_size")

    def __init__(
        self,
        height: int,
        width: int,
        compressed_num_frames: int,
        hidden_size: int,
        hidden_size_head: int,
        text_length: int,
        theta: float = 10000.0,
        rot_v: bool = False,
        height_interpolation: float = 1.0,
        width_interpolation: float = 1.0,
        time_interpolation: float = 1.0,
        learnable_pos_embed: bool = False,
        interpolate: bool = False,
    ) -> None:
        super().__init__()
        if hidden_size_head % 16:
            raise UserError(f"hidden_size_head {hidden_size_head}: 3D rotary positions need a multiple of 16")
        if rot_v:
            raise UserError("rot_v: true (turning the values too) is not supported: remove it")
        self.grid: Grid = (compressed_num_frames, height, width)
        self.text_length = text_length
        self.head_size = hidden_size_head
        self.theta = theta
        self.interpolate = interpolate
        self.interpolation = (time_interpolation, height_interpolation, width_interpolation)
        self.pos_embedding: nn.Parameter | None = None
        if learnable_pos_embed:
            length = text_length + compressed_num_frames * height * width
            self.pos_embedding = nn.Parameter(torch.zeros(1, length, hidden_size))
        self._tables: OrderedDict[tuple[int, Grid, torch.device], torch.Tensor] = OrderedDict()
        self.register_load_state_dict_pre_hook(_drop_published_tables)

    def rotary(self, layout: TokenLayout, device: torch.device) -> torch.Tensor | None:
        """(N + S, 1, E/2) complex64, kept for the layouts used last."""
        key = (layout.text_length, layout.grid, device)
        if key not in self._tables:
            if not self.interpolate:
                layout.check_fits(self.grid)
            interpolation = squeezed(self.interpolation, layout.grid, self.grid)
            table = rotary_3d(layout, self.head_size, self.theta, interpolation)
            self._tables[key] = table.to(device)
            if len(self._tables) > TABLES_KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def position_embedding_forward(self, position_ids: None, *, layout: TokenLayout) -> Additions:  # noqa: ARG002
        """SAT hook. The learned table's rows for both kinds of tokens, or nothing."""
        if self.pos_embedding is None:
            return None, None
        if layout.text_length != self.text_length:
            raise UserError(
                f"{layout.text_length} text tokens, but the learned positions have {self.text_length}: "
                f"set max_length of the text encoder and text_length of pos_embed_config to the same number"
            )
        text = self.pos_embedding[:, : self.text_length]
        if layout.fits(self.grid):
            return text, crop_table(self.pos_embedding, self.grid, layout)
        return text, resize_table(self.pos_embedding, self.grid, layout)


def _drop_published_tables(
    _module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_load_arguments: Any
) -> None:
    for name in ("freqs_sin", "freqs_cos"):
        state_dict.pop(prefix + name, None)
