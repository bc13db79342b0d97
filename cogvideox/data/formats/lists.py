"""The lists form: line n of prompts.txt is the caption of the file in line n of videos.txt."""

from __future__ import annotations

import logging
from pathlib import Path

from cogvideox.data.formats.metadata import tell_of_absolute
from cogvideox.data.formats.record import Record
from cogvideox.data.formats.rows import Row, record_of
from cogvideox.errors import UserError

_logger = logging.getLogger(__name__)

FILE_LIST = "videos.txt"
CAPTION_LISTS = ("prompts.txt", "captions.txt")
NAMES = f"{FILE_LIST} with {' or '.join(CAPTION_LISTS)}"


def read_lists(place: Path) -> list[Record]:
    """The records of two lists. Raises UserError: one is missing, not readable, or longer than the other."""
    captions_in = caption_lists_in(place)
    if not captions_in or not (place / FILE_LIST).is_file():
        raise UserError(f"the data folder {place} holds no {NAMES}: write them, or set data.params.format")
    if captions_in[1:]:
        _logger.warning("%s: %s is read, %s not", place, captions_in[0].name, captions_in[1].name)
    files, captions = _lines(place / FILE_LIST), _lines(captions_in[0])
    # Blank lines after the last of both are none.
    count = max((place for lines in (files, captions) for place, line in enumerate(lines, 1) if line), default=0)
    files, captions = files[:count], captions[:count]
    if len(files) != len(captions):
        raise UserError(
            f"{place / FILE_LIST} has {len(files)} lines, {captions_in[0]} has {len(captions)}: "
            "line n of one belongs to line n of the other"
        )
    if not files:
        raise UserError(f"{place / FILE_LIST} is empty: write a file's name a line")
    rows = (
        Row(f"{FILE_LIST} line {number}", file, caption)
        for number, (file, caption) in enumerate(zip(files, captions, strict=True), 1)
    )
    return tell_of_absolute(place, [record_of(row, place / FILE_LIST, place) for row in rows])


def caption_lists_in(place: Path) -> list[Path]:
    """The lists of captions in a folder, first choice first."""
    return [path for name in CAPTION_LISTS if (path := place / name).is_file()]


def _lines(path: Path) -> list[str]:
    """Lines end with a newline only: `splitlines` would also part a caption at the separators that some texts hold."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as such") from error
    lines = [line.strip() for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines
