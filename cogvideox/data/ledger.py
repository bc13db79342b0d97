"""The ledger of a checked data set: a line a clip, what is wrong with which, and the files that keep it."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from cogvideox.data.judging import BY_CHOICE, WITHOUT_WEIGHT
from cogvideox.data.quarantine import DATA_LINE, folder_of

QUARANTINE_HEADER = "# clips that are not to be trained on, written by tools/check_data.py: name, tab, reason"

# What may be said of a clip that can be trained on, and what that means.
REMARKS: Mapping[str, str] = {
    "duplicate": "has the same pictures as a clip before it",
    "black": "is black in nearly all of its frames",
    "frozen": "hardly ever changes from a frame to the next",
    "cut": "has a caption longer than the text encoder reads",
    "damaged": "is damaged outside of what is sampled",
    "variable": "has a variable frame rate",
}
NEARLY_ALL = 0.95


@dataclass(frozen=True)
class Entry:
    """A clip's line. What could not be found out is None.

    `kind` and `reason` say why it is not trained on (None: it is), `remarks` what is odd about it all the same
    (keys of REMARKS). Height and width are as it is shown, `rotation` is in degrees. `sample_frames` are the real ones
    of a sample, `effective_fps` the different source frames among them over the time that they show, `padded_share`
    how much of the sample repeats the last one. `caption_tokens_cut` are those beyond the limit.
    """

    name: str
    path: str
    kind: str | None = None
    reason: str | None = None
    remarks: tuple[str, ...] = ()
    codec: str | None = None
    fps: float | None = None
    variable_frame_rate: bool | None = None
    frames: int | None = None
    duration_s: float | None = None
    height: int | None = None
    width: int | None = None
    rotation: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    weight: float = 1.0
    bucket: str | None = None
    sample_frames: int | None = None
    effective_fps: float | None = None
    padded_share: float | None = None
    black_share: float | None = None
    still_share: float | None = None
    damaged_s: tuple[float, ...] = ()
    caption: str | None = None
    caption_tokens: int | None = None
    caption_tokens_cut: int | None = None
    content: str | None = None
    duplicate_of: str | None = None
    picture: str | None = None

    @property
    def is_used(self) -> bool:
        return self.kind is None

    @property
    def is_bad(self) -> bool:
        """Not one that somebody left out by choice."""
        return self.kind is not None and self.kind not in BY_CHOICE


def with_duplicates(entries: Sequence[Entry]) -> list[Entry]:
    """`entries` in order, each with the name of the first that has the same content in the same window."""
    first: dict[tuple[str, float | None, float | None], int] = {}
    found = []
    for place, entry in enumerate(entries):
        original = place
        if entry.content is not None and entry.is_used:
            original = first.setdefault((entry.content, entry.start_s, entry.end_s), place)
        found.append(entry if original == place else replace(entry, duplicate_of=entries[original].name))
    return found


def with_remarks(entry: Entry, also_bad: Collection[str] = ()) -> Entry:
    """The entry with its remarks; those of `also_bad` make a clip bad that is not so already."""
    is_still = (entry.still_share or 0) >= NEARLY_ALL and (entry.frames or 0) > 1
    said = {
        "duplicate": entry.duplicate_of is not None,
        "black": (entry.black_share or 0) >= NEARLY_ALL,
        "frozen": is_still,
        "cut": bool(entry.caption_tokens_cut),
        "damaged": bool(entry.damaged_s) and entry.is_used,
        "variable": bool(entry.variable_frame_rate),
    }
    remarks = tuple(remark for remark, is_so in said.items() if is_so)
    worst = next((remark for remark in remarks if remark in also_bad), None)
    if not entry.is_used or worst is None:
        return replace(entry, remarks=remarks)
    of_which = f" ({entry.duplicate_of})" if worst == "duplicate" else ""
    return replace(entry, remarks=remarks, kind=worst, reason=REMARKS[worst] + of_which)


def write_ledger(entries: Iterable[Entry], folder: Path) -> None:
    """`ledger.jsonl` and the same as `ledger.csv`, each whole or not at all."""
    rows = [asdict(entry) for entry in entries]
    lines = [json.dumps(row) for row in rows]  # ASCII: names need not be valid text
    write_whole(folder / "ledger.jsonl", "".join(f"{line}\n" for line in lines))
    table = io.StringIO()
    writer = csv.DictWriter(table, [each.name for each in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    write_whole(folder / "ledger.csv", table.getvalue())


def write_quarantine(entries: Sequence[Entry], path: Path, data: Path) -> list[Entry]:
    """Write the list that training's `--quarantine` reads for `data`: what is bad, and what was in quarantine before.

    Returns the clips whose names cannot stand in it: no plain text, or shared with a good clip (another part of the
    same file).
    """
    folder = str(folder_of(data))
    lines = [QUARANTINE_HEADER, *([DATA_LINE + folder] if _is_plain(folder) else [])]
    unlisted = []
    kept = {entry.name for entry in entries if entry.is_used}
    for entry in entries:
        if not entry.is_used and entry.kind != WITHOUT_WEIGHT:
            name = _listed_name(entry)
            if name is None or entry.name in kept:
                unlisted.append(entry)
            else:
                lines.append(f"{name}\t{' '.join((entry.reason or '').split())}")
    write_whole(path, "".join(f"{line}\n" for line in lines))
    return unlisted


def is_quarantine_list(path: Path) -> bool:
    """Whether a file is one that `write_quarantine` wrote, or empty."""
    with path.open("rb") as file:
        return file.read(len(QUARANTINE_HEADER)) in (QUARANTINE_HEADER.encode(), b"")


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; what is no valid text in it is written as its escape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    os.replace(partial, path)


def _listed_name(entry: Entry) -> str | None:
    """The clip's name, or its path where the name would read as a comment; None where neither fits on a line."""
    names = (entry.name, os.path.realpath(entry.path))
    return next((name for name in names if _is_plain(name) and not name.startswith("#")), None)


def _is_plain(name: str) -> bool:
    """Whether a name can stand on a line of the list as it is."""
    is_text = name.encode("utf-8", "replace").decode() == name
    return is_text and name == name.strip() and "\t" not in name and len(name.splitlines()) == 1


def _cell(value: object) -> object:
    """A value for a spreadsheet, where text that begins like a formula must not become one."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
