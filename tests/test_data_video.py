"""SFTDataset: what a sample is, which clips count, and what happens to the others."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cogvideox.data import clips
from cogvideox.data.mixture import REPLACED
from cogvideox.data.order import Draw
from cogvideox.errors import UserError
from data_video import SFTDataset
from tests.data.painted import even_times, numbers_in, write_painted

SIZE = (64, 96)


def add_clip(folder: Path, name: str, frames: int = 40, fps: float = 16, caption: str | bytes | None = "") -> None:
    write_painted(folder / "videos" / f"{name}.mp4", even_times(fps, frames))
    (folder / "labels").mkdir(exist_ok=True)
    if caption is not None:
        text = caption if isinstance(caption, bytes) else (caption or f"caption {name}").encode()
        (folder / "labels" / f"{name}.txt").write_bytes(text)


def numbers(sample: dict[str, object]) -> list[int]:
    """The painted numbers of a sample's frames."""
    clip = sample["mp4"]
    assert isinstance(clip, torch.Tensor)
    return numbers_in(((clip + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


def test_sample(tmp_path: Path) -> None:
    """Golden values: frames of a 16 fps source at 8 fps after skipping 3, float32 in [-1, 1], every time the same."""
    add_clip(tmp_path, "a")
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9, skip_frms_num=3)
    sample = dataset[0]
    assert sample["mp4"].shape == (9, 3, *SIZE) and sample["mp4"].dtype == torch.float32
    assert sample["mp4"].min() >= -1 and sample["mp4"].max() <= 1
    assert (sample["txt"], sample["num_frames"], sample["fps"]) == ("caption a", 9, 8)
    assert numbers(sample) == list(range(3, 21, 2))
    assert torch.equal(dataset[0]["mp4"], sample["mp4"]) and torch.equal(dataset[-1]["mp4"], sample["mp4"])
    with pytest.raises(IndexError):
        dataset[1]


@pytest.mark.parametrize(("frames", "real"), [(40, 17), (32, 13), (26, 13), (24, 9), (17, 9), (16, None), (4, None)])
def test_short_clips_are_padded_within_the_fraction(tmp_path: Path, frames: int, real: int | None) -> None:
    """Golden values: 8 of 17 padded frames are within one half, 12 of 17 are not; real frames are 4k+1."""
    add_clip(tmp_path, "long", frames=60)
    add_clip(tmp_path, "test", frames=frames)
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=17, skip_frms_num=0)
    assert len(dataset) == (1 if real is None else 2)
    if real is None:
        assert "too short" in dataset.left_out[0].reason and "at least 9" in dataset.left_out[0].reason
        return
    sample = dataset[1]
    assert sample["mp4"].shape[0] == 17 and sample["num_frames"] == real
    assert numbers(sample) == [2 * k for k in range(real)] + [2 * (real - 1)] * (17 - real)


def test_every_kind_of_bad_file_is_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Golden value: the list of the bad-input section, one good clip among them."""
    add_clip(tmp_path, "good")
    add_clip(tmp_path, "short", frames=10)
    add_clip(tmp_path, "cut")
    os.truncate(tmp_path / "videos/cut.mp4", 1500)
    for name, content in {"empty": b"", "text": b"not a video\n" * 50}.items():
        add_clip(tmp_path, name)
        (tmp_path / f"videos/{name}.mp4").write_bytes(content)
    add_clip(tmp_path, "silent", caption=None)
    add_clip(tmp_path, "blank", caption="\n\n")
    add_clip(tmp_path, "latin", caption=b"caf\xe9")
    with caplog.at_level(logging.WARNING):
        dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9)
    assert [clip.caption for clip in dataset.clips] == ["caption good"]
    reasons = {each.video.stem: each.reason for each in dataset.left_out}
    expected = {
        "short": "is too short",
        "cut": "is truncated",
        "empty": "is empty",
        "text": "cannot be read as a video",
        "silent": "caption missing",
        "blank": "is empty",
        "latin": "not UTF-8",
    }
    assert reasons.keys() == expected.keys()
    assert all(text in reasons[name] for name, text in expected.items())
    assert "1 of 8 clips are used" in caplog.text and all(f"videos/{name}.mp4" in caplog.text for name in expected)
    assert "3 without caption, 3 not readable, 1 too short" in caplog.text

    lenient = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9, allow_missing_captions=True)
    assert {clip.video.stem: clip.caption for clip in lenient.clips} == {
        "good": "caption good",
        "silent": "",
        "blank": "",
        "latin": "",
    }


def test_nothing_usable_is_one_error_with_remedies(tmp_path: Path) -> None:
    add_clip(tmp_path, "short", frames=10)
    add_clip(tmp_path, "silent", caption=None)
    with pytest.raises(UserError) as caught:
        SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9)
    for text in ("videos/short.mp4: is too short", "videos/silent.mp4: caption missing", "allow_missing_captions"):
        assert text in str(caught.value)


def test_folder_missing_or_without_videos(tmp_path: Path) -> None:
    for path, what in [
        (tmp_path / "none", "does not exist"),
        (tmp_path, "holds no .mp4"),
        (Path(__file__), "is not a"),
    ]:
        with pytest.raises(UserError, match=what) as caught:
            SFTDataset(str(path), SIZE, fps=8, max_num_frames=9)
        assert str(path) in str(caught.value)


def test_wrong_parameters_are_reported_together(tmp_path: Path) -> None:
    """Golden values: nearest right values are named; no file is looked at before."""
    with pytest.raises(UserError) as caught:
        SFTDataset(str(tmp_path), [60, 96], fps=0, max_num_frames=48, skip_frms_num=-1, max_pad_fraction=1.0)
    for text in ("[64, 96]", "data.params.fps 0", "45 or 49", "skip_frms_num -1", "max_pad_fraction 1.0"):
        assert text in str(caught.value)


def damage(path: Path) -> None:
    """Make a file that was whole when it was checked undecodable: the index stays, the pictures are gone."""
    content = path.read_bytes()
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])


def test_files_that_break_later_are_replaced_by_the_next(tmp_path: Path) -> None:
    """Identity: the sample of a broken file is that of the next good one, in any order of asking, and says so."""
    for name in "abcde":
        add_clip(tmp_path, name)
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9)
    damage(tmp_path / "videos/b.mp4")
    (tmp_path / "videos/e.mp4").unlink()
    samples = [dataset[index] for index in (0, 1, 2, 3, 4, 4)]
    assert [sample["txt"][-1] for sample in samples] == ["a", "c", "c", "d", "a", "a"]
    replaced = [[(name, kind) for name, kind, _ in sample.get(REPLACED, ())] for sample in samples]
    bad = {name: [(f"videos/{name}.mp4", "do not decode")] for name in "be"}
    assert replaced == [[], bad["b"], [], [], bad["e"], bad["e"]]
    for name in "acd":
        (tmp_path / f"videos/{name}.mp4").unlink()
    with pytest.raises(UserError, match=r"no clip of 9 frames at 64×96(.|\n)*c\.mp4"):
        dataset[2]


def test_a_file_that_gives_no_answer_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden values: a reader that never returns counts as a file that does not decode, and is not asked again."""
    for name in "ab":
        add_clip(tmp_path, name)
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9, read_timeout_s=0.2)
    read, hang, asked = clips.read_frames, threading.Event(), []

    def reader(path: Path, *args: Any) -> np.ndarray:
        asked.append(path.stem)
        return read(path, *args) if path.stem == "b" else np.zeros(hang.wait(60))

    monkeypatch.setattr(clips, "read_frames", reader)
    samples = [dataset[0], dataset[0]]
    hang.set()
    for sample in samples:
        assert sample["txt"] == "caption b" and "within 0.2 s" in sample[REPLACED][0][2]
    assert asked == ["a", "b", "b"]


