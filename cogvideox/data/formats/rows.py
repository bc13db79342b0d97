"""From one row of a manifest, as its file has it, to a record; a fault in it is told, not raised."""

from __future__ import annotations

import math
import os
import posixpath
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from cogvideox.data.formats.record import BAD_ROW, Record


@dataclass(frozen=True)
class Row:
    """What a manifest says of one clip, unchecked; None where it says nothing. `where` is for messages.

    `fault`: why the row could not be read at all.
    """

    where: str
    file: object = None
    caption: object = None
    start: object = None
    end: object = None
    weight: object = None
    fault: str | None = None


class BadRow(Exception):
    """A row cannot be used; the text is the reason."""


def record_of(row: Row, manifest: Path, place: Path) -> Record:
    """The record of a row; names of files are relative to the manifest's folder, names in messages to `place`.

    A row that is at fault gives a record with `fault`, of the kind BAD_ROW unless only the caption is missing.
    """
    folder, below = manifest.parent, _below(place, manifest.parent)
    where = posixpath.join(below, row.where)
    bad = Record(manifest, where, None, kind=BAD_ROW)
    try:
        if row.fault:
            raise BadRow(row.fault)
        file = clean_name(row.file)
        bad = replace(bad, path=folder / file, name=posixpath.join(below, file))
        start, end = _seconds("start", row.start), _seconds("end", row.end)
        if end is not None and end <= (start or 0.0):
            raise BadRow(f"end {end:g} s is not after start {start or 0.0:g} s")
        weight = _number("weight", row.weight)
    except BadRow as error:
        return replace(bad, fault=f"{where}: {error}")
    name, weight = bad.name + _span(start, end), 1.0 if weight is None else weight
    try:
        return Record(folder / file, name, clean_caption(row.caption), None, start, end, weight)
    except BadRow as error:
        return Record(folder / file, name, None, f"{where}: {error}", start, end, weight)


def clean_name(file: object) -> str:
    """A file's name as a manifest may give it: absolute, or below the manifest's folder. Raises BadRow.

    `..` is taken out by the text alone: a manifest that came with a download cannot name files that lie elsewhere. A
    link in the folder may lead out of it: whoever made the link wanted that, and so the Hugging Face cache is built.
    """
    if file is None or file == "":
        raise BadRow("names no file")
    if not isinstance(file, str):
        raise BadRow(f"names no file but a {type(file).__name__}")
    name = _text("the file's name", file).strip()
    if "\0" in name:
        raise BadRow("the file's name holds a NUL character")
    if "://" in name:
        raise BadRow(f"{name} is no file here: fetch it, and give the path")
    if os.path.isabs(name):
        return name
    clean = posixpath.normpath(name) if name else "."
    if clean in (".", "..") or clean.startswith("../"):
        raise BadRow(f"{name!r} is no file below the manifest's folder: give a path below it, or an absolute one")
    return clean


def clean_caption(caption: object) -> str:
    """A caption without the blanks around it. Raises BadRow: none, or no text."""
    if caption is None:
        raise BadRow("has no caption")
    if not isinstance(caption, str):
        raise BadRow(f"the caption is no text but a {type(caption).__name__}")
    if not (clean := _text("the caption", caption).strip()):
        raise BadRow("the caption is empty")
    return clean


def _text(what: str, value: str) -> str:
    """JSON can spell halves of characters, which no file system and no tokenizer takes."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow(f"{what} holds half a character (a lone surrogate)")
    return value


def _number(what: str, value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
            raise ValueError
        number = float(value)
        if not (math.isfinite(number) and number >= 0):
            raise ValueError
    except (ValueError, OverflowError):
        raise BadRow(f"{what} is {str(value)[:40]!r}, not a number from 0 on") from None
    return number


def _seconds(what: str, value: object) -> float | None:
    try:
        return _number(what, value)
    except BadRow as error:
        raise BadRow(f"{error} (seconds)") from None


def _span(start: float | None, end: float | None) -> str:
    """What tells two parts of a video apart in messages."""
    if start is None and end is None:
        return ""
    return f" ({start or 0.0:g} s to {'its end' if end is None else f'{end:g} s'})"


def _below(place: Path, folder: Path) -> str:
    return folder.relative_to(place).as_posix() if folder != place else ""
