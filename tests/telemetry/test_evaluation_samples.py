"""Truths: files and captions stand in the same order, later batches are numbered on, other splits have other names."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import torch

from cogvideox.telemetry.evaluation_samples import save_samples


def batch(*texts: str) -> dict:
    return {"txt": list(texts), "fps": torch.tensor([8] * len(texts))}


def clips(*values: float) -> dict[str, torch.Tensor]:
    return {"samples": torch.stack([torch.full((5, 3, 16, 16), value) for value in values])}


def brightness(path: Path) -> float:
    return imageio.imread(path).mean() / 127.5 - 1


def test_batches_of_one_evaluation_are_numbered_on_with_their_captions(tmp_path: Path) -> None:
    save_samples(clips(-0.5, 0.0), batch("dark", "gray\nwith a break"), tmp_path, 7)
    written = save_samples(clips(0.5), batch("bright"), tmp_path, 7, batch_number=1)
    assert written == {"samples": [tmp_path / "video/samples_gs-000007/000002.mp4"]}
    files = sorted((tmp_path / "video/samples_gs-000007").iterdir())
    assert [round(brightness(path), 1) for path in files] == [-0.5, 0.0, 0.5]
    assert (tmp_path / "video_texts/00000007").read_text().splitlines() == ["dark", "gray with a break", "bright"]


def test_a_test_evaluation_at_the_same_iteration_overwrites_nothing(tmp_path: Path) -> None:
    save_samples(clips(0.5), batch("seen"), tmp_path, 7)
    save_samples(clips(-0.5), batch("unseen"), tmp_path, 7, split="test")
    assert (tmp_path / "video_texts/00000007").read_text() == "seen\n"
    assert (tmp_path / "video_texts/test_00000007").read_text() == "unseen\n"
    assert brightness(tmp_path / "video/test_samples_gs-000007/000000.mp4") < 0


def test_captions_are_of_the_clips_that_are_shown(tmp_path: Path) -> None:
    save_samples(clips(0.0), batch("one", "two"), tmp_path, 1)
    assert (tmp_path / "video_texts/00000001").read_text() == "one\n"


def test_latents_are_saved_alone(tmp_path: Path) -> None:
    latents = torch.randn(2, 3, 16, 4, 6)
    assert save_samples({"latents": latents}, batch("a", "b"), tmp_path, 3) == {}
    path = tmp_path / "video/latents/latents_gs-000003/latent.pt"
    assert torch.equal(torch.load(path, weights_only=True), latents)
