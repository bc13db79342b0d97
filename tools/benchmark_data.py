# F frames, H W
"""Time the reading of clips in turns with other readers. A part of tools/benchmark.py.

Every contestant gives the same F frames of a clip, scaled to cover H × W and cropped to the middle, as uint8
(F, H, W, 3): one clip at a time in one process, as a loader's worker does, with as many decoder threads as ours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from cogvideox.data.looking import VideoFacts, look_at
from cogvideox.data.reading import DECODER_THREADS, read_frames
from cogvideox.data.scaling import covering_size
from cogvideox.errors import UserError

SOURCE_RATES, KEYFRAME_S = (24, 30), 2
SOURCE_SIZE, CLIP_SECONDS = (720, 1280), 6.5
WANTED_FPS, SKIPPED_FRAMES = 8, 3
# A clip read from another place, or of other frames, is farther from ours than other filters are.
ALIKE_DB = 25.0
REFERENCE = "reference"


@dataclass(frozen=True)
class Job:
    """One sample: F frames of a file, `indices` those of its frames that are nearest to the wanted times."""

    path: Path
    start_s: float
    fps: float
    indices: tuple[int, ...]
    source_fps: int
    size: tuple[int, int]  # H, W wanted


Reader = Callable[[Job], np.ndarray]


def write_source(path: Path, rate: int, seed: int, size: tuple[int, int], seconds: float) -> None:
    """H.264 with B-frames: a texture that drifts, a square that crosses it, and noise that changes every frame."""
    random, (height, width) = np.random.default_rng(seed), size
    coarse = random.integers(30, 220, (height // 16, width // 8), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((32, 16), dtype=np.uint8))  # 2H × 2W
    noise = random.integers(0, 12, texture.shape, dtype=np.uint8)
    with av.open(str(path), "w", format="mp4") as container:
        options = {"crf": "23", "preset": "veryfast", "sc_threshold": "0", "threads": "2"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.gop_size, stream.max_b_frames = rate * KEYFRAME_S, 3
        for number in range(round(seconds * rate)):
            across, down = int(60 * number / rate) % width, int(25 * number / rate) % height
            top, left = random.integers(0, height), random.integers(0, width)
            plane = texture[down : down + height, across : across + width] + noise[top:, left:][:height, :width]
            side, at = height // 4, int(width / seconds * number / rate)
            plane[side : 2 * side, at : at + side] = 235
            colours = 128 + (plane[::2, ::2] >> 3)
            planes = [plane.ravel(), colours.ravel(), (255 - colours).ravel()]
            picture = np.concatenate(planes).astype(np.uint8).reshape(height * 3 // 2, width)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))


def job_of(path: Path, rate: int, frames: int, size: tuple[int, int], draw: float, facts: VideoFacts) -> Job:
    """The sample that starts `draw` (0 to 1) of the way from the first possible place to the last."""
    possible = facts.span.frame_count(WANTED_FPS)
    if possible < frames:
        raise UserError(f"{frames} frames at {WANTED_FPS} fps do not fit into {path.name} ({possible}): lower --frames")
    start = facts.span.start_s + draw * (possible - frames) / WANTED_FPS
    indices = np.ceil((start + np.arange(frames) / WANTED_FPS) * rate - 0.5 - 1e-6).astype(int)
    return Job(path, start, WANTED_FPS, tuple(indices.tolist()), rate, size)


def ours(job: Job) -> np.ndarray:
    """The reader of a data set, after `look_at`."""
    return read_frames(job.path, job.start_s, job.fps, len(job.indices), job.size)


def reference(job: Job) -> np.ndarray:
    """Every frame from the first wanted to the last to full-size RGB; those wanted are picked and resized then."""
    first, last, pictures = job.indices[0], job.indices[-1], []
    with av.open(str(job.path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        stream.codec_context.thread_type, stream.codec_context.thread_count = "FRAME", DECODER_THREADS
        container.seek(round(Fraction(first, job.source_fps) / stream.time_base), stream=stream, backward=True)
        for frame in container.decode(stream):
            assert frame.pts is not None
            number = round(frame.pts * stream.time_base * job.source_fps)
            if first <= number <= last:
                pictures.append(frame.to_ndarray(format="rgb24"))
            if number >= last:
                break
    whole = torch.from_numpy(np.stack(pictures))
    return resized(whole[torch.tensor(job.indices) - first], job.size)


def decord(job: Job) -> np.ndarray:
    """decord's `get_batch` of the wanted frames, scaled by its own reader as it decodes."""
    import decord

    height, width = covering_size(*SOURCE_SIZE, job.size)
    video = decord.VideoReader(str(job.path), decord.cpu(0), width=width, height=height, num_threads=DECODER_THREADS)
    return cropped(video.get_batch(list(job.indices)).asnumpy(), job.size)


def decord_full_size(job: Job) -> np.ndarray:
    """decord's `get_batch` of the wanted frames, resized by torch."""
    import decord

    video = decord.VideoReader(str(job.path), decord.cpu(0), num_threads=DECODER_THREADS)
    return resized(torch.from_numpy(video.get_batch(list(job.indices)).asnumpy()), job.size)


