# F frames, C channels, H W
"""Clips to mp4 files that any player and browser shows."""

from __future__ import annotations

import os
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch
from torch import Tensor

VISUALLY_LOSSLESS_CRF = 18
"""x264's constant rate factor (0 lossless, 51 worst); 18 is commonly taken as visually lossless."""


def to_uint8_frames(clip: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Float clip (F, 3, H, W) in `value_range`, any device and float type → uint8 frames (F, H, W, 3).

    Values outside the range are clamped; NaN becomes black.
    """
    low, high = value_range
    unit = (clip.detach().to("cpu", torch.float32) - low) / (high - low)
    frames = unit.nan_to_num(0.0).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return frames.permute(0, 2, 3, 1).contiguous().numpy()  # f h w c


def write_video(
    path: str | Path,
    clip: Tensor,
    fps: float,
    value_range: tuple[float, float] = (-1.0, 1.0),
    crf: int = VISUALLY_LOSSLESS_CRF,
) -> None:
    """Write a float clip (F, 3, H, W) as H.264 yuv420p mp4 at constant quality `crf`, whole or not at all.

    4:2:0 chroma needs even sizes: an odd height or width repeats its last line. The folder is made where it is missing.
    """
    assert clip.ndim == 4 and clip.shape[1] == 3, f"a clip is (F, 3, H, W), not {tuple(clip.shape)}"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = to_uint8_frames(clip, value_range)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
    # "+faststart" puts the index in front, so that a browser can start before it has the whole file.
    # "-threads 2": samples are small, and x264 would otherwise start a thread per core beside the training.
    writer = imageio.get_writer(
        partial,
        format="FFMPEG",
        mode="I",
        fps=fps,
        codec="libx264",
        quality=None,
        pixelformat="yuv420p",
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=["-crf", str(crf), "-movflags", "+faststart", "-threads", "2"],
    )
    try:
        with writer:
            for frame in frames:
                writer.append_data(frame)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
