"""What an evaluation shows, written into the run's folder: videos, their captions, or latents."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.data.writing import write_video


def save_samples(
    videos: dict[str, Tensor],
    batch: dict[str, Any],
    folder: Path,
    iteration: int,
    batch_number: int = 0,
    split: str = "val",
) -> dict[str, list[Path]]:
    """Write `videos[key]` (B,F,3,H,W) in [-1, 1] to `video/<key>_gs-<iteration>/<i>.mp4`, captions to `video_texts/`.

    Latents go to `video/latents/latents_gs-<iteration>/latent.pt` (`latent-<k>.pt` for a later batch of the same
    evaluation). The videos of later batches are numbered on; names of a `split` other than `val` begin with it.
    Returns the mp4 files by key. Raises OSError where the disk is full or the folder gone.
    """
    prefix = "" if split == "val" else f"{split}_"
    shown = len(next(iter(videos.values())))
    _save_texts(batch["txt"][:shown], folder / "video_texts" / f"{prefix}{iteration:08d}", append=batch_number > 0)
    if "latents" in videos:
        path = folder / "video" / "latents" / f"{prefix}latents_gs-{iteration:06d}"
        path.mkdir(parents=True, exist_ok=True)
        name = "latent.pt" if batch_number == 0 else f"latent-{batch_number}.pt"
        buffer = io.BytesIO()  # torch's own writer hides a full disk behind a RuntimeError
        torch.save(videos["latents"].detach().cpu(), buffer)
        (path / name).write_bytes(buffer.getvalue())
        return {}
    fps = int(batch["fps"][0])
    written: dict[str, list[Path]] = {}
    for key, clips in videos.items():
        path = folder / "video" / f"{prefix}{key}_gs-{iteration:06d}"
        path.mkdir(parents=True, exist_ok=True)
        first = len(list(path.glob("*.mp4"))) if batch_number else 0
        files = [path / f"{first + place:06d}.mp4" for place in range(len(clips))]
        for clip, file in zip(clips.detach().float().cpu(), files, strict=True):
            write_video(file, clip, fps)
        written[prefix + key] = files
    return written


def _save_texts(texts: list[str], path: Path, append: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(" ".join(text.split()) + "\n" for text in texts)
