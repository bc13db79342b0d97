# F frames, C channels, H W
"""What a batch is made of: clips with their captions.

A sample is `mp4` (F, C, H, W) float32 in [-1, 1], `txt` the caption, `num_frames` the real frames before padding, and
`fps` the frame rate that the clip is sampled at. Which clips count is decided once, at construction.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from cogvideox import parallel
from cogvideox.data.checking import LeftOut, answer_all, describe
from cogvideox.data.clip_parameters import checked_sizes, clip_sizes, faults_of_sampling
from cogvideox.data.clips import Choices, Clip, ClipSize, look, read_clip
from cogvideox.data.mixture import REPLACED, DrawnDataset
from cogvideox.data.quarantine import read_quarantine
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.records import WITHOUT_CAPTION, Record, find_records
from cogvideox.data.scaling import to_clip
from cogvideox.data.streaming import VideoDataset
from cogvideox.errors import UserError

__all__ = ["SFTDataset", "VideoDataset"]

T = TypeVar("T")

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
    within `read_timeout_s`, is replaced by the next one of its size.

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
        self.allow_missing_captions = allow_missing_captions
        self.window, self.crop, self.flip_probability = window, crop, flip_probability
        self.read_timeout_s = read_timeout_s
        self._quarantine = read_quarantine(quarantine)
        self.clips: list[Clip]
        self.left_out: list[LeftOut]
        # One rank looks, so that all train on the same clips whatever a storage answers to the others.
        self.clips, self.left_out = parallel.current().world.on_first(self._look_at_all)
        self._least_weight = min(clip.record.weight for clip in self.clips)
        self._failures: dict[int, LeftOut] = {}

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
        return self._sample(index % len(self.clips), Choices())

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sample `index` with the choices that `rng` makes, as far as the parameters leave any."""
        return self._sample(index, self.choices(rng))

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

    def first_of_its_size(self, index: int, find: Callable[[int], T | None]) -> T:
        """`find` of sample `index`, or of the next one of its size for which it finds anything. UserError: of none."""
        for step in range(len(self.clips)):
            position = (index + step) % len(self.clips)
            if self.clips[position].bucket == self.clips[index].bucket and (found := find(position)) is not None:
                return found
        size = self.size_of(index)
        raise UserError(
            f"no clip of {size.frames} frames at {size.height}×{size.width} in {self.data_dir} can be read any more: "
            f"{describe(list(self._failures.values()))}\nReplace these files or take them out of the data."
        )

    def read(self, index: int, choices: Choices) -> np.ndarray:
        """The uint8 frames (F, H, W, 3) of a sample, F of them real. Raises UnreadableVideo."""
        clip, size = self.clips[index], self.size_of(index)
        return read_clip(clip, size, self.fps, choices, self.flip_probability, self.read_timeout_s)

    def _sample(self, index: int, choices: Choices) -> dict[str, Any]:
        replaced: list[tuple[str, str, str]] = []

        def made(position: int) -> dict[str, Any] | None:
            frames = self._read(position, choices)
            if frames is None:
                failure = self._failures[position]
                replaced.append((str(failure.video), failure.kind, failure.reason))
                return None
            clip = self.clips[position]
            mp4 = to_clip(frames, self.size_of(position).frames)
            return {"mp4": mp4, "txt": clip.caption, "num_frames": clip.frame_count, "fps": self.fps}

        sample = self.first_of_its_size(index, made)
        return sample | ({REPLACED: replaced} if replaced else {})

    def _read(self, position: int, choices: Choices) -> np.ndarray | None:
        """The frames of a clip; None where it does not decode, now or when it was tried before."""
        if position in self._failures:
            return None
        try:
            return self.read(position, choices)
        except UnreadableVideo as error:
            name = Path(self.clips[position].record.name)
            self._failures[position] = LeftOut(name, "do not decode", str(error))
            return None

    def _look_at_all(self) -> tuple[list[Clip], list[LeftOut]]:
        records = find_records(self.data_dir, self.format)
        clips: list[Clip] = []
        left_out: list[LeftOut] = []
        for answer in answer_all(self._look, records):
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

    def _look(self, record: Record) -> Clip | LeftOut:
        if self._quarantine.names(record):
            return LeftOut(Path(record.name), "in quarantine", "is named in the list")
        if record.caption is None and record.kind != WITHOUT_CAPTION:
            return LeftOut(Path(record.name), record.kind, record.fault or "cannot be used")
        if record.weight <= 0:
            return LeftOut(Path(record.name), "without weight", f"has weight {record.weight:g}")
        found = look(record, self.sizes, self.fps, self.skip_frames, self.max_pad_fraction)
        if isinstance(found, Clip) and record.caption is None and not self.allow_missing_captions:
            return LeftOut(Path(record.name), WITHOUT_CAPTION, record.fault or "has no caption")
        return found

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
