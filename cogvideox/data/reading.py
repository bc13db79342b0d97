# F frames, C channels, H W
"""Videos in: what a file holds, and the frames nearest to wanted times, by PyAV.

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
from collections.abc import Iterator
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
from cogvideox.data.sampling import UsableSpan, nearest_frames, wanted_times
from cogvideox.data.scaling import FrameScaler

DECODER_THREADS = 2
"""Frame threads per open video; a loader runs several workers beside each other."""

OPEN_TIMEOUT_S = 30.0

Video = Path | bytes
"""A file, or a file's content."""


@dataclass(frozen=True)
class VideoFacts:
    """What a file holds: the span to sample from, and the size of its pictures as they are shown (square pixels)."""

    span: UsableSpan
    height: float
    width: float


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


def _size(video: Video) -> int:
    return len(video) if isinstance(video, bytes) else video.stat().st_size


@contextmanager
def open_video(video: Video) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream; closed at the end. Errors of FFmpeg and the system → UnreadableVideo."""
    try:
        if _size(video) == 0:
            raise UnreadableVideo("is empty (0 bytes)")
        # Titles that are not UTF-8 are no reason to refuse a video.
        source = io.BytesIO(video) if isinstance(video, bytes) else str(video)
        options = dict(OPEN_OPTIONS)
        with av.open(source, "r", options=options, metadata_errors="ignore", timeout=OPEN_TIMEOUT_S) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.time_base is None:
                raise UnreadableVideo("has no video stream")
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


def look_at(video: Video, skip_frames: int, start_s: float | None = None, end_s: float | None = None) -> VideoFacts:
    """Look at a file without decoding: the span left after ignoring `skip_frames` frames at both ends, of the part
    between `start_s` and `end_s` (seconds from the first frame; None: the whole).

    Reads the index, and the packets of both ends; all packets where the container has no index (fragmented mp4) or a
    part of it is wanted. Raises UnreadableVideo: not a video, truncated, or no frame left.
    """
    is_whole = start_s is None and end_s is None
    with open_video(video) as (container, stream):
        index = stream.index_entries
        needed_bytes = max((entry.pos + entry.size for entry in index), default=0)
        if _size(video) < needed_bytes:
            raise UnreadableVideo(f"is truncated ({_size(video):,} bytes; its index needs {needed_bytes:,})")
        has_index = is_whole and 0 < stream.frames == len(index)
        head = tail = _first_times(container, stream, skip_frames + 1 if has_index else None)
        if has_index:
            tail = _times_from(container, stream, max(entry.timestamp for entry in index if entry.is_keyframe))
            if len(tail) < skip_frames + 2:
                head = tail = _times_from(container, stream, index[0].timestamp)
        base = float(_time_base(stream))
        if not is_whole:
            head = tail = _between(head, start_s, end_s, base)
        rate = float(stream.average_rate or 0)
        height, width = _shown_size(stream)
    usable = tail[: len(tail) - skip_frames]
    if len(head) <= skip_frames or not usable or usable[-1] < head[skip_frames]:
        raise UnreadableVideo(f"is too short: no frame is left after skipping {skip_frames} at both ends")
    last_frame_s = (usable[-1] - usable[-2]) * base if len(usable) > 1 else (1 / rate if rate else 0.0)
    return VideoFacts(UsableSpan(head[skip_frames] * base, usable[-1] * base, last_frame_s), height, width)


def usable_span(video: Video, skip_frames: int) -> UsableSpan:
    """As `look_at`: the span alone."""
    return look_at(video, skip_frames).span


def quarter_turns(video: Video) -> int:
    """By how many quarters a video is turned when it is shown, from its first frame. Raises UnreadableVideo."""
    with open_video(video) as (container, stream):
        for frame in container.decode(stream):
            return round(frame.rotation / 90) % 4
    raise UnreadableVideo("has no frame that decodes")


def _between(ticks: list[int], start_s: float | None, end_s: float | None, base: float) -> list[int]:
    """The ticks from `start_s` on and before `end_s`, seconds after the first."""
    if not ticks:
        return []
    first = ticks[0] + (start_s or 0.0) / base - 0.5
    last = math.inf if end_s is None else ticks[0] + end_s / base - 0.5
    kept = [tick for tick in ticks if first <= tick < last]
    if not kept:
        length = (ticks[-1] - ticks[0]) * base
        raise UnreadableVideo(
            f"has no frame from {start_s or 0:g} s to {end_s or length:g} s (it lasts {length:.2f} s)"
        )
    return kept


def _shown_size(stream: VideoStream) -> tuple[float, float]:
    """Height and width in square pixels, upright only if the file is stored upright."""
    return float(stream.height), stream.width * float(stream.sample_aspect_ratio or 1)


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
        base = _time_base(stream)
        wanted = np.minimum(wanted_times(start_s, fps, frame_count), end_s) / base
        window = _window(container, stream, wanted)
        times = np.array(sorted(each.shown_at for each in window if each.shown_at is not None))
        if len(times) == 0:
            raise UnreadableVideo(f"has no frames at {start_s:.2f} s")
        picks = times[nearest_frames(times, wanted)]
        missing = set(picks.tolist())
        frames = np.empty((frame_count, *size, 3), dtype=np.uint8)
        scaler = FrameScaler(size, stream.sample_aspect_ratio, place)
        for tick, frame in _decode(stream, window, missing):
            missing.discard(tick)
            frames[picks == tick] = scaler(frame)
        if missing:
            raise UnreadableVideo(f"does not decode at {min(missing) * base:.2f} s")
    return frames  # f h w c


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
                raise UnreadableVideo(f"is damaged at {(frame.pts or 0) * _time_base(stream):.2f} s")
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
    for each in _timed_packets(container, stream):
        window.append(each)
        if each.shown_at is not None and each.shown_at >= last:
            next_after = min(next_after, each.shown_at)
        if each.decoded_at >= next_after:
            break
    return window


def _timed_packets(container: InputContainer, stream: VideoStream) -> Iterator[TimedPacket]:
    """The stream's packets from the container's position on, in decoding order."""
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        shown_at = packet.pts if packet.pts is not None else packet.dts
        if shown_at is None:
            raise UnreadableVideo("has no timestamps")
        decoded_at = packet.dts if packet.dts is not None else shown_at
        yield TimedPacket(packet, decoded_at, None if packet.is_discard else shown_at)


def _first_times(container: InputContainer, stream: VideoStream, count: int | None) -> list[int]:
    """From the container's position on: the first `count` times of frames, ascending (all: None).

    Stops reading as soon as no earlier one can come; a few later times may be in the list.
    """
    times: list[int] = []
    for each in _timed_packets(container, stream):
        if each.shown_at is not None:
            times.append(each.shown_at)
        if count is not None and len(times) >= count and each.decoded_at >= sorted(times)[count - 1]:
            break
    return sorted(times)


def _times_from(container: InputContainer, stream: VideoStream, decoded_at: int) -> list[int]:
    """All times of frames, ascending, from the keyframe decoded at `decoded_at` to the end."""
    container.seek(decoded_at, stream=stream, backward=True)
    return _first_times(container, stream, None)


def _time_base(stream: VideoStream) -> float:
    assert stream.time_base is not None, "open_video has looked"
    return float(stream.time_base)
