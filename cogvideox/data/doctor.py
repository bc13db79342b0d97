"""A data set's files examined one by one: decoded whole, and read as training reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cogvideox.data.checking import LeftOut
from cogvideox.data.clips import Choices, Clip, read_clip
from cogvideox.data.contact_sheet import write_strip
from cogvideox.data.judging import Wanted, chosen_out, judge
from cogvideox.data.ledger import Entry
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.records import IMAGE_SUFFIXES, Record
from cogvideox.data.sampling import nearest_frames, wanted_times
from cogvideox.data.whole import WholeVideo, decode_whole, read_whole_still

UNDECODABLE = "do not decode"


@dataclass(frozen=True)
class File:
    """A file and the clips that come from it: place in the data set, record, where its picture goes (None: nowhere)."""

    path: Path
    clips: tuple[tuple[int, Record, Path | None], ...]


def files_of(records: Sequence[Record], pictures: dict[int, Path]) -> list[File]:
    """The files of `records`, each once; `pictures` says for some places of records where their picture goes."""
    by_path: dict[Path, list[tuple[int, Record, Path | None]]] = {}
    for place, record in enumerate(records):
        by_path.setdefault(record.path, []).append((place, record, pictures.get(place)))
    return [File(path, tuple(clips)) for path, clips in by_path.items()]


def examine(file: File, alive: Callable[[], None], wanted: Wanted) -> list[tuple[int, Entry]]:
    """Decode a file whole, and read the sample of each of its clips: (place, entry) of each.

    A file of which no clip is wanted is not touched: it may be in quarantine because it takes its reader down.
    """
    is_wanted = any(chosen_out(record, wanted) is None for _, record, _ in file.clips)
    whole = _decoded(file.path, alive) if is_wanted else "is left out by choice"
    entries = []
    for place, record, picture in file.clips:
        alive()
        entries.append((place, _entry(record, whole, wanted, picture)))
    return entries


def _decoded(path: Path, alive: Callable[[], None]) -> WholeVideo | str:
    """What is in a file; why it cannot be read."""
    try:
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        return read_whole_still(path) if is_image else decode_whole(path, alive)
    except UnreadableVideo as error:
        return str(error)


def unanswered(file: File, kind: str, reason: str, wanted: Wanted) -> list[tuple[int, Entry]]:
    """As `examine`, for a file that could not be examined."""
    lost = LeftOut(file.path, kind, reason)
    found = [(place, record, chosen_out(record, wanted) or lost) for place, record, _ in file.clips]
    return [(place, replace(_blank(record), kind=each.kind, reason=each.reason)) for place, record, each in found]


def _blank(record: Record) -> Entry:
    return Entry(
        record.name, str(record.path.absolute()), start_s=record.start_s, end_s=record.end_s, weight=record.weight,
        caption=record.caption,
    )  # fmt: skip


def _entry(record: Record, whole: WholeVideo | str, wanted: Wanted, picture: Path | None) -> Entry:
    entry = _blank(record) if isinstance(whole, str) else _with_facts(_blank(record), whole)
    clip = judge(record, wanted)
    if isinstance(clip, LeftOut):
        return replace(entry, kind=clip.kind, reason=clip.reason)
    size = wanted.sizes[clip.bucket]
    entry = replace(
        entry,
        bucket=f"{size.frames}×{size.height}×{size.width}",
        sample_frames=clip.frame_count,
        padded_share=1 - clip.frame_count / size.frames,
    )
    if isinstance(whole, str):
        return replace(entry, kind=UNDECODABLE, reason=whole)
    entry = replace(entry, effective_fps=_effective_fps(clip, whole, wanted.fps))
    return _read_as_training(entry, clip, whole, wanted, picture)


def _with_facts(entry: Entry, whole: WholeVideo) -> Entry:
    return replace(
        entry, codec=whole.codec, fps=whole.fps, variable_frame_rate=whole.has_variable_rate, frames=len(whole.times),
        duration_s=whole.duration_s, height=whole.height, width=whole.width, rotation=whole.rotation,
        black_share=whole.black_share, still_share=whole.still_share, damaged_s=whole.damaged_s, content=whole.digest,
    )  # fmt: skip


def _read_as_training(entry: Entry, clip: Clip, whole: WholeVideo, wanted: Wanted, picture: Path | None) -> Entry:
    """Bad where anything that a sample may be made of is damaged, or where the first sample cannot be read."""
    damaged = [each for each in whole.damaged_s if clip.span.start_s <= each <= clip.span.end_s]
    if damaged:
        more = f" and at {len(damaged) - 1} more frames" if len(damaged) > 1 else ""
        return replace(entry, kind=UNDECODABLE, reason=f"is damaged at {damaged[0]:.2f} s{more}")
    try:
        frames = read_clip(clip, wanted.sizes[clip.bucket], wanted.fps, Choices(), 0.0, wanted.timeout_s)
    except UnreadableVideo as error:
        return replace(entry, kind=UNDECODABLE, reason=str(error))
    if picture is None:
        return entry
    write_strip(picture, frames)
    return replace(entry, picture=picture.name)


def _effective_fps(clip: Clip, whole: WholeVideo, fps: float) -> float | None:
    """Different frames of the source in the first sample, over the time that it shows; None for a single picture."""
    if len(whole.times) < 2:
        return None
    picks = nearest_frames(whole.times, wanted_times(clip.start_s(0.0, fps), fps, clip.frame_count))
    return len(np.unique(picks)) * fps / clip.frame_count
