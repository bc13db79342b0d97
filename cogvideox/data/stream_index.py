"""Where every sample of every shard lies, found out once before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cogvideox.data.checking import LeftOut, Unanswered, answer_all
from cogvideox.data.quarantine import Quarantine
from cogvideox.data.records import VIDEO_SUFFIXES, Record
from cogvideox.data.shards import Shard
from cogvideox.data.tars import NOTHING, ShardReader, TarIndex

VIDEO_MEMBERS = [suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES]
STALL_S = 3600.0
"""A shard that is not read to its end in so long hangs (`answer_all`)."""


@dataclass(frozen=True)
class IndexedShard:
    """A shard's samples, in its order: `names` (KEY.mp4) and `places` int64 (samples, members, 2): offset and size of
    the video and then of each member that may hold the caption.
    """

    shard: Shard
    names: list[str]
    places: np.ndarray

    def name_of(self, row: int) -> str:
        """What messages call a sample, and what a quarantine list may name."""
        return f"{self.shard.name}/{self.names[row]}"

    def key_of(self, row: int) -> str:
        """A sample's key in webdataset's sense."""
        return self.names[row].rpartition(".")[0]


def index_shards(
    shards: Sequence[Shard], caption_suffixes: Sequence[str], quarantine: Quarantine
) -> tuple[list[IndexedShard], list[LeftOut]]:
    """Each shard with its usable samples, one without any left out; and what is not used, damaged shards too.

    A shard that is named more than once is read once and comes as often.
    """
    different = list(dict.fromkeys(shards))

    def look(shard: Shard) -> tuple[IndexedShard, list[LeftOut]]:
        # A reader for each, so that what commands print is let go of again.
        return _usable(shard, ShardReader().index(shard, [*VIDEO_MEMBERS, *caption_suffixes]), quarantine)

    found: dict[Shard, IndexedShard] = {}
    left_out: list[LeftOut] = []
    for shard, answer in zip(different, answer_all(look, different, stall_s=STALL_S), strict=True):
        if isinstance(answer, Unanswered):
            left_out.append(LeftOut(Path(shard.name), "damaged shards", "storage gave no answer in time"))
            continue
        found[shard] = answer[0]
        left_out += answer[1]
    return [found[shard] for shard in shards if shard in found and found[shard].names], left_out


def _usable(shard: Shard, index: TarIndex, quarantine: Quarantine) -> tuple[IndexedShard, list[LeftOut]]:
    left_out = [LeftOut(Path(shard.name), "damaged shards", index.fault)] if index.fault else []
    names: list[str] = []
    places: list[np.ndarray] = []
    for name, row, fault in _videos(index):
        full_name = f"{shard.name}/{name}"
        if fault:
            left_out.append(LeftOut(Path(full_name), "without video", fault))
        elif quarantine.names(Record(Path(full_name), full_name, None)):
            left_out.append(LeftOut(Path(full_name), "in quarantine", "is named in the list"))
        else:
            names.append(name)
            places.append(row)
    members = index.places.shape[1] - len(VIDEO_MEMBERS) + 1
    return IndexedShard(shard, names, np.array(places, dtype=np.int64).reshape(-1, members, 2)), left_out


def _videos(index: TarIndex) -> Iterator[tuple[str, np.ndarray, str | None]]:
    """Each sample's name, its places with one video, and why it cannot be used."""
    for key, row in zip(index.keys, index.places, strict=True):
        videos, captions = row[: len(VIDEO_MEMBERS)], row[len(VIDEO_MEMBERS) :]
        which = next((place for place, video in enumerate(videos) if video[0] >= 0), None)
        if which is None:
            yield key, np.array([NOTHING, *captions]), f"has no member with one of {', '.join(VIDEO_SUFFIXES)}"
        else:
            yield f"{key}{VIDEO_SUFFIXES[which]}", np.array([videos[which], *captions]), None
