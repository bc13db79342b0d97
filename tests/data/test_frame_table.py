"""The frames picked are the nearest ones, whatever the source's frame rate; the table shows it when a test fails.

The numbers painted into the videos are held against a brute force over all times (frame_table.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cogvideox.data.clips import Choices, Clip, ClipSize, look, read_clip
from cogvideox.data.records import Record
from tests.data.frame_table import HEADER, RATES, SAMPLINGS, WANTED_FPS, Row, Sampling, frame_table, row_of
from tests.data.painted import HEIGHT, WIDTH, even_times, numbers_in, write_painted


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return list(frame_table(tmp_path_factory.mktemp("sources")))


def shown(rows: Sequence[Row]) -> str:
    return "\n".join(["", HEADER, *map(str, rows)])


def test_every_source_rate_and_window_is_in_the_table(table: list[Row]) -> None:
    """Golden values: nine sources at two wanted rates, sampled three ways, each with frames in it."""
    assert len(table) == (len(RATES) + 1) * len(WANTED_FPS) * len(SAMPLINGS) == 54
    assert len({(row.source, row.wanted_fps, row.sampling) for row in table}) == 54
    assert all(row.frames >= 13 for row in table), shown(table)


def test_picked_frames_are_the_nearest_of_those_that_count(table: list[Row]) -> None:
    """Identity: no frame of the source is nearer to the wanted time, none is picked that is skipped or cut away."""
    wrong = [row for row in table if row.not_nearest or row.outside]
    assert not wrong, shown(wrong)


def test_mean_error_is_at_most_half_a_source_frame(table: list[Row]) -> None:
    """Identity: so it is for nearest frames, and at a constant rate for each single one."""
    wrong = [row for row in table if row.mean_error > 0.5]
    wrong += [row for row in table if row.source != "variable" and row.worst_error > 0.5 + 1e-3]
    assert not wrong, shown(wrong)


def test_a_stride_of_whole_frames_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden value: 30 fps read with a stride of three frames (10 fps for a wanted 8) is neither near nor nearest."""
    times = write_painted(tmp_path / "30.mp4", even_times(30, 120))

    def strided(clip: Clip, size: ClipSize, fps: int, *rest: object, **named: object) -> np.ndarray:
        return read_clip(clip, size, 10, *rest, **named)  # type: ignore[arg-type]

    right = row_of("30", tmp_path / "30.mp4", times, 8, Sampling("first"))
    monkeypatch.setattr("tests.data.frame_table.read_clip", strided)
    row = row_of("30", tmp_path / "30.mp4", times, 8, Sampling("first"))
    assert (right.not_nearest, right.outside) == (0, 0)
    assert row.mean_error > 5 and row.not_nearest > 10, shown([right, row])


def test_a_window_never_passes_the_end_that_was_asked_for(tmp_path: Path) -> None:
    """Identity: frames before `end_s` alone, where the gaps before it are long and those after it short.

    The last wanted time may be late by half the last frame's gap: then the frame after the end can be the nearer one.
    """
    times = [0.1 * number for number in range(20)] + [1.9 + 0.005 * number for number in range(1, 30)]
    file_times = np.array(write_painted(tmp_path / "clip.mp4", times))
    size = ClipSize(33, HEIGHT, WIDTH)
    clip = look(Record(tmp_path / "clip.mp4", "clip", "numbers", end_s=1.903), [size], 16, 0, max_pad_fraction=0.5)
    assert isinstance(clip, Clip)
    picked = numbers_in(read_clip(clip, size, 16, Choices(window=0.999), 0.0, timeout_s=60))
    assert file_times[max(picked)] < 1.903, f"{picked} shown at {file_times[picked].tolist()}"
