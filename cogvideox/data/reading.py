# F frames, C channels, H W
"""Videos in: their packets, and the frames nearest to wanted times, by PyAV. What a file holds is told by `looking`.

Why PyAV, and not decord (which the reference uses) or torchcodec: decord's last release is of 2021 and it is no longer
kept; torchcodec is tied to a torch release and to FFmpeg libraries of the system. PyAV is kept, brings its own FFmpeg,
and gives packets with their timestamps *before* they are decoded. That is what makes a read both right and cheap: the
frame nearest to each wanted time is known from the packets alone (variable frame rates too), decoding starts at the
keyframe before the first and stops with the last, and a frame that is neither wanted nor referred to by others is not
decoded at all. Scaling goes from the decoder's YUV to small RGB in one step (`scaling`).
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cogvideox.data.containers import OPEN_OPTIONS, fault_of_boxes
from cogvideox.data.sampling import nearest_frames, wanted_times
from cogvideox.data.scaling import FrameScaler

DECODER_THREADS = 2
"""Frame threads per open video; a loader runs several workers beside each other."""

FRAMES_HELD = 4
"""Decoded frames of full size that may wait to be scaled."""

OPEN_TIMEOUT_S = 30.0

MOST_PIXELS = 2**27
"""Of one picture, four times that of 8K video; a decoder keeps a dozen of them."""

Video = Path | bytes
"""A file, or a file's content."""


class UnreadableVideo(Exception):
    """A file cannot be used as a clip; the text is the reason, short, without the file's name."""


@dataclass(frozen=True)
class TimedPacket:
    """One frame, encoded. Times are ticks of the stream's time base.

    `shown_at` is None for a frame that is decoded but never shown (an edit list can hide some).
    """

    packet: Packet
    decoded_at: int
    shown_at: int | None


def byte_count(video: Video) -> int:
    """How large a video is, in bytes. OSError: the file is not there."""
    return len(video) if isinstance(video, bytes) else video.stat().st_size


@contextmanager
def open_video(video: Video) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream; closed at the end. Errors of FFmpeg and the system → UnreadableVideo."""
    try:
        if byte_count(video) == 0:
            raise UnreadableVideo("is empty (0 bytes)")
        # Titles that are not UTF-8 are no reason to refuse a video.
        source = io.BytesIO(video) if isinstance(video, bytes) else str(video)
        options = dict(OPEN_OPTIONS)
        with av.open(source, "r", options=options, metadata_errors="ignore", timeout=OPEN_TIMEOUT_S) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.time_base is None:
                raise UnreadableVideo("has no video stream")
            if stream.codec_context is None:
                raise UnreadableVideo("is encoded in a way that FFmpeg does not know, or encrypted")
            # Of the pictures themselves, whatever the file's headers say of them.
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            stream.codec_context.thread_type = "FRAME"
            stream.codec_context.thread_count = DECODER_THREADS
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise UnreadableVideo(_why_not(video, error)) from error


def _why_not(video: Video, error: Exception) -> str:
    """What is wrong with a file at which FFmpeg gave up with `error`."""
    try:
        fault = fault_of_boxes(video) if isinstance(error, av.error.InvalidDataError) else None
    except OSError:
        fault = None
    return fault or f"cannot be read as a video ({getattr(error, 'strerror', None) or error})"


def read_frames(
    video: Video,
    start_s: float,
    fps: float,
    frame_count: int,
    size: tuple[int, int],
    place: tuple[float, float] = (0.5, 0.5),
    end_s: float = math.inf,
) -> np.ndarray:
    """The `frame_count` frames nearest to start_s + k / fps, scaled and cropped to `size` → uint8 (F, H, W, 3).

    `place` in [0, 1] is where the crop lies, from above and from the left; (0.5, 0.5) is the middle. No frame after
    `end_s` is taken.

    Raises UnreadableVideo where a wanted frame does not decode cleanly.
    """
    with open_video(video) as (container, stream):
        base = time_base(stream)
        wanted = np.minimum(wanted_times(start_s, fps, frame_count), end_s) / base
        window = _window(container, stream, wanted)
        times = np.array(sorted(each.shown_at for each in window if each.shown_at is not None))
        if len(times) == 0:
            raise UnreadableVideo(f"has no frames at {start_s:.2f} s")
        picks = times[nearest_frames(times, wanted)]
        frames = np.empty((frame_count, *size, 3), dtype=np.uint8)
        scaler = FrameScaler(size, stream.sample_aspect_ratio, place)

        def scale(tick: int, frame: VideoFrame) -> None:
            frames[picks == tick] = scaler(frame)

        missing = set(picks.tolist())
        missing -= _beside(scale, _decode(stream, window, missing))
        if missing:
            raise UnreadableVideo(f"does not decode at {min(missing) * base:.2f} s")
    return frames  # f h w c


def _beside(scale: Callable[[int, VideoFrame], None], decoded: Iterator[tuple[int, VideoFrame]]) -> set[int]:
    """Scale `decoded` in a thread beside the decoding, about as much work, which is then hidden. Gives their ticks."""
    ticks: set[int] = set()
    scaled: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scale-frames") as pool:
        for tick, frame in decoded:
            ticks.add(tick)
            scaled.append(pool.submit(scale, tick, frame))
            if len(scaled) > FRAMES_HELD:
                scaled.popleft().result()
        for each in scaled:
            each.result()
    return ticks


def _decode(stream: VideoStream, window: list[TimedPacket], wanted: set[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Decode as little of `window` (in decoding order, from a keyframe) as gives the frames shown at `wanted`."""
    context = stream.codec_context
    wanted = set(wanted)
    last = max(position for position, each in enumerate(window) if each.shown_at in wanted)
    # "NONREF" drops a frame that no other refers to. Only H.264 marks these so that they can always be dropped.
    skip: Literal["NONREF", "DEFAULT"] = "NONREF" if context.name == "h264" else "DEFAULT"
    for each in (*window[: last + 1], None):  # None: give all that is still in the decoder
        context.skip_frame = "DEFAULT" if each is None or each.shown_at in wanted else skip
        for frame in _decoded_frames(stream, each.packet if each else None):
            # The frames after a damaged one are patched together from it, without a mark.
            if frame.is_corrupt:
                raise UnreadableVideo(f"is damaged at {(frame.pts or 0) * time_base(stream):.2f} s")
            if frame.pts in wanted:
                yield frame.pts, frame


