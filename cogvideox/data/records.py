"""What a data set consists of: files, each with a caption, in any of the forms that people have them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cogvideox.data.formats import folder, lists, metadata
from cogvideox.data.formats.huggingface import has_train_metadata, read_huggingface, train_folder
from cogvideox.data.formats.record import IMAGE_SUFFIXES, VIDEO_SUFFIXES, WITHOUT_CAPTION, Record, is_clip
from cogvideox.errors import UserError

__all__ = [
    "AUTO",
    "FORMATS",
    "IMAGE_SUFFIXES",
    "LAYOUT",
    "VIDEO_SUFFIXES",
    "WITHOUT_CAPTION",
    "Record",
    "fault_of_place",
    "find_records",
]

_logger = logging.getLogger(__name__)

AUTO = "auto"
READERS: dict[str, Callable[[Path], list[Record]]] = {
    "folder": folder.read_folder,
    "metadata": metadata.read_metadata,
    "lists": lists.read_lists,
    "huggingface": read_huggingface,
}
FORMATS = (AUTO, *READERS)
LAYOUT = "videos/NAME.mp4 with labels/NAME.txt, or metadata.jsonl, or another of the forms in docs/data.md"


def find_records(place: Path, format: str = AUTO) -> list[Record]:
    """The records of a data folder or manifest; `auto` looks which of the forms it has.

    Raises UserError: an unknown `format`, a place that is none, has no clip, or a manifest that cannot be used. What
    is wrong with a single clip is told by its record.
    """
    if format not in FORMATS:
        raise UserError(f"format is {format!r}: use one of {', '.join(FORMATS)} (data.params.format)")
    if fault := fault_of_place(place, format):
        raise UserError(f"{fault} (args.train_data, args.valid_data): give {LAYOUT}")
    chosen = _look(place) if format == AUTO else format
    return READERS[chosen](place)


def fault_of_place(place: Path, format: str = AUTO) -> str | None:
    """Why there is no data at `place`, as far as names tell: no file is opened."""
    if not os.path.exists(place):  # where pathlib raises: a name that is too long
        return f"the data folder {place} does not exist"
    if place.is_file():
        if place.suffix.lower() not in metadata.SUFFIXES:
            return f"{place} is not a folder, nor a table ({', '.join(metadata.SUFFIXES)})"
        is_read = format in (AUTO, "metadata")
        return None if is_read else f"{place} is not a folder, as data.params.format: {format} wants"
    wanted = {
        "metadata": ", ".join(metadata.FILE_NAMES),
        "lists": lists.NAMES,
        "huggingface": f"{', '.join(metadata.FILE_NAMES)} (subfolders too)",
        "folder": f"{folder.SUFFIXES} file (subfolders too)",
    }
    if format == AUTO:
        missing = f"{wanted['folder']}, no {wanted['metadata']}, no {wanted['lists']}"
        is_there = next(_forms_of(place), None) is not None
    else:
        missing = wanted[format]
        is_there = _has(place, format)
    return None if is_there else f"the data folder {place} holds no {missing}"


def _look(place: Path) -> str:
    if place.is_file():
        return "metadata"
    chosen = next(_forms_of(place))
    present = {
        "lists": _has(place, "lists"),
        "huggingface": has_train_metadata(place),
        "folder": (place / "labels").is_dir(),
    }
    others = [form for form, is_there in present.items() if is_there and form != chosen]
    if others:
        text = "%s has more than one form: %s is taken, not %s (data.params.format)"
        _logger.warning(text, place, chosen, ", ".join(others))
    elif chosen == "metadata" and train_folder(place):
        text = "%s: its metadata is taken as a whole; data.params.format: huggingface takes the split %s/ alone"
        _logger.warning(text, place, train_folder(place))
    elif chosen == "folder" and (place / lists.FILE_LIST).is_file():
        text = "%s: %s is not read, for want of %s"
        _logger.warning(text, place, lists.FILE_LIST, " or ".join(lists.CAPTION_LISTS))
    return chosen


def _forms_of(place: Path) -> Iterator[str]:
    """The forms that a folder has, first choice first; the last one, which takes a walk, is looked for last."""
    if metadata.manifests_in(place):
        yield "metadata"
    if _has(place, "lists"):
        yield "lists"
    if has_train_metadata(place):
        yield "huggingface"
    if _has(place, "folder"):
        yield "folder"


def _has(place: Path, form: str) -> bool:
    if form == "metadata":
        return bool(metadata.manifests_in(place))
    if form == "lists":
        return (place / lists.FILE_LIST).is_file() and bool(lists.caption_lists_in(place))
    if form == "huggingface":
        return has_train_metadata(place) or any(path.name in metadata.FILE_NAMES for path in folder.walk(place))
    return any(is_clip(path) for path in folder.walk(place))
