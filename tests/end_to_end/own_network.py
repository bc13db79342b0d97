"""A transformer whose config has other names than the product's."""

from __future__ import annotations

from typing import Any

from cogvideox.transformer.model import DiffusionTransformer


class OwnNames(DiffusionTransformer):
    """Calls the number of frames `clip_frames`."""

    def __init__(self, clip_frames: int, num_frames: None = None, **params: Any) -> None:
        assert num_frames is None
        super().__init__(num_frames=clip_frames, **params)
