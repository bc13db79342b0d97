# C latent channels, T latent frames, h w, N text tokens, D width
"""A data set of clips whose samples are what the VAE and the text encoder made of them, read from a cache.

A sample has `moments` (2C, T, h, w), means and log variances of the latent's posterior, unscaled, in place of `mp4`,
and `txt_embedding` (N, D) beside `txt`. For image-to-video it has `image_moments` (2C, 1, h, w) of the first frame with
noise, one of a few that were encoded, and `first_frame_moments` of it without: the noise goes on the picture before it
is encoded, so that it cannot be added to what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogvideox.data.cache_keys import latent_key, prompt_key
from cogvideox.data.cache_store import CacheStore
from cogvideox.data.checking import LeftOut
from cogvideox.data.clips import Choices, Clip, ClipSize
from cogvideox.data.mixture import DrawnDataset, Part
from cogvideox.data.stand_ins import first_usable

CLIP, IMAGES, EMBEDDING = "moments", "images", "embedding"


@dataclass(frozen=True)
class Encoders:
    """What decides what a clip and a caption become: content digests of both encoders' files, and their precision.

    `autocasts`: the VAE encodes under autocast. `image_noises` first frames with noise are kept for each clip, and one
    without; 0 where no picture is needed.
    """

    vae: str
    text: str
    max_length: int
    dtype: str
    autocasts: bool = True
    image_noises: int = 0


@dataclass(frozen=True)
class Wanted:
    """An entry that a data set needs: sample `index`, made with `choices`."""

    key: str
    index: int
    choices: Choices


class CachedClips(DrawnDataset):
    """The samples of `base` from `store`. Where its samples have random choices, `variants` of each are kept, and one
    of them is drawn. `digests` are of the clips' files, in order; None: it cannot be read, and is never kept.
    """

    def __init__(
        self, base: Any, store: CacheStore, digests: list[str | None], encoders: Encoders, variants: int
    ) -> None:
        super().__init__()
        self.base, self.store, self.encoders = base, store, encoders
        self._digests = digests
        self.variants = variants if base.has_choices else 1

    def __len__(self) -> int:
        return len(self.base)

    def bucket_of(self, index: int) -> int:
        """As the data set's."""
        return self.base.bucket_of(index)

    def repeats(self, index: int) -> int:
        """As the data set's."""
        return self.base.repeats(index)

    def wanted(self) -> Iterator[Wanted]:
        """Every entry of a clip that may be drawn."""
        for index, digest in enumerate(self._digests):
            if digest is None:
                continue
            for variant in range(self.variants):
                choices = self._choices(digest, variant)
                yield Wanted(self._latent_key(index, digest, choices), index, choices)

    @property
    def readable(self) -> int:
        """How many clips have a file that can be read."""
        return len(self._digests) - self._digests.count(None)

    def captions(self) -> dict[str, str]:
        """Every caption by its key."""
        return {self.prompt_key(clip.caption): clip.caption for clip in self.base.clips}

    def _latent_key(self, index: int, digest: str, choices: Choices) -> str:
        """The key of a clip's entry: all that decides its content."""
        clip: Clip = self.base.clips[index]
        size: ClipSize = self.base.sizes[clip.bucket]
        return latent_key(
            digest,
            start_s=clip.start_s(choices.window, self.base.fps),
            end_s=clip.span.end_s,
            fps=float(self.base.fps),
            frame_count=clip.frame_count,
            frames=size.frames,
            size=size.picture,
            place=(choices.top, choices.left),
            mirrored=choices.mirror < self.base.flip_probability,
            vae_digest=self.encoders.vae,
            dtype=self.encoders.dtype,
            autocasts=self.encoders.autocasts,
            kind=f"clip and {self.encoders.image_noises} first frames",
        )

    def prompt_key(self, text: str) -> str:
        """The key of a caption's entry."""
        encoders = self.encoders
        return prompt_key(text, encoder_digest=encoders.text, max_length=encoders.max_length, dtype=encoders.dtype)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One of the variants of sample `index`; where it is not to be had, of the next one of its size."""
        return self.sample_of_part(index, rng, range(len(self)))

    def sample_of_part(self, index: int, rng: np.random.Generator, part: Part) -> dict[str, Any]:
        """As `sample`; what stands in for it is of `part`."""
        variant, noise = int(rng.integers(self.variants)), int(rng.integers(max(1, self.encoders.image_noises)))

        def found(position: int) -> dict[str, Any] | LeftOut:
            name = Path(self.base.clips[position].record.name)
            missing = LeftOut(name, "not in the cache", "has no whole entry in the cache")
            return self._entry(position, variant, noise) or missing

        size = self.base.size_of(index)
        fault = f"no clip of {size.frames} frames at {size.height}×{size.width} is in the cache {self.store.folder}"
        return first_usable(map(found, self.base.stand_ins(index, part)), fault)

    def _entry(self, index: int, variant: int, noise: int) -> dict[str, Any] | None:
        clip: Clip = self.base.clips[index]
        digest = self._digests[index]
        if digest is None:
            return None
        entry = self.store.get(self._latent_key(index, digest, self._choices(digest, variant)))
        text = self.store.get(self.prompt_key(clip.caption))
        if entry is None or text is None:
            return None
        sample: dict[str, Any] = {
            "moments": entry[CLIP],
            "txt": clip.caption,
            "txt_embedding": text[EMBEDDING],
            "num_frames": clip.frame_count,
            "fps": self.base.fps,
        }
        if self.encoders.image_noises:
            sample |= {"image_moments": entry[IMAGES][noise], "first_frame_moments": entry[IMAGES][-1]}
        return sample

    def _choices(self, digest: str, variant: int) -> Choices:
        """The same for the same clip and variant, whatever else is in the data."""
        return self.base.choices(np.random.default_rng([variant, int(digest[:15], 16)]))