def torchcodec(job: Job) -> np.ndarray:
    """torchcodec's `get_frames_at` without a scan of the file first (`approximate`, for speed), resized by torch."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(
        str(job.path), dimension_order="NHWC", num_ffmpeg_threads=DECODER_THREADS, seek_mode="approximate"
    )
    return resized(decoder.get_frames_at(list(job.indices)).data, job.size)


def resized(frames: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """uint8 (F, h, w, 3) → (F, H, W, 3): bicubic with antialiasing, cropped to the middle."""
    covering = covering_size(frames.shape[1], frames.shape[2], size)
    planes = frames.permute(0, 3, 1, 2)  # torch keeps the order in memory, for which it has fast code
    scaled = torch.nn.functional.interpolate(planes, covering, mode="bicubic", antialias=True)
    return cropped(scaled.permute(0, 2, 3, 1).numpy(), size)


def cropped(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle H × W of uint8 frames (F, h, w, 3)."""
    top, left = ((length - wanted) // 2 for length, wanted in zip(frames.shape[1:3], size, strict=True))
    return frames[:, top : top + size[0], left : left + size[1]]


PEERS: dict[str, Reader] = {"decord": decord, "decord_full_size": decord_full_size, "torchcodec": torchcodec}


def contestants(job: Job) -> tuple[dict[str, Reader], dict[str, str]]:
    """Those that read `job` here, and why the others do not: missing, or their libraries do not load."""
    readers: dict[str, Reader] = {"ours": ours, REFERENCE: reference}
    skipped = {}
    for name, reader in PEERS.items():
        try:
            reader(job)
        except (ImportError, OSError, RuntimeError) as error:
            lines = str(error).strip().splitlines() or [""]
            skipped[name] = f"{type(error).__name__}: {lines[0]}"
        else:
            readers[name] = reader
    return readers, skipped


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """The peak signal-to-noise ratio of uint8 frames."""
    squared = np.square(a.astype(np.float32) - b.astype(np.float32)).mean(dtype=np.float64)
    return float(10 * np.log10(255**2 / max(squared, 1e-9)))


def time_in_turns(jobs: list[Job], readers: dict[str, Reader], runs: int) -> dict[str, Any]:
    """A B C A B C …, each through all clips, after a warm-up that compares the frames with ours."""
    alike = {name: min(decibels(ours(job), reader(job)) for job in jobs[:2]) for name, reader in readers.items()}
    if wrong := {name: round(value, 1) for name, value in alike.items() if value < ALIKE_DB}:
        raise UserError(f"other frames than ours: {wrong} dB from them, below {ALIKE_DB}; nothing was timed")
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for run in range(runs + 1):
        for name, reader in readers.items():
            start = time.perf_counter()
            for job in jobs:
                reader(job)
            if run > 0:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: len(jobs) / statistics.median(taken) for name, taken in seconds.items()}
    result: dict[str, Any] = {
        name: {"clips_per_s": rates[name], "seconds": seconds[name], "db_from_ours": alike[name]} for name in readers
    }
    return result | {"ours_over": {name: rates["ours"] / rates[name] for name in readers if name != "ours"}}


def measure(paths: list[Path], frames: int, size: tuple[int, int], window: str, runs: int) -> dict[str, Any]:
    """One result: samples of `frames` frames from every file; `paths` have the rates of SOURCE_RATES in turns."""
    draws = np.random.default_rng(0).random(len(paths)) if window == "random" else np.zeros(len(paths))
    start = time.perf_counter()
    facts = [look_at(path, SKIPPED_FRAMES) for path in paths]
    look_s = (time.perf_counter() - start) / len(paths)
    jobs = [
        job_of(path, SOURCE_RATES[number % 2], frames, size, float(draws[number]), facts[number])
        for number, path in enumerate(paths)
    ]
    readers, skipped = contestants(jobs[0])
    settings = {"frames": frames, "size": list(size), "fps": WANTED_FPS, "window": window, "clips": len(paths)}
    threads = {"decoder_threads": DECODER_THREADS, "torch_threads": torch.get_num_threads()}
    mib = sum(path.stat().st_size for path in paths) / 2**20
    about = settings | threads | {"source_mib": mib, "look_s_per_clip": look_s, "skipped": skipped}
    return about | time_in_turns(jobs, readers, runs)


def show(result: dict[str, Any]) -> None:
    """Print a result, line by line."""
    height, width = result["size"]
    threads = f"{result['decoder_threads']} decoder threads, {result['torch_threads']} of torch"
    title = f"{result['frames']} frames at {height}×{width}, {result['window']} window"
    print(f"{title}, {result['clips']} clips ({result['source_mib']:.0f} MiB), {threads}")
    print(
        f"  ours reads after looking at each file once: {1000 * result['look_s_per_clip']:.1f} ms a clip, not counted"
    )
    for name in ("ours", *result["ours_over"]):
        ratio = f"  ours is {result['ours_over'][name]:.2f}× as fast" if name in result["ours_over"] else ""
        print(f"  {name:16} {result[name]['clips_per_s']:7.2f} clips/s{ratio}")
    for name, reason in result["skipped"].items():
        print(f"  {name:16} skipped: {reason}")


def benchmark_data(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One result for each number of frames."""
    threads, results = torch.get_num_threads(), []
    torch.set_num_threads(1)  # as in a loader's worker
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark-data-") as name:
            paths = [Path(name) / f"{number:02}.mp4" for number in range(args.clips)]
            for number, path in enumerate(paths):
                write_source(path, SOURCE_RATES[number % 2], number, SOURCE_SIZE, CLIP_SECONDS)
            for frames in args.frames:
                results.append(measure(paths, frames, tuple(args.size), args.window, args.runs))
                show(results[-1])
    finally:
        torch.set_num_threads(threads)
    return results
