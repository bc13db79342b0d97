"""compare_samples on a run that the test makes: samples that are its clips with noise, or that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from cogvideox.data.writing import write_video
from data_video import SFTDataset
from tools import compare_samples
from tools.compare_samples import Verdict, psnr

PARAMS = {"video_size": [64, 96], "fps": 8, "max_num_frames": 9, "skip_frms_num": 0}
NOISE = 0.15


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clips of smooth random pictures, one caption with odd spaces."""
    folder = tmp_path / "data"
    (folder / "labels").mkdir(parents=True)
    for number, name in enumerate("abc"):
        coarse = torch.rand(12, 3, 4, 6, generator=torch.Generator().manual_seed(number)) * 2 - 1
        write_video(folder / "videos" / f"{name}.mp4", torch.nn.functional.interpolate(coarse, size=(64, 96)), 8)
        (folder / "labels" / f"{name}.txt").write_text(f"the  clip {name}\n")
    return folder


def make_run(data: Path, order: list[int], last_loss: float = 0.1) -> Path:
    """A finished run's folder: evaluation at 10 (bad) and at 20, where sample i is clip `order[i]` with noise."""
    run = data.parent / "run"
    (run / "video_texts").mkdir(parents=True)
    config = {"args": {"train_data": [str(data)]}, "data": {"target": "data_video.SFTDataset", "params": PARAMS}}
    (run / "training_config.yaml").write_text(yaml.safe_dump(config))
    dataset = SFTDataset(str(data), **PARAMS)
    generator = torch.Generator().manual_seed(1)
    for iteration, shift in ((10, 1), (20, 0)):
        captions = [" ".join(clip.caption.split()) for clip in dataset.clips]
        (run / "video_texts" / f"{iteration:08d}").write_text("\n".join(captions) + "\n")
        for place, number in enumerate(order):
            clip = dataset[(number + shift) % 3]["mp4"]
            noisy = clip + NOISE * torch.randn(clip.shape, generator=generator)
            write_video(run / "video" / f"samples_gs-{iteration:06d}" / f"{place:06d}.mp4", noisy, 8, crf=5)
    lines: list[dict[str, object]] = [{"iteration": i, "loss": 1.0 if i < 10 else last_loss} for i in range(40)]
    lines.insert(20, {"iteration": 20, "split": "val", "loss": 99.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_good_run(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Identity: PSNR of noise of deviation 0.15 in a range of 2 is 22.5 dB (some is clamped or lost in coding)."""
    run = make_run(data, [0, 1, 2])
    picture = data.parent / "sheet.png"
    assert compare_samples.main([str(run), "--picture", str(picture)]) == 0
    output = capsys.readouterr().out
    assert "matching captions  3 of 3" in output and "1.0000 → 0.1000, ratio 0.100" in output
    for comparison in compare_samples.compare_run(run, []):
        assert comparison.is_match and comparison.psnr_own is not None and comparison.psnr_next is not None
        assert 22 < comparison.psnr_own < 27
        assert comparison.psnr_next < 12
    with Image.open(picture) as sheet:
        assert sheet.width == 2 * 4 * 192 + 36
    assert compare_samples.main([str(run), "--min-psnr", "35"]) == 1
    assert compare_samples.main([str(run), "--data", str(data)]) == 0


def test_swapped_samples_do_not_match(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Identity: with two samples swapped, two captions are nearest to the other's clip."""
    run = make_run(data, [1, 0, 2])
    assert compare_samples.main([str(run)]) == 1
    assert "matching captions  1 of 3" in capsys.readouterr().out
    first = compare_samples.compare_run(run, [])[0]
    assert first.nearest.name == "b" and first.own is not None and first.own.name == "a"


def test_loss_must_halve(data: Path) -> None:
    """Golden values: the first four and the last four of forty training lines; evaluations do not count."""
    run = make_run(data, [0, 1, 2], last_loss=0.51)
    assert compare_samples.loss_ends(run) == pytest.approx((1.0, 0.51))
    assert compare_samples.main([str(run)]) == 1
    assert not Verdict(3, 3, 30.0, 1.0, float("nan")).passes(18)


def test_what_is_missing_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(data, [0, 1, 2])
    (run / "metrics.jsonl").unlink()
    assert compare_samples.main([str(run)]) == 2
    (run / "video_texts" / "00000020").write_text("one line\n")
    assert compare_samples.main([str(run)]) == 2
    (run / "training_config.yaml").unlink()
    assert compare_samples.main([str(run)]) == 2
    errors = capsys.readouterr().err
    assert "metrics.jsonl" in errors and "00000020" in errors and "training_config.yaml" in errors


def test_psnr() -> None:
    """Golden values: a constant difference of a tenth of the range is 20 dB; none at all is infinite."""
    clip = torch.zeros(2, 3, 4, 4)
    assert psnr(clip, clip + 0.2) == pytest.approx(20.0)
    assert psnr(clip, clip) == float("inf")