@pytest.mark.parametrize("seed", range(4))
def test_random_windows_crops_and_mirrors_are_parts_of_the_clip(tmp_path: Path, seed: int) -> None:
    """Identity: what is drawn lies in the clip, is the same for the same draw, and differs between draws."""
    write_painted(tmp_path / "videos/a.mp4", even_times(16, 60), size=(64, 192))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("wide")
    options = {"window": "random", "crop": "random", "flip_probability": 0.5, "skip_frms_num": 0}
    dataset = SFTDataset(str(tmp_path), (64, 96), fps=8, max_num_frames=9, **options)
    draws = [Draw(0, epoch, seed) for epoch in range(8)]
    samples = [dataset.sample(0, draw.rng())["mp4"] for draw in draws]
    again = dataset.sample(0, draws[3].rng())["mp4"]
    assert torch.equal(samples[3], again)
    assert len({sample.numpy().tobytes() for sample in samples}) == 8
    whole = SFTDataset(str(tmp_path), (64, 192), fps=16, max_num_frames=57, skip_frms_num=0)[0]["mp4"]
    for sample in samples:
        parts = [
            (
                whole[:, :, :, left : left + 96].unsqueeze(0) - sample[:1, None].flip(-1)
                if mirrored
                else whole[:, :, :, left : left + 96].unsqueeze(0) - sample[:1, None]
            )
            for mirrored in (False, True)
            for left in range(0, 97, 2)
        ]
        assert min(float(part.abs().mean(dim=(0, 2, 3, 4)).min()) for part in parts) < 0.1


