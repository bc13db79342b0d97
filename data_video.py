# F frames, C channels, H W
"""What a batch is made of: clips with their captions.

A sample is `mp4` (F, C, H, W) float32 in [-1, 1], `txt` the caption, `num_frames` the real frames before padding, and
`fps` the frame rate that the clip is sampled at. Which clips count is decided once, at construction.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from cogvideox import parallel
from cogvideox.data.checking import LeftOut, answer_all, describe
from cogvideox.data.clip_parameters import checked_sizes, clip_sizes, faults_of_sampling
from cogvideox.data.clips import Choices, Clip, ClipSize, read_clip
from cogvideox.data.judging import Wanted, judge
from cogvideox.data.mixture import DrawnDataset, Part
from cogvideox.data.quarantine import read_quarantine
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.records import find_records
from cogvideox.data.sampling import largest_clip_length, shortest_clip_length
from cogvideox.data.scaling import to_clip
from cogvideox.data.stand_ins import PatientReads, first_usable, once_around
from cogvideox.data.streaming import VideoDataset
from cogvideox.errors import UserError

__all__ = ["SFTDataset", "VideoDataset"]

MOST_REPEATS = 1000  # of a sample in an epoch
_logger = logging.getLogger(__name__)


class SFTDataset(DrawnDataset):
    """The clips of `data_dir`, in any of the forms of docs/data.md (`format`; `auto` looks), each with its caption.

    `video_size` is (H, W) in pixels; `fps` the wanted frame rate; `max_num_frames` (4k+1) the frames of every sample.
    `buckets` is a list of (frames, H, W) in their place: each clip goes to the one nearest to its aspect and length.
    `skip_frms_num` frames of the source are ignored at both ends (transitions). A clip with fewer frames gives the
    largest 4k+1 that it has and repeats its last one; where that would be more than `max_pad_fraction` of the sample,
    the clip is too short. `window` and `crop` say where in the clip and the picture a sample lies, `flip_probability`
    how often it is mirrored. Clips that cannot be used are named in the log and left out (`left_out`), those named in
    the file `quarantine` too. A caption that is missing, empty or not UTF-8 counts as such, unless
    `allow_missing_captions` has these clips trained with the empty caption. A clip that no longer decodes, or not
    within `read_timeout_s`, is replaced by the next one of its size, or else of another that is long enough.

    Raises UserError for a wrong parameter, for a missing folder, and where no usable clip is left.
    """

    # `create_dataset_function` is called with the paths of `train_data` and `valid_data`.
    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = ("data_dir",)

    def __init__(
        self,
        data_dir: str,
        video_size: Sequence[int],
        fps: int,
        max_num_frames: int,
        skip_frms_num: float = 3,
        max_pad_fraction: float = 0.5,
        allow_missing_captions: bool = False,
        format: Literal["auto", "folder", "metadata", "lists", "huggingface"] = "auto",
        window: Literal["first", "random"] = "first",
        crop: Literal["center", "random"] = "center",
        flip_probability: float = 0.0,
        buckets: Sequence[Sequence[int]] | None = None,
        quarantine: str | None = None,
        read_timeout_s: float = 120.0,
    ) -> None:
        super().__init__()
        faults = faults_of_sampling(fps, skip_frms_num, max_pad_fraction, flip_probability, read_timeout_s)
        sizes = clip_sizes(video_size, max_num_frames, buckets)
        self.sizes = checked_sizes(sizes, buckets is not None, faults)
        self.data_dir, self.format = Path(data_dir), format
        self.fps, self.skip_frames = fps, int(skip_frms_num)
        self.max_pad_fraction = max_pad_fraction
        self.window, self.crop, self.flip_probability = window, crop, flip_probability
        self.read_timeout_s = read_timeout_s
        wanted = Wanted(
            tuple(self.sizes), fps, self.skip_frames, max_pad_fraction, allow_missing_captions, read_timeout_s
        )
        self.clips: list[Clip]
        self.left_out: list[LeftOut]
        # One rank looks, so that all train on the same clips whatever a storage answers to the others. That may take
        # longer than a GPU collective waits.
        self.clips, self.left_out = parallel.current().host.on_first(lambda: self._look_at_all(wanted, quarantine))
        self._least_weight = min(clip.record.weight for clip in self.clips)
        self._reads = PatientReads()

    @classmethod
    def create_dataset_function(cls, path: str, args: Any, **kwargs: Any) -> SFTDataset:
        """The data set for `path`, as SAT asks for it; `kwargs` are `data.params`, `--quarantine` wins over theirs."""
        if args is not None and args.quarantine:
            kwargs = kwargs | {"quarantine": args.quarantine}
        return cls(data_dir=path, **kwargs)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample `index` without any random choice: its first window, the middle of its picture."""
        if not -len(self.clips) <= index < len(self.clips):
            raise IndexError(index)
        return self._sample(index % len(self.clips), Choices(), range(len(self)))

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sample `index` with the choices that `rng` makes, as far as the parameters leave any."""
        return self.sample_of_part(index, rng, range(len(self)))

    def sample_of_part(self, index: int, rng: np.random.Generator, part: Part) -> dict[str, Any]:
        """As `sample`; what stands in for it is of `part`."""
        return self._sample(index, self.choices(rng), part)

    @property
    def has_choices(self) -> bool:
        """Whether a clip's samples differ from each other."""
        return self.window == "random" or self.crop == "random" or 0 < self.flip_probability < 1

    def choices(self, rng: np.random.Generator) -> Choices:
        """The choices that `rng` makes, as far as the parameters leave any."""
        return Choices.of(rng, self.window, self.crop)

    def bucket_of(self, index: int) -> int:
        """Which of `sizes` sample `index` has."""
        return self.clips[index].bucket

    def repeats(self, index: int) -> int:
        """How often sample `index` comes in an epoch: its record's weight over the least one, rounded, at most 1000."""
        return min(MOST_REPEATS, max(1, round(self.clips[index].record.weight / self._least_weight)))

    def size_of(self, index: int) -> ClipSize:
        """The size of sample `index`."""
        return self.sizes[self.clips[index].bucket]

    def stand_ins(self, index: int, part: Part) -> Iterator[int]:
        """Sample `index`, and then those of its size that may stand in for it; `part`: those that may, in order."""
        bucket = self.clips[index].bucket
        return (position for position in once_around(part, index) if self.clips[position].bucket == bucket)

    def read(self, index: int, choices: Choices) -> np.ndarray:
        """The uint8 frames (F, H, W, 3) of a sample, F of them real. Raises UnreadableVideo."""
        return self._read(self.clips[index], choices)

    def _read(self, clip: Clip, choices: Choices) -> np.ndarray:
        size = self.sizes[clip.bucket]
        return read_clip(clip, size, self.fps, choices, self.flip_probability, self.read_timeout_s)

    def _sample(self, index: int, choices: Choices, part: Part) -> dict[str, Any]:
        size = self.size_of(index)
        fault = (
            f"no clip of {size.frames} frames at {size.height}×{size.width} in {self.data_dir} can be read any more, "
            "nor one that is long enough for it; replace these files or take them out of the data"
        )
        return first_usable((self._made(clip, choices) for clip in self._candidates(index, part)), fault)

    def _candidates(self, index: int, part: Part) -> Iterator[Clip]:
        """The clips to try for sample `index`: those of its size, and then others that are long enough, at this size.

        Without the others, the last clip of a size would end the run, which has no other batch for that step.
        """
        bucket, size = self.clips[index].bucket, self.size_of(index)
        yield from (self.clips[position] for position in self.stand_ins(index, part))
        for clip in (self.clips[position] for position in once_around(part, index)):
            longest = largest_clip_length(clip.available)
            if clip.bucket != bucket and longest >= shortest_clip_length(size.frames, self.max_pad_fraction):
                yield replace(clip, bucket=bucket, frame_count=min(size.frames, longest))

    def _made(self, clip: Clip, choices: Choices) -> dict[str, Any] | LeftOut:
        try:
            frames = self._reads.read(clip.video, lambda: self._read(clip, choices))
        except UnreadableVideo as error:
            return LeftOut(Path(clip.record.name), "do not decode", str(error))
        mp4 = to_clip(frames, self.sizes[clip.bucket].frames)
        return {"mp4": mp4, "txt": clip.caption, "num_frames": clip.frame_count, "fps": self.fps}

    def _look_at_all(self, wanted: Wanted, quarantine: str | None) -> tuple[list[Clip], list[LeftOut]]:
        records = find_records(self.data_dir, self.format)
        wanted = replace(wanted, quarantine=read_quarantine(quarantine, self.data_dir))
        if strays := wanted.quarantine.without_a_clip(records):
            text = "%s: %d names in the quarantine list are of no clip here: %s"
            _logger.warning(text, self.data_dir, len(strays), ", ".join(strays[:3]) + (", …" if strays[3:] else ""))
        clips: list[Clip] = []
        left_out: list[LeftOut] = []
        for answer in answer_all(partial(judge, wanted=wanted), records):
            if isinstance(answer, Clip):
                clips.append(answer)
            elif isinstance(answer, LeftOut):
                left_out.append(answer)
            else:
                left_out.append(LeftOut(Path(answer.item.name), "not readable", "storage gave no answer in time"))
        if not clips:
            raise UserError(
                f"no clip in {self.data_dir} can be used ({len(records)} found): {describe(left_out)}\n{_REMEDIES}"
            )
        self._tell(clips, left_out, len(records))
        return clips, left_out

    def _tell(self, clips: Sequence[Clip], left_out: Sequence[LeftOut], found: int) -> None:
        if left_out:
            text = "%s: %d of %d clips are used; left out: %s"
            _logger.warning(text, self.data_dir, len(clips), found, describe(left_out))
        if len(self.sizes) > 1:
            counts = Counter(clip.bucket for clip in clips)
            rows = [
                f"{counts[place]} of {size.frames} frames at {size.height}×{size.width}"
                for place, size in enumerate(self.sizes)
            ]
            _logger.info("%s: %s", self.data_dir, ", ".join(rows))


_REMEDIES = (
    "Too short: lower data.params.max_num_frames, or raise data.params.fps or max_pad_fraction. "
    "Without caption: write labels/NAME.txt (UTF-8), or set data.params.allow_missing_captions: true. "
    "Not readable: encode again, for example ffmpeg -i OLD -c:v libx264 -pix_fmt yuv420p NEW.mp4"
)
