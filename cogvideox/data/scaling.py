# F frames, C channels, H W
"""Decoded frames to the size that is trained, and uint8 frames to the clip that is trained on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

# libswscale's SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP, as a number because PyAV names
# all of them only from 18 on. The bicubic filter widens with the reduction (antialiasing). Without the other three
# swscale takes shortcuts that darken by about 1.5 levels and blur colour: 37 dB from an exact bicubic of the RGB
# picture instead of 53 dB, for a fifth of the time (720p to 114×64, one core).
_SWSCALE = 0x4 | 0x40000 | 0x2000 | 0x4000


def covering_size(height: float, width: float, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (H, W) of the picture's aspect that covers `size` (H, W)."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


class FrameScaler:
    """Frame of any size → uint8 RGB (H, W, 3) of `size`: upright, square pixels, scaled to cover, cropped.

    `pixel_aspect` is the width of a pixel over its height (None: square); `place` in [0, 1] where the crop lies in the
    upright picture, from above and from the left.
    """

    def __init__(
        self,
        size: tuple[int, int],
        pixel_aspect: Fraction | None = None,
        place: tuple[float, float] = (0.5, 0.5),
    ) -> None:
        self._size, self._place = size, place
        self._pixel_aspect = float(pixel_aspect) if pixel_aspect else 1.0
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        # Phones store upright pictures lying on a side, with a note to turn them.
        quarter_turns = round(frame.rotation / 90) % 4
        size = self._size if quarter_turns % 2 == 0 else (self._size[1], self._size[0])
        height, width = covering_size(frame.height, frame.width * self._pixel_aspect, size)
        scaled = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=_SWSCALE, threads=1
        )
        picture = np.rot90(scaled.to_ndarray(), quarter_turns)
        top, left = (
            int((length - wanted) * place)
            for length, wanted, place in zip(picture.shape, self._size, self._place, strict=False)
        )
        return picture[top : top + self._size[0], left : left + self._size[1]]  # h w c


def to_clip(frames: np.ndarray, clip_length: int) -> Tensor:
    """uint8 frames (F, H, W, 3) → float32 clip (`clip_length`, 3, H, W) in [-1, 1]; the last frame fills the rest."""
    real_count, height, width, _ = frames.shape
    clip = torch.empty(clip_length, 3, height, width)
    clip[:real_count] = torch.from_numpy(frames).permute(0, 3, 1, 2)
    clip[:real_count].mul_(1 / 127.5).sub_(1.0)
    clip[real_count:] = clip[real_count - 1]
    return clip  # f c h w
