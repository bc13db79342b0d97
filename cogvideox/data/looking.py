"""What a video file holds, found out without decoding it: which part may be sampled, and how large it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from cogvideox.data.once import Once
from cogvideox.data.reading import (
    MOST_PIXELS,
    UnreadableVideo,
    Video,
    byte_count,
    open_video,
    time_base,
    timed_packets,
)
from cogvideox.data.sampling import UsableSpan

MOST_ASPECT = 32
"""A picture's longer side over its shorter one: cropped, it would be a sliver, for which gigabytes may be scaled."""

TIMES_KEPT = 2**24
"""Of files of which parts are wanted: 128 MiB."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a file holds: the span to sample from, and the size of its pictures as they are shown (square pixels)."""

    span: UsableSpan
    height: float
    width: float


@dataclass(frozen=True)
class _Seen:
    """The times of frames at a file's beginning and at its end, or twice all: int64, ascending, ticks of `base` s."""

    head: np.ndarray
    tail: np.ndarray
    base: float
    rate: float
    height: float
    width: float


def look_at(video: Video, skip_frames: int, start_s: float | None = None, end_s: float | None = None) -> VideoFacts:
    """Look at a file without decoding: the span left after ignoring `skip_frames` frames at both ends, of the part
    between `start_s` and `end_s` (seconds from the first frame; None: the whole).

    Reads the index, and the packets of both ends; all packets where the container has no index (fragmented mp4) or a
    part of it is wanted, once for all parts of a file. Raises UnreadableVideo: not a video, truncated, without a
    picture size that can be used, or no frame left.
    """
    if start_s is None and end_s is None:
        seen = _see(video, skip_frames + 1)
    else:
        whole = _see(video, None) if isinstance(video, bytes) else _WHOLE_FILES.of(video)
        part = _between(whole.tail, start_s, end_s, whole.base)
        seen = replace(whole, head=part, tail=part)
    head, usable = seen.head, seen.tail[: len(seen.tail) - skip_frames]
    if len(head) <= skip_frames or not len(usable) or usable[-1] < head[skip_frames]:
        raise UnreadableVideo(f"is too short: no frame is left after skipping {skip_frames} at both ends")
    first, last = int(head[skip_frames]), int(usable[-1])
    last_frame_s = (last - int(usable[-2])) * seen.base if len(usable) > 1 else (1 / seen.rate if seen.rate else 0.0)
    return VideoFacts(UsableSpan(first * seen.base, last * seen.base, last_frame_s), seen.height, seen.width)


def usable_span(video: Video, skip_frames: int) -> UsableSpan:
    """As `look_at`: the span alone."""
    return look_at(video, skip_frames).span


def quarter_turns(video: Path) -> int:
    """By how many quarters a video is turned when it is shown, from its first frame. Raises UnreadableVideo."""
    return _TURNS.of(video)


def fault_of_size(height: float, width: float) -> str | None:
    """Why a picture that is shown so large cannot be sampled."""
    if not min(height, width) > 0:
        return "has no picture size"
    if max(height, width) > MOST_ASPECT * min(height, width):
        return f"is {width:g} wide and {height:g} high: one side is more than {MOST_ASPECT} times the other"
    if height * width > MOST_PIXELS:
        return f"is {width:g} wide and {height:g} high: more than {MOST_PIXELS:,} pixels"
    return None


def _see(video: Video, count: int | None) -> _Seen:
    """At least the first and the last `count` times of frames, where the container has an index; all: None."""
    with open_video(video) as (container, stream):
        index = stream.index_entries
        needed_bytes = max((entry.pos + entry.size for entry in index), default=0)
        if byte_count(video) < needed_bytes:
            raise UnreadableVideo(f"is truncated ({byte_count(video):,} bytes; its index needs {needed_bytes:,})")
        height, width = _shown_size(stream)
        if fault := fault_of_size(height, width):
            raise UnreadableVideo(fault)
        keyframes = [entry.timestamp for entry in index if entry.is_keyframe]
        if len(index) and not keyframes:
            raise UnreadableVideo("has an index without any keyframe: no place in it can be found")
        if count is None or not keyframes or stream.frames != len(index):
            head = tail = _first_times(container, stream, None)
        else:
            head = _first_times(container, stream, count)
            tail = _times_from(container, stream, max(keyframes))
            if len(tail) < count + 1:
                head = tail = _times_from(container, stream, index[0].timestamp)
        return _Seen(head, tail, time_base(stream), float(stream.average_rate or 0), height, width)


def _turns(video: Path) -> int:
    with open_video(video) as (container, stream):
        for frame in container.decode(stream):
            return round(frame.rotation / 90) % 4
    raise UnreadableVideo("has no frame that decodes")


# A manifest may have thousands of parts of one film, each of which would read the whole of it.
_WHOLE_FILES = Once(lambda path: _see(path, None), lambda seen: len(seen.tail), TIMES_KEPT)
_TURNS = Once(_turns, lambda _: 0, TIMES_KEPT)


def _between(ticks: np.ndarray, start_s: float | None, end_s: float | None, base: float) -> np.ndarray:
    """The ticks from `start_s` on and before `end_s`, seconds after the first."""
    if not len(ticks):
        return ticks
    first = int(ticks[0]) + (start_s or 0.0) / base - 0.5
    last = math.inf if end_s is None else int(ticks[0]) + end_s / base - 0.5
    kept = ticks[np.searchsorted(ticks, first) : np.searchsorted(ticks, last)]
    if not len(kept):
        length = int(ticks[-1] - ticks[0]) * base
        raise UnreadableVideo(
            f"has no frame from {start_s or 0:g} s to {end_s or length:g} s (it lasts {length:.2f} s)"
        )
    return kept


def _shown_size(stream: VideoStream) -> tuple[float, float]:
    """Height and width in square pixels, upright only if the file is stored upright."""
    return float(stream.height), stream.width * float(stream.sample_aspect_ratio or 1)


def _first_times(container: InputContainer, stream: VideoStream, count: int | None) -> np.ndarray:
    """From the container's position on: the first `count` times of frames, ascending (all: None).

    Stops reading as soon as no earlier one can come; a few later times may be in the list.
    """
    times: list[int] = []
    for each in timed_packets(container, stream):
        if each.shown_at is not None:
            times.append(each.shown_at)
        if count is not None and len(times) >= count and each.decoded_at >= sorted(times)[count - 1]:
            break
    return np.array(sorted(times), dtype=np.int64)


def _times_from(container: InputContainer, stream: VideoStream, decoded_at: int) -> np.ndarray:
    """All times of frames, ascending, from the keyframe decoded at `decoded_at` to the end."""
    container.seek(decoded_at, stream=stream, backward=True)
    return _first_times(container, stream, None)
