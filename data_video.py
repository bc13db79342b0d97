# F frames, C channels, H W
"""What a batch is made of: clips from a folder, each with its caption.

A sample is `mp4` (F, C, H, W) float32 in [-1, 1], `txt` the caption, `num_frames` the real frames before padding, and
`fps` the frame rate that the clip is sampled at. Which videos count is decided once, at construction.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from cogvideox import parallel
from cogvideox.data.checking import LISTED_FILES, LeftOut, answer_all, describe
from cogvideox.data.folder import UnusableCaption, find_videos, read_caption
from cogvideox.data.reading import UnreadableVideo, read_frames, usable_span
from cogvideox.data.sampling import TEMPORAL_COMPRESSION, is_clip_length, largest_clip_length, shortest_clip_length
from cogvideox.data.scaling import to_clip
from cogvideox.errors import UserError

_logger = logging.getLogger(__name__)

SIDE_MULTIPLE = 16


@dataclass(frozen=True)
class Clip:
    """A checked video: where its sample starts (seconds), and how many real frames it has."""

    video: Path
    caption: str
    start_s: float
    frame_count: int


class SFTDataset(Dataset[dict[str, Any]]):
    """The clips of `data_dir`: `videos/NAME.mp4` with `labels/NAME.txt`, nested or not, or `NAME.txt` beside the video.

    `video_size` is (H, W) in pixels; `fps` the wanted frame rate; `max_num_frames` (4k+1) the frames of every sample.
    `skip_frms_num` frames of the source are ignored at both ends (transitions). A clip with fewer frames gives the
    largest 4k+1 that it has and repeats its last one up to `max_num_frames`; where that would be more than
    `max_pad_fraction` of the sample, the clip is too short. Clips that cannot be used are named in the log and left
    out (`left_out`). A caption that is missing, empty or not UTF-8 counts as such, unless `allow_missing_captions`
    has these clips trained with the empty caption.

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
    ) -> None:
        super().__init__()
        _check_parameters(video_size, fps, max_num_frames, skip_frms_num, max_pad_fraction)
        self.data_dir = Path(data_dir)
        self.video_size = (int(video_size[0]), int(video_size[1]))
        self.fps = fps
        self.max_num_frames = max_num_frames
        self.skip_frms_num = int(skip_frms_num)
        self.max_pad_fraction = max_pad_fraction
        self.allow_missing_captions = allow_missing_captions
        self.clips: list[Clip]
        self.left_out: list[LeftOut]
        # One rank looks, so that all train on the same clips whatever a storage answers to the others.
        self.clips, self.left_out = parallel.current().world.on_first(self._check_folder)
        self._failures: dict[int, LeftOut] = {}

    @classmethod
    def create_dataset_function(cls, path: str, args: Any, **kwargs: Any) -> SFTDataset:  # noqa: ARG003
        """The data set for `path`, as SAT asks for it; `kwargs` are `data.params`."""
        return cls(data_dir=path, **kwargs)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample `index`; where its file no longer decodes, the next one that does. A function of `index` alone."""
        if not -len(self.clips) <= index < len(self.clips):
            raise IndexError(index)
        position = index % len(self.clips)
        while (frames := self._read(position)) is None:
            position = (position + 1) % len(self.clips)
        clip = self.clips[position]
        return {
            "mp4": to_clip(frames, self.max_num_frames),
            "txt": clip.caption,
            "num_frames": clip.frame_count,
            "fps": self.fps,
        }

    def _read(self, position: int) -> np.ndarray | None:
        """uint8 frames (F, H, W, 3) of a clip; None where it does not decode, now or when it was tried before."""
        if position in self._failures:
            return None
        clip = self.clips[position]
        try:
            return read_frames(clip.video, clip.start_s, self.fps, clip.frame_count, self.video_size)
        except UnreadableVideo as error:
            failure = LeftOut(clip.video, "do not decode", str(error))
        self._failures[position] = failure
        if len(self._failures) <= LISTED_FILES:
            _logger.warning("%s %s: another clip takes its place", failure.video, failure.reason)
        if len(self._failures) > len(self.clips) / 2:
            raise UserError(
                f"more than half of the {len(self.clips)} clips in {self.data_dir} do not decode: "
                f"{describe(list(self._failures.values()))}\nReplace these files or take them out of the folder."
            )
        return None

    def _check_folder(self) -> tuple[list[Clip], list[LeftOut]]:
        clips: list[Clip] = []
        left_out: list[LeftOut] = []
        if not self.data_dir.is_dir():
            what = "is not a folder" if self.data_dir.exists() else "does not exist"
            raise UserError(f"the data folder {self.data_dir} {what} (args.train_data, args.valid_data): {_LAYOUT}")
        videos = find_videos(self.data_dir)
        if not videos:
            raise UserError(f"the data folder {self.data_dir} holds no .mp4 file (subfolders too): {_LAYOUT}")
        for answer in answer_all(self._check_clip, videos):
            if isinstance(answer, Clip):
                clips.append(answer)
            elif isinstance(answer, LeftOut):
                left_out.append(answer)
            else:
                left_out.append(LeftOut(answer.item, "not readable", "storage gave no answer in time"))
        if not clips:
            raise UserError(
                f"no clip in {self.data_dir} can be used ({len(videos)} found): {describe(left_out)}\n{_REMEDIES}"
            )
        if left_out:
            _logger.warning(
                "%s: %d of %d clips are used; left out: %s",
                *(self.data_dir, len(clips), len(videos), describe(left_out)),
            )
        return clips, left_out

    def _check_clip(self, video: Path) -> Clip | LeftOut:
        """Look at one video (relative to the data folder) and its caption, without decoding."""
        try:
            span = usable_span(self.data_dir / video, self.skip_frms_num)
        except UnreadableVideo as error:
            return LeftOut(video, "not readable", str(error))
        available = span.frame_count(self.fps)
        frame_count = min(self.max_num_frames, largest_clip_length(available))
        needed = shortest_clip_length(self.max_num_frames, self.max_pad_fraction)
        if frame_count < needed:
            reason = f"is too short: {available} frames at {self.fps} fps without {self.skip_frms_num} at both ends"
            return LeftOut(video, "too short", f"{reason}; at least {needed} are needed")
        try:
            caption = read_caption(self.data_dir, video)
        except UnusableCaption as error:
            if not self.allow_missing_captions:
                return LeftOut(video, "without caption", str(error))
            caption = ""
        return Clip(self.data_dir / video, caption, span.start_s, frame_count)


_LAYOUT = "a data folder holds videos/NAME.mp4 and labels/NAME.txt, one caption a file"
_REMEDIES = (
    "Too short: lower data.params.max_num_frames, or raise data.params.fps or max_pad_fraction. "
    "Without caption: write labels/NAME.txt (UTF-8), or set data.params.allow_missing_captions: true. "
    "Not readable: encode again, for example ffmpeg -i OLD -c:v libx264 -pix_fmt yuv420p NEW.mp4"
)


def _check_parameters(
    video_size: Sequence[int], fps: int, max_num_frames: int, skip_frms_num: float, max_pad_fraction: float
) -> None:
    """Raise one UserError with everything that is wrong with the parameters."""
    faults = []
    if len(video_size) != 2 or any(side <= 0 or side % SIDE_MULTIPLE for side in video_size):
        near = [max(1, round(side / SIDE_MULTIPLE)) * SIDE_MULTIPLE for side in video_size]
        faults.append(
            f"data.params.video_size {list(video_size)}: give [height, width], both multiples of {SIDE_MULTIPLE} "
            f"(the VAE divides by 8, the transformer's patches by 2), for example {near}"
        )
    if fps <= 0:
        faults.append(f"data.params.fps {fps}: give a positive number of frames per second, for example 8")
    if not is_clip_length(max_num_frames):
        lower = largest_clip_length(max(1, max_num_frames))
        faults.append(
            f"data.params.max_num_frames {max_num_frames}: the VAE takes 4k+1 frames to k+1 latents; "
            f"use {lower} or {lower + TEMPORAL_COMPRESSION}"
        )
    if skip_frms_num < 0:
        faults.append(f"data.params.skip_frms_num {skip_frms_num}: give 0 or more frames")
    if not 0 <= max_pad_fraction < 1:
        faults.append(f"data.params.max_pad_fraction {max_pad_fraction}: give at least 0 and less than 1")
    if faults:
        raise UserError("\n".join(faults))
