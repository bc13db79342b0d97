"""What a video file holds, found out without decoding it: which part may be sampled, and how large it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from av.container import InputContainer
from av.video.stream import VideoStream

from cogvideox.data.reading import UnreadableVideo, Video, byte_count, open_video, time_base, timed_packets
from cogvideox.data.sampling import UsableSpan


@dataclass(frozen=True)
class VideoFacts:
    """What a file holds: the span to sample from, and the size of its pictures as they are shown (square pixels)."""

    span: UsableSpan
    height: float
    width: float


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
        if byte_count(video) < needed_bytes:
            raise UnreadableVideo(f"is truncated ({byte_count(video):,} bytes; its index needs {needed_bytes:,})")
        has_index = is_whole and 0 < stream.frames == len(index)
        head = tail = _first_times(container, stream, skip_frames + 1 if has_index else None)
        if has_index:
            tail = _times_from(container, stream, max(entry.timestamp for entry in index if entry.is_keyframe))
            if len(tail) < skip_frames + 2:
                head = tail = _times_from(container, stream, index[0].timestamp)
        base = time_base(stream)
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


def _first_times(container: InputContainer, stream: VideoStream, count: int | None) -> list[int]:
    """From the container's position on: the first `count` times of frames, ascending (all: None).

    Stops reading as soon as no earlier one can come; a few later times may be in the list.
    """
    times: list[int] = []
    for each in timed_packets(container, stream):
        if each.shown_at is not None:
            times.append(each.shown_at)
        if count is not None and len(times) >= count and each.decoded_at >= sorted(times)[count - 1]:
            break
    return sorted(times)


def _times_from(container: InputContainer, stream: VideoStream, decoded_at: int) -> list[int]:
    """All times of frames, ascending, from the keyframe decoded at `decoded_at` to the end."""
    container.seek(decoded_at, stream=stream, backward=True)
    return _first_times(container, stream, None)