def _decoded_frames(stream: VideoStream, packet: Packet | None) -> list[VideoFrame]:
    """The frames that the decoder has ready after `packet`."""
    return stream.codec_context.decode(packet)


def _window(container: InputContainer, stream: VideoStream, wanted: np.ndarray) -> list[TimedPacket]:
    """The packets, in decoding order, from the keyframe before the first wanted tick until the last is surely in."""
    first, last = float(wanted[0]), float(wanted[-1])
    target, found = round(first), None
    while True:
        container.seek(target, stream=stream, backward=True)
        window = _demux_past(container, stream, last)
        if not window:
            raise UnreadableVideo("has no packets where its index says so")
        # A seek goes by decoding time: the keyframe found may be shown after the frame that is wanted first. Then
        # the keyframe before it is needed, unless there is none.
        keyframe = window[0]
        if keyframe.decoded_at == found or (keyframe.shown_at is not None and keyframe.shown_at <= first + 0.5):
            return window
        found = keyframe.decoded_at
        target = min(target, found) - 1


def _demux_past(container: InputContainer, stream: VideoStream, last: float) -> list[TimedPacket]:
    """Packets from here on, until no later one can be nearer to `last` (no frame is shown before it is decoded)."""
    window: list[TimedPacket] = []
    next_after = math.inf
    for each in timed_packets(container, stream):
        window.append(each)
        if each.shown_at is not None and each.shown_at >= last:
            next_after = min(next_after, each.shown_at)
        if each.decoded_at >= next_after:
            break
    return window


def timed_packets(container: InputContainer, stream: VideoStream) -> Iterator[TimedPacket]:
    """The stream's packets from the container's position on, in decoding order."""
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        shown_at = packet.pts if packet.pts is not None else packet.dts
        if shown_at is None:
            raise UnreadableVideo("has no timestamps")
        decoded_at = packet.dts if packet.dts is not None else shown_at
        yield TimedPacket(packet, decoded_at, None if packet.is_discard else shown_at)


def time_base(stream: VideoStream) -> float:
    """Seconds a tick."""
    assert stream.time_base is not None, "open_video has looked"
    return float(stream.time_base)