def test_buckets_take_the_nearest_aspect_and_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Golden values: a wide, an upright and a square clip, a long and a short one; the distribution is logged."""
    sizes = {"wide": (64, 128), "upright": (128, 64), "square": (64, 64), "short": (64, 128)}
    for name, size in sizes.items():
        write_painted(tmp_path / f"videos/{name}.mp4", even_times(16, 20 if name == "short" else 60), size=size)
        (tmp_path / f"videos/{name}.txt").write_text(name)
    buckets = [[17, 64, 128], [9, 64, 128], [17, 128, 64], [17, 64, 64]]
    with caplog.at_level(logging.INFO):
        dataset = SFTDataset(str(tmp_path), (64, 64), 8, 17, skip_frms_num=0, buckets=buckets)
    found = {clip.caption: dataset.sizes[clip.bucket] for clip in dataset.clips}
    assert {name: (size.frames, size.height, size.width) for name, size in found.items()} == {
        "wide": (17, 64, 128), "short": (9, 64, 128), "upright": (17, 128, 64), "square": (17, 64, 64),
    }  # fmt: skip
    for index, clip in enumerate(dataset.clips):
        size = found[clip.caption]
        assert dataset[index]["mp4"].shape == (size.frames, 3, size.height, size.width)
    assert "1 of 9 frames at 64×128" in caplog.text


def test_wrong_buckets_are_told_by_their_place(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        SFTDataset(str(tmp_path), SIZE, 8, 9, buckets=[[9, 64, 96], [10, 64, 96], [9, 60, 96], [9, 64]])
    for part in ("buckets[1] 10", "9 or 13", "buckets[2] [60, 96]", "buckets[3] [9, 64]: give [frames, height, width]"):
        assert part in str(caught.value)


def test_what_is_in_quarantine_is_left_out(tmp_path: Path) -> None:
    for name in "abc":
        add_clip(tmp_path, name)
    listed = tmp_path / "bad.txt"
    listed.write_text(f"# two of them\nvideos/a.mp4\tis dark\n{tmp_path}/videos/c.mp4\n")
    params = {"video_size": SIZE, "fps": 8, "max_num_frames": 9}
    dataset = SFTDataset.create_dataset_function(str(tmp_path), argparse.Namespace(quarantine=str(listed)), **params)
    assert [clip.caption for clip in dataset.clips] == ["caption b"]
    assert [each.kind for each in dataset.left_out] == ["in quarantine"] * 2
    with pytest.raises(UserError, match="--quarantine"):
        SFTDataset(str(tmp_path), SIZE, 8, 9, quarantine=str(tmp_path / "none.txt"))


def test_loader_with_spawned_workers_gives_the_same_batches(tmp_path: Path) -> None:
    """Identity: workers that are started afresh, and none, give the same batch; shapes as the contract says."""
    for name in "abcd":
        add_clip(tmp_path, name)
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9)
    assert pickle.loads(pickle.dumps(dataset)).clips == dataset.clips
    (plain,) = DataLoader(dataset, batch_size=4)
    (spawned,) = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    assert plain["mp4"].shape == (4, 9, 3, *SIZE)
    assert torch.equal(plain["mp4"], spawned["mp4"]) and plain["txt"] == spawned["txt"]
    assert plain["num_frames"].dtype == plain["fps"].dtype == torch.int64


def test_created_as_sat_does(tmp_path: Path) -> None:
    """Identity: the class method is the constructor with the path as folder."""
    add_clip(tmp_path, "a")
    params = {"video_size": [64, 96], "fps": 8, "max_num_frames": 9, "skip_frms_num": 3.0}
    dataset = SFTDataset.create_dataset_function(str(tmp_path), None, **params)
    assert isinstance(dataset, SFTDataset) and len(dataset) == 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_many_samples_leak_nothing(tmp_path: Path) -> None:
    """Identity: open files stay the same over 200 samples, resident memory nearly."""
    add_clip(tmp_path, "a")
    add_clip(tmp_path, "b")
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9)

    def usage(samples: int) -> tuple[int, float]:
        for index in range(samples):
            dataset[index % 2]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    files_before, mib_before = usage(50)
    files_after, mib_after = usage(200)
    assert files_after <= files_before
    assert mib_after - mib_before < 20


def test_quickstart_clips_give_whole_samples() -> None:
    """Golden value: the six shipped clips, without padding, whatever is skipped; captions and pictures distinct."""
    folder = Path(__file__).resolve().parents[1] / "assets/quickstart/clips"
    for skip in (0, 3):
        dataset = SFTDataset(str(folder), SIZE, fps=8, max_num_frames=9, skip_frms_num=skip)
        assert len({clip.caption for clip in dataset.clips}) == len(dataset) == 6 and not dataset.left_out
        assert [clip.frame_count for clip in dataset.clips] == [9] * 6
        clips = [dataset[index]["mp4"] for index in range(6)]
        for a, b in itertools.combinations(clips, 2):
            assert 10 * torch.log10(4 / (a - b).square().mean()) < 14, "two clips look alike"
