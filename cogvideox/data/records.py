"""What a data set consists of: files, each with a caption, before any of them is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogvideox.data.folder import UnusableCaption, find_videos, read_caption
from cogvideox.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LAYOUT = "a data folder holds videos/NAME.mp4 and labels/NAME.txt, one caption a file"


@dataclass(frozen=True)
class Record:
    """A video or an image to train on. `name` is what messages call it; where `caption` is None, `fault` says why.

    Only what lies between `start_s` and `end_s` (seconds; None: its beginning, its end) counts. `weight` is how often
    it comes in an epoch, relative to the others.
    """

    path: Path
    name: str
    caption: str | None
    fault: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    weight: float = 1.0


def find_records(place: Path, format: str = "auto") -> list[Record]:  # noqa: ARG001
    """The records of a data folder. Raises UserError: it is none, or holds no video."""
    if not place.is_dir():
        what = "is not a folder" if place.exists() else "does not exist"
        raise UserError(f"the data folder {place} {what} (args.train_data, args.valid_data): {LAYOUT}")
    videos = find_videos(place)
    if not videos:
        raise UserError(f"the data folder {place} holds no .mp4 file (subfolders too): {LAYOUT}")
    return [_record(place, video) for video in videos]


def _record(place: Path, video: Path) -> Record:
    try:
        return Record(place / video, video.as_posix(), read_caption(place, video))
    except UnusableCaption as error:
        return Record(place / video, video.as_posix(), None, str(error))
