"""Training from the cache. Truths: the losses of training without one (identity); what is stale is never used."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.runs import LORA, OPEN_GATES, QUICKSTART, ROOT, Run, train
from tests.end_to_end.tiny import train_tiny, write

CLIPS = QUICKSTART.parents[1] / "assets/quickstart/clips"
FEW = {"args": {"train_iters": 4}}


def checked(run: Run) -> Run:
    assert run.status == 0, run.output[-3000:]
    return run


def encoded(run: Run) -> tuple[int, int]:
    """How many clips and captions a run says that it encodes."""
    found = re.findall(r"encoding (\d+) clips and (\d+) captions", run.output)
    return sum(int(clips) for clips, _ in found), sum(int(captions) for _, captions in found)


@pytest.mark.parametrize(("ranks", "kind"), [(1, "full"), (2, "lora")])
def test_losses_are_those_without_a_cache_and_nothing_is_built_when_all_is_there(
    tmp_path: Path, ranks: int, kind: str
) -> None:
    changes = (FEW, *([LORA, OPEN_GATES] if kind == "lora" else []))
    flags = ("--seed", "5", "--allow-target", "tests")
    plain = checked(train(tmp_path / "plain", *changes, ranks=ranks, flags=flags))
    flags = (*flags, "--cache", str(tmp_path / "cache"))
    cold, warm = (checked(train(tmp_path / name, *changes, ranks=ranks, flags=flags)) for name in ("cold", "warm"))
    for run in (cold, warm):
        assert run.losses == pytest.approx(plain.losses, rel=1e-5)
    assert encoded(cold) == (6, 6) and encoded(warm) == (0, 0)
    assert "loading the T5 encoder" in cold.output and "loading the T5 encoder" not in warm.output
    spared = (
        "all 6 clips and 6 captions are there; the VAE (4.5 MB of weights) and the text encoder (0.4 MB) are not loaded"
    )
    assert (cold.output.count(spared), warm.output.count(spared)) == (1, 2)  # training and validation data are the same


def test_each_change_invalidates_what_it_concerns_and_nothing_else(tmp_path: Path) -> None:
    """Golden values: entries encoded after a byte of a clip or of the VAE, a caption, the frame rate changed."""
    data, vae = tmp_path / "data", tmp_path / "3d-vae.pt"
    shutil.copytree(CLIPS, data)
    shutil.copy(next(CLIPS.parent.glob("**/*vae*.pt")), vae)
    where = {
        "args": {"train_data": [str(data)], "valid_data": None, "train_iters": 1, "cache": str(tmp_path / "cache")},
        "model": {"first_stage_config": {"params": {"ckpt_path": str(vae)}}},
    }
    number = iter(range(100))

    def again(*changes: dict) -> tuple[int, int]:
        return encoded(checked(train(tmp_path / str(next(number)), where, *changes)))

    assert again() == (6, 6) and again() == (0, 0)
    clip = sorted((data / "videos").glob("*.mp4"))[0]
    clip.write_bytes(clip.read_bytes() + b"\0")
    assert again() == (1, 0)
    caption = sorted((data / "labels").glob("*.txt"))[0]
    caption.write_text("another one")
    assert again() == (0, 1)
    assert again({"data": {"params": {"fps": 4}}})[0] > 0
    assert again() == (0, 0)
    content = bytearray(vae.read_bytes())
    content[-1] ^= 1  # in the archive's last bytes, which torch does not read
    vae.write_bytes(content)
    assert again()[0] == 6


def test_evaluations_draw_from_what_is_kept(tmp_path: Path) -> None:
    changes = (FEW, {"args": {"eval_interval": 2, "eval_iters": 1, "strict_eval": False}})
    run = checked(train(tmp_path, *changes, flags=("--cache", str(tmp_path / "cache"))))
    assert len(list(run.folder.glob("video/samples_gs-*/*.mp4"))) > 0
    latents = checked(
        train(tmp_path / "l", *changes, flags=("--cache", str(tmp_path / "cache"), "--only-log-video-latents", "true"))
    )
    assert list(latents.folder.glob("video/latents/*/latent.pt"))


@pytest.mark.parametrize("name", ["cogvideox_5b_i2v", "cogvideox1.5_5b"])
def test_first_frames_and_padded_latents_come_from_the_cache_too(tmp_path: Path, name: str) -> None:
    """Invariant: a second run encodes nothing and gives the same; identity: without images, as without a cache."""
    task = "sft1.5" if "1.5" in name else "sft"
    every = {"log_interval": 1, "eval_interval": 3, "eval_iters": 1, "strict_eval": False}
    few = {"args": {"mode": "pretrain", "load": None, "train_iters": 3, **every}}
    files = [str(ROOT / f"configs/{each}.yaml") for each in (name, task)]
    words = ("--bf16", "false", "model.sampler_config.params.num_steps=2")

    def run(place: str, *more: str) -> Run:
        folder = tmp_path / place
        return checked(train_tiny(folder, *files, write(folder, "few", few), words=(*words, *more)))

    cache = ("--cache", str(tmp_path / "cache"))
    first, second = run("first", *cache), run("second", *cache)
    assert encoded(first) == (6, 6) and encoded(second) == (0, 0)
    assert second.losses == pytest.approx(first.losses, rel=1e-5)
    assert len(list(second.folder.glob("video/samples_gs-*/*.mp4"))) > 0
    if "i2v" not in name:
        assert first.losses == pytest.approx(run("plain").losses, rel=1e-5)


def test_random_windows_and_crops_are_a_few_that_are_kept(tmp_path: Path) -> None:
    random = {"data": {"params": {"window": "random", "crop": "random", "flip_probability": 0.5}}}
    flags = ("--cache", str(tmp_path / "cache"), "--cache-variants", "3")
    first, second = (checked(train(tmp_path / name, FEW, random, flags=flags)) for name in ("first", "second"))
    assert encoded(first) == (18, 6) and encoded(second) == (0, 0) and second.losses == first.losses
