"""Which frames are picked from sources of many frame rates, as a table: `python -m tests.data.frame_table`.

The videos carry painted frame numbers. What a data set reads of them is compared with a brute force over the times that
were written, which knows nothing of the reader.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from cogvideox.data.clips import Choices, Clip, ClipSize, look, read_clip
from cogvideox.data.records import Record
from tests.data.painted import HEIGHT, WIDTH, even_times, numbers_in, write_painted

SECONDS = 4
RATES: list[Fraction | int] = [8, Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, 60]
WANTED_FPS = (8, 16)
RANDOM_DRAWS = 4
# The times that a file keeps are rounded to 1/90,000 s.
ROUNDING_S = 2e-5


@dataclass(frozen=True)
class Sampling:
    """How a sample is taken: frames skipped at both ends, the part that counts (s), and where its window lies."""

    name: str
    skip: int = 3
    start_s: float | None = None
    end_s: float | None = None
    draws: tuple[float, ...] = (0.0,)  # 0: as early as possible, towards 1: as late


SAMPLINGS = (
    Sampling("first"),
    Sampling("random", draws=tuple(np.random.default_rng(0).random(RANDOM_DRAWS).tolist())),
    Sampling("1.0-3.0 s", skip=0, start_s=1.0, end_s=3.0),
)


@dataclass(frozen=True)
class Row:
    """One source, sampled one way. Errors are in source frames, `gap_s` long on average."""

    source: str
    wanted_fps: int
    sampling: str
    frames: int
    mean_error: float
    worst_error: float
    not_nearest: int  # frames picked though another one was nearer
    outside: int  # frames picked though they are skipped or not in the part that counts

    def __str__(self) -> str:
        errors = f"{self.mean_error:10.3f} {self.worst_error:11.3f}"
        faults = f"{self.not_nearest:11d} {self.outside:7d}"
        return f"{self.source:>8} {self.wanted_fps:6d}  {self.sampling:<9} {self.frames:6d} {errors} {faults}"


HEADER = "  source wanted  window    frames mean error worst error not nearest outside   (errors in source frames)"


def source_times() -> dict[str, list[float]]:
    """The times (s) of every source's frames, by name; the last has gaps between 10 and 120 ms."""
    times = {f"{float(rate):.3f}": even_times(rate, int(SECONDS * rate)) for rate in RATES}
    gaps = np.random.default_rng(0).uniform(0.010, 0.120, 70)
    return times | {"variable": [0.0, *np.cumsum(gaps).tolist()]}


def brute_force_part(times: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The numbers of the frames that count."""
    start, end = sampling.start_s or 0.0, np.inf if sampling.end_s is None else sampling.end_s
    numbers = np.flatnonzero((times >= times[0] + start - ROUNDING_S) & (times < times[0] + end - ROUNDING_S))
    return numbers[sampling.skip : len(numbers) - sampling.skip]


def brute_force_start(times: np.ndarray, part: np.ndarray, fps: int, frames: int, draw: float) -> float:
    """Where a window of `frames` starts: the last frame that can be wanted is half a source frame late at most."""
    first, last = times[part[0]], times[part[-1]]
    possible = first + np.arange(1000) / fps <= last + (last - times[part[-2]]) / 2 + ROUNDING_S
    return float(first + draw * (possible.sum() - frames) / fps)


def row_of(source: str, path: Path, file_times: Sequence[float], fps: int, sampling: Sampling) -> Row:
    """Read a source through a data set's own functions, and hold every frame against the brute force."""
    times, size = np.array(file_times), ClipSize(2 * fps + 1, HEIGHT, WIDTH)
    part = brute_force_part(times, sampling)
    record = Record(path, source, "numbers", start_s=sampling.start_s, end_s=sampling.end_s)
    clip = look(record, [size], fps, sampling.skip, max_pad_fraction=0.9)
    assert isinstance(clip, Clip), f"{source} at {fps} fps: {clip}"
    picked, errors, nearest = [], [], []
    for draw in sampling.draws:
        numbers = numbers_in(read_clip(clip, size, fps, Choices(window=draw), 0.0, timeout_s=60))
        wanted = brute_force_start(times, part, fps, clip.frame_count, draw) + np.arange(clip.frame_count) / fps
        distances = np.abs(times[None] - wanted[:, None])
        picked += numbers
        errors += distances[np.arange(len(numbers)), numbers].tolist()
        nearest += distances.min(axis=1).tolist()
    gap_s = float(np.diff(times).mean())
    return Row(
        source,
        fps,
        sampling.name,
        len(picked),
        mean_error=float(np.mean(errors)) / gap_s,
        worst_error=max(errors) / gap_s,
        not_nearest=sum(error > best + ROUNDING_S for error, best in zip(errors, nearest, strict=True)),
        outside=len([number for number in picked if number not in part]),
    )


def frame_table(folder: Path) -> Iterator[Row]:
    """A row for every source, wanted rate and sampling; the videos are written into `folder`."""
    for source, times in source_times().items():
        path = folder / f"{source}.mp4"
        file_times = write_painted(path, times)
        for fps in WANTED_FPS:
            for sampling in SAMPLINGS:
                yield row_of(source, path, file_times, fps, sampling)


def main() -> int:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="frame-table-") as folder:
        sys.stdout.write("\n".join([HEADER, *map(str, frame_table(Path(folder)))]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
