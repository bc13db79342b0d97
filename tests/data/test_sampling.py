"""Frame counts and nearest frames against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from cogvideox.data.sampling import (
    UsableSpan,
    is_clip_length,
    largest_clip_length,
    nearest_frames,
    shortest_clip_length,
    wanted_times,
)


def test_clip_lengths_are_4k_plus_1() -> None:
    """Identity: the largest 4k+1 up to n, by search."""
    for n in range(1, 200):
        assert largest_clip_length(n) == max(m for m in range(1, n + 1) if m % 4 == 1)
        assert is_clip_length(n) == (n % 4 == 1)
    assert not is_clip_length(0) and not is_clip_length(-3)


def test_padding_never_exceeds_its_fraction() -> None:
    """Identity: the smallest 4k+1 whose padding is within the fraction, by search."""
    for longest in (1, 5, 9, 49, 81):
        for fraction in (0.0, 0.1, 0.25, 0.5, 0.75, 0.99):
            allowed = [m for m in range(1, longest + 1, 4) if (longest - m) / longest <= fraction + 1e-12]
            assert shortest_clip_length(longest, fraction) == min(allowed)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_nearest_frames(count: int) -> None:
    """Identity: argmin of the distance over all frames, irregular times, wanted times beyond both ends too."""
    random = np.random.default_rng(count)
    times = np.sort(random.uniform(0, 5, count))
    wanted = random.uniform(-1, 6, 100)
    assert (nearest_frames(times, wanted) == np.abs(times[None] - wanted[:, None]).argmin(axis=1)).all()


def test_ties_take_the_earlier_frame() -> None:
    """Golden value: 8 fps wanted at 16, every second time falls between two frames."""
    picked = nearest_frames(np.arange(4) / 8, wanted_times(0.0, 16, 7))
    assert picked.tolist() == [0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("source_fps", [8, 24, 30000 / 1001, 60])
@pytest.mark.parametrize("fps", [8, 16])
def test_frame_count_stays_within_half_a_source_frame(source_fps: float, fps: int) -> None:
    """Identity: the last wanted time is at most half a source frame late, and one more would be later than that."""
    end_s, gap_s = 99 / source_fps, 1 / source_fps
    count = UsableSpan(0.0, end_s, gap_s).frame_count(fps)
    assert (count - 1) / fps <= end_s + gap_s / 2 + 1e-5 < count / fps + 1e-5
