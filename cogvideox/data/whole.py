# F frames, H W
"""A video decoded once from end to end: what it holds, and where it is damaged. Training reads only what it needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from cogvideox.data.pictures import read_still
from cogvideox.data.reading import UnreadableVideo, open_video

THUMBNAIL = (36, 64)
"""Height and width of the grey pictures that darkness and movement are judged by."""

_SWS_AREA = 0x20

BLACK_LEVEL = 32
"""A picture without a grey value from here on (of 255) is black: 16 is the black of most videos, the rest is noise."""

STILL_LEVEL = 2
"""Two pictures whose grey values differ by at most this are the same."""


@dataclass(frozen=True)
class WholeVideo:
    """What one pass over a file found.

    `times` are its frames' in seconds, ascending; `tick_s` is the unit in which the file keeps them. Height and width
    are as it is shown, `rotation` (degrees) is how far it is turned for that. `damaged_s` are the times of frames that
    did not decode, or not cleanly. `digest` is of the encoded pictures without container, titles and sound.
    `black_share` and `still_share` say how many of the pictures are black, or the same as the one before.
    """

    codec: str
    height: int
    width: int
    rotation: int
    times: np.ndarray
    tick_s: float
    damaged_s: tuple[float, ...]
    digest: str
    black_share: float
    still_share: float

    @property
    def intervals_s(self) -> np.ndarray:
        """From each frame to the next."""
        return np.diff(self.times)

    @property
    def fps(self) -> float | None:
        """Frames a second, on average."""
        return (len(self.times) - 1) / float(self.times[-1] - self.times[0]) if len(self.times) > 1 else None

    @property
    def duration_s(self) -> float:
        """From the first frame to the end of the last, which lasts as long as most do."""
        usual = float(np.median(self.intervals_s)) if len(self.times) > 1 else 0.0
        return float(self.times[-1] - self.times[0]) + usual

    @property
    def has_variable_rate(self) -> bool:
        """Whether some frame lasts a quarter longer or shorter than most, beyond the rounding of the file's clock."""
        if len(self.times) < 3:
            return False
        usual = float(np.median(self.intervals_s))
        return bool(np.abs(self.intervals_s - usual).max() > 0.25 * usual + 1.5 * self.tick_s)


def decode_whole(path: Path, alive: Callable[[], None]) -> WholeVideo:
    """Decode every frame of a video; `alive` is called at every packet. Raises UnreadableVideo: no frame decodes."""
    pictures = _Pictures()
    digest = hashlib.sha256()
    failed: list[int] = []
    with open_video(path) as (container, stream):
        assert stream.time_base is not None, "open_video has looked"
        base = float(stream.time_base)
        # One thread: what the decoder complains about is then the packet that it was given.
        stream.codec_context.thread_count = 1
        codec, aspect = stream.codec_context.name, float(stream.sample_aspect_ratio or 1)
        digest.update(codec.encode())
        for packet in container.demux(stream):
            alive()
            if packet.size:
                digest.update(memoryview(packet))
                _feed(stream, packet, pictures, failed)
        _feed(stream, None, pictures, failed)
    if not pictures.ticks:
        raise UnreadableVideo("has no frame that decodes")
    height, width = pictures.shown_size(aspect)
    damaged = sorted(tick * base for tick in {*failed, *pictures.corrupt})
    return WholeVideo(
        codec, height, width, pictures.rotation, np.array(sorted(pictures.ticks)) * base, base, tuple(damaged),
        digest.hexdigest(), pictures.black / pictures.count, pictures.still / max(1, pictures.count - 1),
    )  # fmt: skip


def read_whole_still(path: Path) -> WholeVideo:
    """A picture file as a video of one frame. Raises UnreadableVideo."""
    pixels = read_still(path)
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{height} {width} ".encode() + pixels.tobytes()).hexdigest()
    is_black = float(pixels.max() < BLACK_LEVEL)
    return WholeVideo(
        path.suffix[1:].lower(), height, width, 0, np.zeros(1), 0.0, (), digest, black_share=is_black, still_share=0.0
    )


@dataclass
class _Pictures:
    """What is remembered of the decoded frames; times are ticks of the stream."""

    ticks: set[int] = field(default_factory=set)
    corrupt: set[int] = field(default_factory=set)
    count: int = 0
    black: int = 0
    still: int = 0
    rotation: int = 0
    _size: tuple[int, int] = (0, 0)
    _last: np.ndarray | None = None
    _reformatter: VideoReformatter = field(default_factory=VideoReformatter)

    def add(self, frame: VideoFrame) -> None:
        if frame.pts is None:
            return
        if not self.count:
            self.rotation = round(frame.rotation) % 360
            self._size = frame.height, frame.width
        self.count += 1
        self.ticks.add(frame.pts)
        if frame.is_corrupt:
            self.corrupt.add(frame.pts)
        height, width = THUMBNAIL
        small = self._reformatter.reformat(
            frame, width=width, height=height, format="gray", interpolation=_SWS_AREA, threads=1
        )
        grey = small.to_ndarray().astype(np.int16)
        self.black += int(grey.max() < BLACK_LEVEL)
        self.still += int(self._last is not None and np.abs(grey - self._last).max() <= STILL_LEVEL)
        self._last = grey

    def shown_size(self, pixel_aspect: float) -> tuple[int, int]:
        """Height and width, upright and in square pixels, of the first frame."""
        height, width = self._size[0], round(self._size[1] * pixel_aspect)
        return (width, height) if round(self.rotation / 90) % 2 else (height, width)


def _feed(stream: VideoStream, packet: Packet | None, pictures: _Pictures, failed: list[int]) -> None:
    """Give the decoder a packet (None: the end), and take what it has ready. What it refuses goes to `failed`."""
    try:
        frames = stream.codec_context.decode(packet)
    except av.error.EOFError:
        return
    except (av.error.FFmpegError, ValueError):
        tick = None if packet is None else packet.pts if packet.pts is not None else packet.dts
        failed.append(tick if tick is not None else max(pictures.ticks, default=0))
        return
    for frame in frames:
        pictures.add(frame)
