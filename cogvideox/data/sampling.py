"""Which frames make a clip: the wanted times, the frames nearest to them, and how many of them there are.

Times are in seconds on the video's own clock; nothing here reads a file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEMPORAL_COMPRESSION = 4
"""The VAE takes 4k+1 frames to k+1 latents, so that a clip has 4k+1 frames."""


@dataclass(frozen=True, slots=True)
class UsableSpan:
    """The part of a video that may be sampled: its first and last frame's times, and how long the last frame lasts."""

    start_s: float
    end_s: float
    last_frame_s: float

    def frame_count(self, fps: float) -> int:
        """Frames that sampling at `fps` gives. The last wanted time may pass the last frame by half its duration."""
        return int((self.end_s - self.start_s + self.last_frame_s / 2) * fps + 1e-6) + 1


def largest_clip_length(frame_count: int) -> int:
    """The largest 4k+1 that is at most `frame_count` (≥ 1)."""
    return (frame_count - 1) // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION + 1


def is_clip_length(frame_count: int) -> bool:
    """Whether `frame_count` is 4k+1."""
    return frame_count >= 1 and frame_count % TEMPORAL_COMPRESSION == 1


def shortest_clip_length(max_num_frames: int, max_pad_fraction: float) -> int:
    """The smallest 4k+1 of real frames with which padding to `max_num_frames` stays within `max_pad_fraction` of it."""
    fewest_real = max_num_frames * (1.0 - max_pad_fraction)
    k = max(0, int(np.ceil((fewest_real - 1) / TEMPORAL_COMPRESSION - 1e-9)))
    return k * TEMPORAL_COMPRESSION + 1


def wanted_times(start_s: float, fps: float, frame_count: int) -> np.ndarray:
    """The times (seconds, float64) that a clip of `frame_count` frames at `fps` shows."""
    return start_s + np.arange(frame_count) / fps


def nearest_frames(frame_times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each wanted time the index of the nearest of the ascending `frame_times`; the earlier one of two as near."""
    right = np.searchsorted(frame_times, wanted).clip(1, max(1, len(frame_times) - 1))
    right = np.minimum(right, len(frame_times) - 1)
    left = np.maximum(right - 1, 0)
    is_left = wanted - frame_times[left] <= frame_times[right] - wanted + 1e-9
    return np.where(is_left, left, right)
