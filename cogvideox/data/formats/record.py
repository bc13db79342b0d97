"""What every form of data comes down to: a file with its caption."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

WITHOUT_CAPTION = "without caption"
BAD_ROW = "in a bad row"


@dataclass(frozen=True, slots=True)
class Record:
    """A video or an image to train on. `name` is what messages call it; where `caption` is None, `fault` says why.

    Only what lies between `start_s` and `end_s` (seconds; None: its beginning, its end) counts. `weight` is how often
    it comes in an epoch, relative to the others. `kind` groups faults in reports; one other than WITHOUT_CAPTION means
    that the record cannot be used at all.
    """

    path: Path
    name: str
    caption: str | None
    fault: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    weight: float = 1.0
    kind: str = WITHOUT_CAPTION

    def __str__(self) -> str:
        return self.name


def is_clip(path: PurePath) -> bool:
    """Whether a file's ending is that of a video or an image."""
    return path.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES
