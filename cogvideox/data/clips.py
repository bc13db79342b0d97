"""A clip of a data set: looked at once without decoding, then read as often as it is drawn."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from cogvideox.data.checking import LeftOut
from cogvideox.data.looking import VideoFacts, look_at, quarter_turns
from cogvideox.data.pictures import read_still
from cogvideox.data.reading import UnreadableVideo, read_frames
from cogvideox.data.records import IMAGE_SUFFIXES, Record
from cogvideox.data.sampling import UsableSpan, largest_clip_length, shortest_clip_length

T = TypeVar("T")

# Of a clip's aspect to a size's; nearer than this they count as the same.
SAME_ASPECT = 1.02


class StillReading(UnreadableVideo):
    """Nothing came in time; `thread` goes on waiting for it."""

    def __init__(self, reason: str, thread: threading.Thread) -> None:
        super().__init__(reason)
        self.thread = thread


@dataclass(frozen=True)
class ClipSize:
    """What a sample measures: frames (4k+1), height and width in pixels."""

    frames: int
    height: int
    width: int

    @property
    def picture(self) -> tuple[int, int]:
        return self.height, self.width


@dataclass(frozen=True)
class Choices:
    """One sample's random choices, each in [0, 1): place of its window, of its crop from above and left, mirrored."""

    window: float = 0.0
    top: float = 0.5
    left: float = 0.5
    mirror: float = 1.0

    @classmethod
    def of(cls, rng: np.random.Generator, window: str, crop: str) -> Choices:
        """What `rng` makes of `window` and `crop`, where they are "random".

        All choices are drawn whether or not they are used, so that one option does not move another's draws.
        """
        start, top, left, mirror = rng.random(4).tolist()
        if crop != "random":
            top, left = 0.5, 0.5
        return cls(start if window == "random" else 0.0, top, left, mirror)

    def mirrored(self, frames: np.ndarray, probability: float) -> np.ndarray:
        """Frames (F, H, W, 3), left and right exchanged with `probability`."""
        return np.ascontiguousarray(frames[:, :, ::-1]) if self.mirror < probability else frames


@dataclass(frozen=True, slots=True)
class Clip:
    """A checked video or image: what may be sampled of it, and as what."""

    record: Record
    span: UsableSpan
    bucket: int  # place of its size in the data set's list
    frame_count: int  # real frames in a sample
    available: int  # frames at the wanted rate

    def __str__(self) -> str:
        return self.record.name

    @property
    def caption(self) -> str:
        return self.record.caption or ""

    @property
    def video(self) -> Path:
        return self.record.path

    def start_s(self, window: float, fps: float) -> float:
        """Where a sample starts: `window` of the way from the first possible place to the last."""
        return self.span.start_s + window * (self.available - self.frame_count) / fps


def look(
    record: Record, sizes: Sequence[ClipSize], fps: float, skip_frames: int, max_pad_fraction: float
) -> Clip | LeftOut:
    """Look at a record's file without decoding it, and give it the size that it fits best."""
    try:
        facts = look_at_record(record, skip_frames, needs_upright=len(sizes) > 1)
    except UnreadableVideo as error:
        return LeftOut(Path(record.name), "not readable", str(error))
    return fitted(record, facts, sizes, fps, skip_frames, max_pad_fraction)


def fitted(
    record: Record,
    facts: VideoFacts,
    sizes: Sequence[ClipSize],
    fps: float,
    skip_frames: int,
    max_pad_fraction: float,
) -> Clip | LeftOut:
    """The clip that a record with these facts gives, of the size that it fits best; or that it is too short for all."""
    available = facts.span.frame_count(fps)
    bucket = nearest_size(facts, available, sizes, max_pad_fraction)
    if bucket is None:
        needed = min(shortest_clip_length(size.frames, max_pad_fraction) for size in sizes)
        reason = f"is too short: {available} frames at {fps} fps without {skip_frames} at both ends"
        return LeftOut(Path(record.name), "too short", f"{reason}; at least {needed} are needed")
    frame_count = min(sizes[bucket].frames, largest_clip_length(available))
    return Clip(record, facts.span, bucket, frame_count, available)


def look_at_record(record: Record, skip_frames: int, needs_upright: bool = True) -> VideoFacts:
    """The facts of a record's file; of an image those of a video of one frame. Raises UnreadableVideo.

    `needs_upright`: height and width as it is shown, for which a frame has to be decoded.
    """
    if record.path.suffix.lower() in IMAGE_SUFFIXES:
        height, width = read_still(record.path).shape[:2]
        return VideoFacts(UsableSpan(0.0, 0.0, 0.0), height, width)
    facts = look_at(record.path, skip_frames, record.start_s, record.end_s)
    if needs_upright and quarter_turns(record.path) % 2:
        return replace(facts, height=facts.width, width=facts.height)
    return facts


def nearest_size(facts: VideoFacts, available: int, sizes: Sequence[ClipSize], max_pad_fraction: float) -> int | None:
    """Of the sizes that `available` frames fill, the one of the nearest aspect; of those, of the nearest length and
    then area. None: they fill none.
    """

    def distance(place: int) -> tuple[float, int, float]:
        size = sizes[place]
        aspect = abs(math.log((size.width / size.height) / (facts.width / facts.height)))
        area = abs(math.log(size.height * size.width / (facts.height * facts.width)))
        return (0.0 if aspect < math.log(SAME_ASPECT) else aspect), abs(size.frames - available), area

    filled = [
        place
        for place, size in enumerate(sizes)
        if largest_clip_length(available) >= shortest_clip_length(size.frames, max_pad_fraction)
    ]
    return min(filled, key=distance, default=None)


def read_clip(
    clip: Clip, size: ClipSize, fps: float, choices: Choices, mirror_probability: float, timeout_s: float
) -> np.ndarray:
    """The frames of one sample → uint8 (F, H, W, 3), F of them real. Raises UnreadableVideo, also for lack of time."""
    place = (choices.top, choices.left)

    def read() -> np.ndarray:
        if clip.video.suffix.lower() in IMAGE_SUFFIXES:
            return read_still(clip.video, size.picture, place)[None]
        start = clip.start_s(choices.window, fps)
        return read_frames(clip.video, start, fps, clip.frame_count, size.picture, place, clip.span.end_s)

    return choices.mirrored(within(timeout_s, read), mirror_probability)


def within(seconds: float, function: Callable[[], T]) -> T:
    """What `function` gives or raises; StillReading where it takes longer.

    It runs in a daemon thread: one that hangs in a dead file system stays behind, and does not hold up the exit.
    """
    answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((function(), None))
        except Exception as error:
            answers.put((None, error))

    thread = threading.Thread(target=work, name="read-clip", daemon=True)
    thread.start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise StillReading(f"gave no frames within {seconds:g} s", thread) from None
    if error is not None:
        try:
            raise error
        finally:
            # Its traceback has this frame, which would keep it and the open decoder. A forked process would hang where
            # it frees that decoder, whose threads it has not.
            error = None
    return answer  # type: ignore[return-value]
