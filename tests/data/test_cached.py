"""Samples from the cache. Truth: a clip gets its own entry or none (identity), whatever could not be read before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideox.data.cache_store import CacheStore
from cogvideox.data.cached import CLIP, EMBEDDING, CachedClips, Encoders
from cogvideox.data.mixture import REPLACED
from data_video import SFTDataset
from tests.data.painted import even_times, write_painted


def test_clips_that_cannot_be_read_share_no_entry(tmp_path: Path) -> None:
    for name in "abc":
        write_painted(tmp_path / f"data/videos/{name}.mp4", even_times(16, 40))
        (tmp_path / f"data/videos/{name}.txt").write_text(name)
    base = SFTDataset(str(tmp_path / "data"), (64, 96), fps=8, max_num_frames=9)
    store = CacheStore(tmp_path / "cache")
    clips = CachedClips(base, store, [None, None, "c" * 32], Encoders("vae", "t5", 16, "float32"), variants=3)
    (wanted,) = clips.wanted()  # nothing is drawn, so that there is one variant
    assert wanted.index == 2
    store.put(wanted.key, {CLIP: torch.full((2, 1, 1, 1), 7.0)})
    for key, text in clips.captions().items():
        store.put(key, {EMBEDDING: torch.full((1, 1), float(ord(text)))})
    store.flush()
    for index, missing in ((0, ["videos/a.mp4", "videos/b.mp4"]), (1, ["videos/b.mp4"]), (2, [])):
        sample = clips.sample(index, np.random.default_rng(0))
        assert sample["txt"] == "c" and sample["txt_embedding"].item() == ord("c") and sample["moments"].mean() == 7
        assert [name for name, *_ in sample.get(REPLACED, ())] == missing


def test_the_end_of_a_span_and_autocast_are_in_the_keys(tmp_path: Path) -> None:
    """Invariant: whatever changes what is encoded changes the clip's key, and not its caption's."""
    write_painted(tmp_path / "videos/a.mp4", even_times(16, 40))
    (tmp_path / "videos/a.txt").write_text("a")
    base = SFTDataset(str(tmp_path), (64, 96), fps=8, max_num_frames=9)

    def keys(**changes: Any) -> tuple[str, set[str]]:
        encoders = replace(Encoders("vae", "t5", 16, "float32"), **changes)
        clips = CachedClips(base, CacheStore(tmp_path / "cache"), ["c" * 32], encoders, variants=1)
        return next(clips.wanted()).key, set(clips.captions())

    before = keys()
    assert keys() == before and keys(autocasts=False)[0] != before[0] and keys(autocasts=False)[1] == before[1]
    (clip,) = base.clips
    base.clips = [replace(clip, span=replace(clip.span, end_s=clip.span.end_s - 0.1))]
    assert keys()[0] != before[0] and keys()[1] == before[1]
