# F frames, H W
"""A sample's frames side by side in one small picture, as a person looks them over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FRAMES_SHOWN = 4
FRAME_HEIGHT, FRAME_WIDTH = 120, 180
"""A frame is scaled to fit into these."""


def strip_of(frames: np.ndarray, count: int = FRAMES_SHOWN) -> Image.Image:
    """`count` of the uint8 frames (F, H, W, 3), from the first to the last, evenly spread; fewer where F is less."""
    places = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    height, width = frames.shape[1:3]
    scale = min(1.0, FRAME_HEIGHT / height, FRAME_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    strip = Image.new("RGB", (len(places) * size[0], size[1]))
    for column, place in enumerate(places):
        strip.paste(Image.fromarray(frames[place]).resize(size, Image.Resampling.LANCZOS), (column * size[0], 0))
    return strip


def write_strip(path: Path, frames: np.ndarray) -> None:
    """Write `strip_of(frames)` as a JPEG."""
    strip_of(frames).save(path, "JPEG", quality=80)
