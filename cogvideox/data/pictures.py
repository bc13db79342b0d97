# H W
"""Pictures to start a clip with, sized as clips are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
from av.video.frame import VideoFrame
from torch import Tensor

from cogvideox.data.scaling import FrameScaler, to_clip
from cogvideox.errors import UserError


def read_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """A picture file, upright, resized to cover `size` (H, W) and cropped to its middle → float32 (3, H, W), [-1, 1].

    Raises UserError: missing, or no picture that can be read.
    """
    try:
        pixels = imageio.imread(path, plugin="pillow", index=0, mode="RGB", rotate=True)
    except (OSError, ValueError, SyntaxError) as error:  # pillow's readers raise any of these for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the image {path} cannot be read ({reason}): give a PNG, JPEG or WebP file") from error
    frame = VideoFrame.from_ndarray(pixels, format="rgb24")
    return to_clip(FrameScaler(size)(frame)[None], 1)[0]  # c h w


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
