"""Clips from tar shards, as webdataset writes them: `data_video.VideoDataset`.

How it goes, and why. At the start one rank reads the headers of all shards and tells the others where each sample lies
in its shard. From then on every sample has a number, and reading one is one read of its bytes, decoded from memory. So
the order can be a plain function of (seed, epoch) (`stream_order`: shards permuted, then samples shuffled in windows),
each rank and worker reads just its own samples, an epoch has each once for any number of them, and a run resumes by
one number without reading what was given. Where samples are only known as they stream by, ranks cannot tell how many
there are and who has had which, so that none of this would be exact. The price: shards are uncompressed, their headers
are read before training, and what a `pipe:` command prints is kept in an unnamed temporary file by each process that
needs it, since a pipe cannot be sought.

A sample that cannot be used (too short, not decodable, no caption) is found out only when its turn comes; the next
good one of the shards' own order stands in for it, and tells so (REPLACED). Skipping it instead would shift the samples
of all ranks after it, which no rank could know of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from cogvideox import parallel
from cogvideox.data.checking import LeftOut, describe
from cogvideox.data.clip_parameters import checked_sizes, faults_of_sampling
from cogvideox.data.clips import Choices, Clip, fitted, within
from cogvideox.data.looking import look_at
from cogvideox.data.mixture import DrawnDataset, Part
from cogvideox.data.quarantine import read_quarantine
from cogvideox.data.reading import UnreadableVideo, read_frames
from cogvideox.data.records import Record
from cogvideox.data.scaling import to_clip
from cogvideox.data.shards import find_shards
from cogvideox.data.stand_ins import PatientReads, first_usable, once_around
from cogvideox.data.stream_captions import StreamCaptions, UnusableCaption
from cogvideox.data.stream_index import IndexedShard, index_shards
from cogvideox.data.stream_order import StreamOrder
from cogvideox.data.tars import ShardReader
from cogvideox.errors import UserError

_logger = logging.getLogger(__name__)

LONGEST_SEARCH = 1000
"""Samples in a row that may be unusable before a stream counts as broken."""

NO_CAPTION, NOT_DECODABLE = "without caption", "do not decode"


class VideoDataset(DrawnDataset, IterableDataset):
    """The clips in the tar shards of `path` and `include_dirs` (docs/data.md), each with its caption under `txt_key`.

    `image_size` is (H, W) in pixels, `num_frames` (4k+1) the frames of a sample, `fps` its frame rate. `shuffle_buffer`
    samples are shuffled with each other, after the shards were (1: shards only). `seed` is the run's where it is None
    or -1. `meta_names` that have `txt_key` let captions come from SHARD.meta.jsonl. `nshards` has no effect: an epoch
    is every shard once. The others are as in SFTDataset, but `window` is `random` as in the reference.

    It has numbered samples like SFTDataset, which training uses; iterated by itself it gives this rank's and worker's
    part of an epoch (`start_at`). A sample is the dict that data_video describes.

    Raises UserError for a wrong parameter, for missing shards, and where they hold no video.
    """

    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = ("path",)
    _start = (0, 0)  # the epoch to iterate, and how many samples of it were given

    def __init__(
        self,
        path: str,
        image_size: Sequence[int],
        num_frames: int,
        fps: int,
        skip_frms_num: float = 0.0,
        nshards: int | None = None,
        seed: int | None = None,
        meta_names: Sequence[str] | None = None,
        shuffle_buffer: int = 1000,
        include_dirs: str | None = None,
        txt_key: str = "caption",
        max_pad_fraction: float = 0.5,
        allow_missing_captions: bool = False,
        window: Literal["first", "random"] = "random",
        crop: Literal["center", "random"] = "center",
        flip_probability: float = 0.0,
        quarantine: str | None = None,
        read_timeout_s: float = 120.0,
    ) -> None:
        super().__init__()
        faults = faults_of_sampling(fps, skip_frms_num, max_pad_fraction, flip_probability, read_timeout_s)
        faults += _faults_of_stream(txt_key, shuffle_buffer)
        (self.size,) = checked_sizes([[num_frames, *image_size]], False, faults, ("image_size", "num_frames"))
        self.path, self.fps, self.skip_frames, self.max_pad_fraction = path, fps, int(skip_frms_num), max_pad_fraction
        self.allow_missing_captions, self.read_timeout_s = allow_missing_captions, read_timeout_s
        self.window, self.crop, self.flip_probability = window, crop, flip_probability
        self.shuffle_buffer, self.seed = max(1, shuffle_buffer), 0 if seed in (None, -1) else int(seed or 0)
        self._reader = ShardReader()
        self._captions = StreamCaptions(self._reader, txt_key, tuple(meta_names or ()))
        # One rank looks, so that all have the same samples; it may take longer than a GPU collective waits.
        found: tuple[list[IndexedShard], list[LeftOut]] = parallel.current().host.on_first(
            lambda: index_shards(find_shards(path, include_dirs), self._captions.suffixes, read_quarantine(quarantine))
        )
        self.shards, self.left_out = found
        self._ends = np.cumsum([len(each.names) for each in self.shards], dtype=np.int64)
        self._tell(nshards)
        self._unfit: dict[int, LeftOut] = {}  # whatever is drawn
        self._reads = PatientReads()

    @classmethod
    def create_dataset_function(cls, path: str, args: Any, **kwargs: Any) -> VideoDataset:
        """The data set for `path`, as SAT asks for it; `kwargs` are `data.params`, `--quarantine` wins over theirs."""
        if args is not None and kwargs.get("seed") in (None, -1):
            kwargs = kwargs | {"seed": args.seed}
        if args is not None and args.quarantine:
            kwargs = kwargs | {"quarantine": args.quarantine}
        return cls(path, **kwargs)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """This rank's and worker's samples of one epoch, from `start_at` on."""
        worker, group = get_worker_info(), parallel.current().data
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        epoch, given = self._start
        order = StreamOrder(self.shard_of(range(len(self))), self.shuffle_buffer, 1, self.seed)
        for place in range(given + group.rank * workers + own, len(self), group.size * workers):
            draw = order.draw(epoch, place)
            yield self.sample(draw.sample, draw.rng())

    def start_at(self, epoch: int, given: int = 0) -> None:
        """What iterating gives from now on: `epoch` without the `given` samples that all ranks had of it."""
        self._start = (epoch, given)

    def shard_of(self, indices: Sequence[int]) -> np.ndarray:
        """The shard's number of each sample."""
        return np.searchsorted(self._ends, np.asarray(indices), side="right")

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sample `index` with the choices that `rng` makes, or the next one that can be used."""
        return self.sample_of_part(index, rng, range(len(self)))

    def sample_of_part(self, index: int, rng: np.random.Generator, part: Part) -> dict[str, Any]:
        """As `sample`; what stands in for it is of `part`."""
        choices = Choices.of(rng, self.window, self.crop)
        turns = islice(once_around(part, index), LONGEST_SEARCH)
        fault = f"{min(len(part), LONGEST_SEARCH)} samples in a row of {self.path} cannot be used"
        return first_usable((self._made(position, choices) for position in turns), fault)

    def _made(self, position: int, choices: Choices) -> dict[str, Any] | LeftOut:
        if position in self._unfit:
            return self._unfit[position]
        shard, row = self._find(position)
        try:
            self._reader.prepare(shard.shard)
            read = partial(self._read, shard, row, choices)
            made = self._reads.read(position, lambda: within(self.read_timeout_s, read))
        except UnreadableVideo as error:
            return LeftOut(Path(shard.name_of(row)), NOT_DECODABLE, str(error))
        if isinstance(made, LeftOut):
            self._unfit[position] = made
        return made

    def _read(self, shard: IndexedShard, row: int, choices: Choices) -> dict[str, Any] | LeftOut:
        """A sample; why it cannot be used whatever is drawn. Raises UnreadableVideo: with these choices, or now."""
        video, *of_caption = shard.places[row].tolist()
        try:
            caption = self._captions.find(shard.shard, shard.key_of(row), of_caption)
        except UnusableCaption as error:
            if not self.allow_missing_captions:
                return LeftOut(Path(shard.name_of(row)), NO_CAPTION, str(error))
            caption = ""
        content = self._reader.read(shard.shard, *video)
        clip = self._look(content, shard.name_of(row))
        if isinstance(clip, LeftOut):
            return clip
        start_s = clip.start_s(choices.window, self.fps)
        crop = (choices.top, choices.left)
        frames = read_frames(content, start_s, self.fps, clip.frame_count, self.size.picture, crop, clip.span.end_s)
        mp4 = to_clip(choices.mirrored(frames, self.flip_probability), self.size.frames)
        return {"mp4": mp4, "txt": caption, "num_frames": clip.frame_count, "fps": self.fps}

    def _look(self, content: bytes, name: str) -> Clip | LeftOut:
        try:
            facts = look_at(content, self.skip_frames)
        except UnreadableVideo as error:
            return LeftOut(Path(name), NOT_DECODABLE, str(error))
        record = Record(Path(name), name, None)
        return fitted(record, facts, [self.size], self.fps, self.skip_frames, self.max_pad_fraction)

    def _find(self, position: int) -> tuple[IndexedShard, int]:
        number = int(np.searchsorted(self._ends, position, side="right"))
        return self.shards[number], position - int(self._ends[number - 1] if number else 0)

    def _tell(self, nshards: int | None) -> None:
        if not self.shards:
            raise UserError(f"the shards of {self.path} hold no sample that can be used: {describe(self.left_out)}")
        if self.left_out:
            text = "%s: %d clips in %d shards are used; left out: %s"
            _logger.warning(text, self.path, len(self), len(self.shards), describe(self.left_out))
        if nshards is not None and nshards < len(self.shards):
            _logger.warning("data.params.nshards %d has no effect: an epoch is every shard once", nshards)


def _faults_of_stream(txt_key: str, shuffle_buffer: int) -> Iterator[str]:
    if not txt_key or "/" in txt_key:
        yield f"data.params.txt_key {txt_key!r}: give the key that captions have in the shards, for example caption"
    if shuffle_buffer < 0:
        yield f"data.params.shuffle_buffer {shuffle_buffer}: give 1 (shuffle shards only) or more samples"
