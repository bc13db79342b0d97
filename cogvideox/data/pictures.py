# H W
"""Pictures to start a clip with, sized as clips are."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from PIL import Image, ImageOps
from torch import Tensor

from cogvideox.data.looking import fault_of_size
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.scaling import FrameScaler, to_clip
from cogvideox.errors import UserError

# Pillow's modes of grey in more than 8 bits; PNG has 16.
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """A picture file, upright, resized to cover `size` (H, W) and cropped to its middle → float32 (3, H, W), [-1, 1].

    Raises UserError: missing, or no picture that can be read.
    """
    try:
        pixels = read_still(path, size)
    except UnreadableVideo as error:
        raise UserError(f"the image {path} {error}: give a PNG, JPEG or WebP file") from error
    return to_clip(pixels[None], 1)[0]  # c h w


def read_still(path: Path, size: tuple[int, int] | None = None, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """A picture file, upright → uint8 (H, W, 3); resized to cover `size` and cropped at `place` where it is given.

    Raises UnreadableVideo.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableVideo("is no plain file")
        with Image.open(path) as image:
            if fault := fault_of_size(image.height, image.width):
                raise UnreadableVideo(fault)
            pixels = _pixels(ImageOps.exif_transpose(image))
        if size is None:
            return pixels
        return FrameScaler(size, place=place)(VideoFrame.from_ndarray(pixels, format="rgb24"))
    # Pillow's readers raise any of these for damaged files, and so does scaling a picture that is too large for it.
    except (OSError, ValueError, SyntaxError, MemoryError, FFmpegError, Image.DecompressionBombError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableVideo(f"cannot be read ({reason})") from error


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 RGB (H, W, 3). Pillow itself cuts more than 8 bits of grey off at 255 instead of scaling them."""
    if image.mode in DEEP_MODES:
        grey = np.rint(np.asarray(image).clip(0, 65535) / 257)
        image = Image.fromarray(grey.astype(np.uint8))
    return np.array(image.convert("RGB"))


def check_pictures(paths: Sequence[Path], size: tuple[int, int]) -> None:
    """Read each picture once. Raises UserError that names every one that cannot be read."""
    faults = []
    for path in dict.fromkeys(paths):
        try:
            read_picture(path, size)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
