"""Scaling and cropping against Pillow, turning against ffmpeg's own, and the clip against its arithmetic."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox.data.reading import read_frames
from cogvideox.data.scaling import FrameScaler, covering_size, to_clip
from tests.data.painted import even_times, numbers_in, write_painted


def smooth_picture(height: int, width: int) -> np.ndarray:
    """A picture (H, W, 3) with structure at several scales and no sharp colour edges that 4:2:0 would lose."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + y / 23), np.sin(x / 31 - y / 5), np.sin((x + y) / 14)]
    gray = sum(waves) / 3
    tint = np.stack([gray, gray * 0.9 + 0.1 * waves[0], gray * 0.8 + 0.1 * waves[1]], axis=2)
    return (127.5 + 110 * tint).clip(0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b.astype(float)) ** 2).mean()))


@pytest.mark.parametrize("source", [(720, 1280), (480, 640), (640, 360), (128, 192)])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (256, 384)])
def test_scale_and_crop_equal_pillow(source: tuple[int, int], size: tuple[int, int]) -> None:
    """Reference: Pillow's antialiased bicubic to the covering size, centre crop. No brightness is lost either."""
    picture = smooth_picture(*source)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p")
    ours = FrameScaler(size)(frame)
    height, width = covering_size(*source, size)
    whole = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    expected = whole[top : top + size[0], left : left + size[1]]
    assert ours.shape == (*size, 3)
    assert psnr(ours, expected) > 40
    assert abs(float(ours.astype(float).mean() - expected.astype(float).mean())) < 0.5


def test_fine_detail_is_averaged_not_aliased() -> None:
    """Identity: a checkerboard of single pixels, reduced 8 times, is its mean."""
    board = np.indices((512, 768)).sum(axis=0) % 2 * 255
    frame = av.VideoFrame.from_ndarray(np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8), format="rgb24")
    inside = FrameScaler((64, 96))(frame)[2:-2, 2:-2].astype(float)
    assert np.abs(inside - 127.5).max() < 4


def test_covering_size_covers_and_keeps_the_aspect() -> None:
    """Identity: at least the size in both directions, exactly in one, aspect to a pixel."""
    for height, width in [(720, 1280), (1080, 607), (17, 4000), (64, 96)]:
        for size in [(64, 96), (480, 720), (96, 64)]:
            covering = covering_size(height, width, size)
            assert covering[0] >= size[0] and covering[1] >= size[1]
            assert covering[0] == size[0] or covering[1] == size[1]
            assert covering[1] == pytest.approx(covering[0] * width / height, rel=0.6 / min(covering))


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """Identity: stored 64x96 with pixels twice as wide is a 64x192 picture; the crop keeps its middle."""
    write_painted(tmp_path / "clip.mp4", even_times(8, 9), pixel_aspect=Fraction(2, 1))
    frames = read_frames(tmp_path / "clip.mp4", 0.0, 8, 9, (64, 96)).astype(float).mean(axis=3)
    for number in (1, 2, 4, 8):
        columns = frames[number, :32].mean(axis=0) > 120
        middle_bits = [bool(number >> 1 & 1), bool(number >> 2 & 1)]
        assert [columns[12], columns[84]] == middle_bits


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_videos_are_upright(tmp_path: Path, degrees: int) -> None:
    """Reference: the ffmpeg program, which turns pictures by itself."""
    write_painted(tmp_path / "lying.mp4", even_times(8, 9))
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    turned = str(tmp_path / "turned.mp4")
    copy = ["-display_rotation", str(degrees), "-i", str(tmp_path / "lying.mp4"), "-c", "copy", turned]
    subprocess.run(ffmpeg + copy, check=True)
    raw = subprocess.run(
        [*ffmpeg, "-i", turned, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True
    )
    size = (96, 64) if degrees != 180 else (64, 96)
    expected = np.frombuffer(raw.stdout, dtype=np.uint8).reshape(9, *size, 3)
    assert psnr(read_frames(Path(turned), 0.0, 8, 9, size), expected) > 35


def test_read_frames_keeps_the_painted_numbers_at_other_sizes(tmp_path: Path) -> None:
    """Round trip through a reduction by 4 of a wider picture."""
    write_painted(tmp_path / "clip.mp4", even_times(8, 30), size=(256, 384))
    assert numbers_in(read_frames(tmp_path / "clip.mp4", 0.0, 8, 25, (64, 96))) == list(range(25))


def test_clip_is_scaled_and_padded_with_the_last_frame() -> None:
    """Identity: v / 127.5 - 1 to rounding, ends at -1 and 1; the frames after the real ones are the last one."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    frames[0, 0, 0] = [0, 255, 127]
    clip = to_clip(frames, 9)
    assert clip.shape == (9, 3, 4, 6) and clip.dtype == torch.float32 and clip.is_contiguous()
    expected = torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 127.5 - 1
    assert (clip[:5] - expected).abs().max() < 2e-7
    assert clip.min() == -1.0 and clip.max() == 1.0
    assert all(torch.equal(clip[i], clip[4]) for i in range(5, 9))
