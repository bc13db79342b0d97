"""Test videos whose every frame carries its number: eight blocks, two rows of four, white for a 1 bit."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICKS_PER_S = 90_000
HEIGHT, WIDTH = 64, 96


def paint(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The picture (H, W, 3) of frame `number` (below 256)."""
    bits = [(number >> bit) & 1 for bit in range(8)]
    blocks = np.array(bits, dtype=np.uint8).reshape(2, 4) * 200 + 20
    picture = np.kron(blocks, np.ones((height // 2, width // 4), dtype=np.uint8))
    return np.repeat(picture[:, :, None], 3, axis=2)


def numbers_in(frames: np.ndarray) -> list[int]:
    """The numbers painted into uint8 frames (F, H, W, 3)."""
    count, height, width, _ = frames.shape
    blocks = frames.astype(float).reshape(count, 2, height // 2, 4, width // 4, 3).mean(axis=(2, 4, 5))
    bits = (blocks > 120).reshape(count, 8)
    return [int(sum(int(bit) << place for place, bit in enumerate(row))) for row in bits]


def even_times(fps: Fraction | float, count: int) -> list[float]:
    """The times (seconds) of `count` frames at a constant rate."""
    return [float(i / Fraction(fps)) for i in range(count)]


def write_painted(
    path: Path,
    times: Sequence[float],
    keyframe_interval: int = 24,
    b_frames: int = 3,
    container_options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> list[float]:
    """Write an H.264 mp4 with frame i shown at `times[i]` seconds; return the times as the file keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ticks = [round(time * TICKS_PER_S) for time in times]
    with av.open(str(path), "w", format="mp4", options=container_options or {}) as container:
        stream = container.add_stream(
            "libx264", rate=25, options={"crf": "20", "preset": "veryfast", "sc_threshold": "0"}
        )
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size, stream.max_b_frames = keyframe_interval, b_frames
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        if pixel_aspect:
            stream.sample_aspect_ratio = pixel_aspect
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(paint(number, *size), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, TICKS_PER_S)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return [tick / TICKS_PER_S for tick in ticks]


def damage_packets(path: Path, which: slice) -> None:
    """Spoil the bytes inside `which` of a video's packets, so that the index and all other pictures stay whole."""
    with av.open(str(path)) as container:
        packets = [(each.pos, each.size) for each in container.demux(video=0) if each.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[which]:
        content[position + 5 : position + size] = bytes(255 - byte for byte in content[position + 5 : position + size])
    path.write_bytes(content)
