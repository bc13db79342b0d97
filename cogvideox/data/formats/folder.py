"""The folder form: videos/NAME.mp4 with labels/NAME.txt, nested as one likes."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath

from cogvideox.data.checking import Unanswered, answer_all
from cogvideox.data.formats.record import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Record, is_clip
from cogvideox.errors import UserError

_logger = logging.getLogger(__name__)

CAPTION_THREADS = 32
LARGEST_CAPTION = 1 << 20
"""Bytes of a caption file that are read."""

CLIP_FOLDERS = ("videos", "images")
# Files that belong beside clips and are none; what ends otherwise may be a clip in a form that is not read.
COMPANION_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md", ".yaml", ".yml")
SUFFIXES = ", ".join((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))


class UnusableCaption(Exception):
    """A clip's caption cannot be used; the text is the reason."""


def read_folder(place: Path) -> list[Record]:
    """The records of a folder of clips. Raises UserError: it holds none."""
    clips, others = find_clips(place)
    if others:
        count, endings = sum(others.values()), ", ".join(f"{n} {ending}" for ending, n in others.most_common())
        text = "%s: left out %d files that do not end like a video or an image (%s): %s"
        _logger.warning(text, place, count, SUFFIXES, endings)
    if not clips:
        raise UserError(
            f"the data folder {place} holds no {SUFFIXES} file (subfolders too): correct the path, or fill it"
        )
    # Of a million small files on a network storage each takes as long as its way there and back.
    records = answer_all(partial(_record, place), clips, threads=CAPTION_THREADS, doing="read the captions of")
    return [_without_answer(place, each.item) if isinstance(each, Unanswered) else each for each in records]


def find_clips(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All videos and images under `folder`, relative to it, sorted; and how many other files there are, by ending."""
    clips: list[Path] = []
    others: Counter[str] = Counter()
    for path in walk(folder):
        if is_clip(path):
            clips.append(path)
        elif path.suffix.lower() not in COMPANION_SUFFIXES:
            others[path.suffix.lower() or "without an ending"] += 1
    return sorted(clips, key=lambda path: path.as_posix()), others


def walk(folder: Path) -> Iterator[Path]:
    """Every file under `folder`, relative to it.

    Links to folders are followed, each real folder once, so that loops end. Hidden files and folders are left out:
    they are the remains of other programs (`._clip.mp4`, `.cache`), not clips.
    """
    visited: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, onerror=_tell_of_unreadable, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder)


def _tell_of_unreadable(error: OSError) -> None:
    _logger.warning("%s cannot be read (%s): what it holds is left out", error.filename, error.strerror)


def caption_places(folder: Path, clip: PurePath) -> list[Path]:
    """Where the caption of `clip` (relative to `folder`) may be, first choice first.

    `videos/a/b.mp4` → `labels/a/b.txt`, or `videos/a/b.txt` beside the video; `images` as `videos`. A folder called
    `videos` higher up than the data folder never counts, unless it is the data folder itself: then its sibling
    `labels` does.
    """
    text = clip.with_suffix(".txt")
    places = []
    parts = text.parts
    for position in reversed([i for i, part in enumerate(parts[:-1]) if part in CLIP_FOLDERS]):
        places.append(folder.joinpath(*parts[:position], "labels", *parts[position + 1 :]))
    if folder.name in CLIP_FOLDERS:
        places.append(folder.parent / "labels" / text)
    places.append(folder / text)
    return places


def read_caption(folder: Path, clip: PurePath) -> str:
    """The first line that is not blank of the clip's caption file, UTF-8. Raises UnusableCaption.

    One line, as in the reference: later lines are where people keep tags and notes.
    """
    places = caption_places(folder, clip)
    for place in places:
        try:
            text = _start_of(place).decode("utf-8-sig")
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


def _start_of(path: Path) -> bytes:
    """As many whole lines as a caption may take. Raises UnusableCaption: no plain file, or no line that ends in there.

    A link in a folder that came from elsewhere may lead to a device without an end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnusableCaption(f"caption {path} is no plain file")
    with path.open("rb") as file:
        start = file.read(LARGEST_CAPTION + 1)
    if len(start) <= LARGEST_CAPTION:
        return start
    whole, newline, _ = start.rpartition(b"\n")
    if not newline:
        raise UnusableCaption(f"caption {path} has a line of more than {LARGEST_CAPTION:,} bytes")
    return whole


def _without_answer(place: Path, clip: Path) -> Record:
    fault = "storage gave no answer about its caption in time"
    return Record(place / clip, clip.as_posix(), None, fault, kind="not readable")


def _record(place: Path, clip: Path) -> Record:
    try:
        return Record(place / clip, clip.as_posix(), read_caption(place, clip))
    except UnusableCaption as error:
        return Record(place / clip, clip.as_posix(), None, str(error))
