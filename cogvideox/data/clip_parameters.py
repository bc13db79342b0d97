"""The parameters of a data set of clips, checked together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cogvideox.data.clips import ClipSize
from cogvideox.data.sampling import TEMPORAL_COMPRESSION, is_clip_length, largest_clip_length
from cogvideox.errors import UserError

SIDE_MULTIPLE = 16


def clip_sizes(
    video_size: Sequence[int], max_num_frames: int, buckets: Sequence[Sequence[int]] | None
) -> list[Sequence[int]]:
    """[frames, height, width] of the sizes that samples may have: one, or those of `buckets` in its place."""
    return [[max_num_frames, *video_size]] if buckets is None else [list(each) for each in buckets]


def checked_sizes(
    sizes: Sequence[Sequence[int]],
    has_buckets: bool,
    other_faults: Sequence[str],
    names: tuple[str, str] = ("video_size", "max_num_frames"),
) -> list[ClipSize]:
    """The sizes, each once. Raises one UserError with everything that is wrong with them, and `other_faults`.

    `names` are those of the two parameters that say a size where there are no buckets.
    """
    faults = [*_faults_of_sizes(sizes, has_buckets, names), *other_faults]
    if faults:
        raise UserError("\n".join(faults))
    return [ClipSize(*size) for size in dict.fromkeys(tuple(map(int, size)) for size in sizes)]


def _faults_of_sizes(sizes: Sequence[Sequence[int]], has_buckets: bool, names: tuple[str, str]) -> Iterator[str]:
    if not sizes:
        yield "data.params.buckets is empty: give [[frames, height, width], …], or leave it out"
    for place, size in enumerate(sizes):
        bucket = f"data.params.buckets[{place}]"
        of_sides, of_frames = (bucket,) * 2 if has_buckets else (f"data.params.{name}" for name in names)
        frames, *sides = size or [0]
        if len(sides) != 2:
            wanted, given = ("[frames, height, width]", list(size)) if has_buckets else ("[height, width]", sides)
            yield f"{of_sides} {given}: give {wanted}"
            continue
        if any(side <= 0 or side % SIDE_MULTIPLE for side in sides):
            near = [max(1, round(side / SIDE_MULTIPLE)) * SIDE_MULTIPLE for side in sides]
            yield (
                f"{of_sides} {sides}: give [height, width], both multiples of {SIDE_MULTIPLE} "
                f"(the VAE divides by 8, the transformer's patches by 2), for example {near}"
            )
        if not is_clip_length(frames):
            lower = largest_clip_length(max(1, frames))
            yield (
                f"{of_frames} {frames}: the VAE takes 4k+1 frames to k+1 latents; "
                f"use {lower} or {lower + TEMPORAL_COMPRESSION}"
            )


def faults_of_sampling(
    fps: int, skip_frms_num: float, max_pad_fraction: float, flip_probability: float, read_timeout_s: float
) -> list[str]:
    """Everything that is wrong with the other parameters."""
    faults = {
        f"data.params.fps {fps}: give a positive number of frames per second, for example 8": fps <= 0,
        f"data.params.skip_frms_num {skip_frms_num}: give 0 or more frames": skip_frms_num < 0,
        f"data.params.max_pad_fraction {max_pad_fraction}: give at least 0 and less than 1": not (
            0 <= max_pad_fraction < 1
        ),
        f"data.params.flip_probability {flip_probability}: it is a probability, give 0 to 1": not (
            0 <= flip_probability <= 1
        ),
        f"data.params.read_timeout_s {read_timeout_s}: give seconds above 0": read_timeout_s <= 0,
    }
    return [text for text, is_fault in faults.items() if is_fault]
