"""Which clips a data folder holds, and the caption of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

VIDEO_SUFFIX = ".mp4"


class UnusableCaption(Exception):
    """A clip's caption cannot be used; the text is the reason."""


def find_videos(folder: Path) -> list[Path]:
    """All mp4 files under `folder`, relative to it, sorted.

    Links to folders are followed, each real folder once, so that loops end. Hidden files are left out: they are the
    remains of other programs (`._clip.mp4`), not clips.
    """
    return sorted(_walk(folder), key=lambda path: path.as_posix())


def _walk(folder: Path) -> Iterator[Path]:
    visited: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in files:
            if name.lower().endswith(VIDEO_SUFFIX) and not name.startswith("."):
                yield (Path(root) / name).relative_to(folder)


def caption_places(folder: Path, video: PurePath) -> list[Path]:
    """Where the caption of `video` (relative to `folder`) may be, first choice first.

    `videos/a/b.mp4` → `labels/a/b.txt`, or `videos/a/b.txt` beside the video. A folder called `videos` higher up than
    the data folder never counts, unless it is the data folder itself: then its sibling `labels` does.
    """
    text = video.with_suffix(".txt")
    places = []
    parts = text.parts
    for position in reversed([i for i, part in enumerate(parts[:-1]) if part == "videos"]):
        places.append(folder.joinpath(*parts[:position], "labels", *parts[position + 1 :]))
    if folder.name == "videos":
        places.append(folder.parent / "labels" / text)
    places.append(folder / text)
    return places


def read_caption(folder: Path, video: PurePath) -> str:
    """The first line that is not blank of the clip's caption file, UTF-8. Raises UnusableCaption.

    One line, as in the reference: later lines are where people keep tags and notes.
    """
    places = caption_places(folder, video)
    for place in places:
        try:
            text = place.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise UnusableCaption(f"caption {place} is not UTF-8 (byte {error.start})") from error
        except OSError as error:
            raise UnusableCaption(f"caption {place} cannot be read ({error.strerror})") from error
        line = next((stripped for line in text.splitlines() if (stripped := line.strip())), None)
        if line is None:
            raise UnusableCaption(f"caption {place} is empty")
        return line
    raise UnusableCaption(f"caption missing (no {places[0]})")
