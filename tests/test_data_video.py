"""SFTDataset: what a sample is, which clips count, and what happens to the others."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

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
        "cut": "cannot be read as a video",
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


def test_files_that_break_later_are_replaced_by_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Identity: the sample of a broken file is that of the next good one, in any order of asking; one line per file."""
    for name in "abcde":
        add_clip(tmp_path, name)
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9)
    damage(tmp_path / "videos/b.mp4")
    (tmp_path / "videos/e.mp4").unlink()
    with caplog.at_level(logging.WARNING):
        order = [dataset[index]["txt"][-1] for index in range(5)] + [dataset[4]["txt"][-1]]
    assert order == ["a", "c", "c", "d", "a", "a"]
    assert len([record for record in caplog.records if "takes its place" in record.message]) == 2
    (tmp_path / "videos/c.mp4").unlink()
    with pytest.raises(UserError, match=r"more than half of the 5 clips(.|\n)*c\.mp4"):
        dataset[2]


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
