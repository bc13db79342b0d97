"""Which clips a data set trains on: one judgement, for training and for tools/check_data.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogvideox.data.checking import LeftOut
from cogvideox.data.clips import Clip, ClipSize, look
from cogvideox.data.quarantine import Quarantine
from cogvideox.data.records import WITHOUT_CAPTION, Record

IN_QUARANTINE, WITHOUT_WEIGHT = "in quarantine", "without weight"
BY_CHOICE = frozenset({IN_QUARANTINE, WITHOUT_WEIGHT})
"""Kinds of clips that somebody left out, whatever their files are like."""


@dataclass(frozen=True)
class Wanted:
    """What training asks of a clip, and how long reading a sample of one may take."""

    sizes: tuple[ClipSize, ...]
    fps: float
    skip_frames: int
    max_pad_fraction: float
    allow_missing_captions: bool
    timeout_s: float
    quarantine: Quarantine = Quarantine()


def chosen_out(record: Record, wanted: Wanted) -> LeftOut | None:
    """Why a record is left out by choice; None where it is not."""
    if wanted.quarantine.names(record):
        return LeftOut(Path(record.name), IN_QUARANTINE, "is named in the list")
    if record.weight <= 0:
        return LeftOut(Path(record.name), WITHOUT_WEIGHT, f"has weight {record.weight:g}")
    return None


def judge(record: Record, wanted: Wanted) -> Clip | LeftOut:
    """The clip that a record gives, or why it is not trained on. Its file is looked at as `look` does."""
    if (left_out := chosen_out(record, wanted)) is not None:
        return left_out
    if record.caption is None and record.kind != WITHOUT_CAPTION:
        return LeftOut(Path(record.name), record.kind, record.fault or "cannot be used")
    found = look(record, wanted.sizes, wanted.fps, wanted.skip_frames, wanted.max_pad_fraction)
    if isinstance(found, Clip) and record.caption is None and not wanted.allow_missing_captions:
        return LeftOut(Path(record.name), WITHOUT_CAPTION, record.fault or "has no caption")
    return found
