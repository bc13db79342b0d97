"""SFTDataset among others: what stands in for its clips, what a list leaves out of it, how ranks wait for it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from cogvideox.data.mixture import REPLACED, Mixture, collate
from cogvideox.data.order import Draw
from cogvideox.errors import UserError
from cogvideox.parallel import Group, Groups, install
from data_video import SFTDataset, VideoDataset
from tests.data.painted import damage_packets, even_times, write_painted
from tests.data.shard_files import sample as in_shard
from tests.data.shard_files import write_tar
from tests.test_data_video import SIZE, add_clip, numbers


def damage_middle(path: Path) -> None:
    """Spoil some pictures of a clip, so that samples from its beginning decode, and those from its middle do not."""
    damage_packets(path, slice(44, 48))


def test_stand_ins_are_the_same_whatever_the_workers_read_before(tmp_path: Path) -> None:
    """Identity: of a clip that is damaged at one place, each draw gives what a fresh process gives."""
    for name in "ab":
        write_painted(tmp_path / f"videos/{name}.mp4", even_times(16, 60), keyframe_interval=8)
        (tmp_path / f"videos/{name}.txt").write_text(f"caption {name}")
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9, skip_frms_num=0, window="random")
    damage_middle(tmp_path / "videos/a.mp4")
    draws = [Draw(0, epoch, 0) for epoch in range(12)]
    fresh = [pickle.loads(pickle.dumps(dataset)).sample(0, draw.rng()) for draw in draws]
    captions = [sample["txt"] for sample in fresh]
    assert captions.index("caption b") < len(captions) - captions[::-1].index("caption a") - 1, "good after replaced"
    for workers in (0, 1, 2):
        data = Mixture([(dataset, [0, 1])])
        batches = list(
            DataLoader(data, batch_sampler=[[each] for each in draws], num_workers=workers, collate_fn=collate)
        )
        assert [batch["txt"] for batch in batches] == [[caption] for caption in captions]
        assert [batch.get(REPLACED, []) for batch in batches] == [sample.get(REPLACED, []) for sample in fresh]
        assert all(torch.equal(batch["mp4"][0], sample["mp4"]) for batch, sample in zip(batches, fresh, strict=True))


def test_stand_ins_are_of_the_same_part_of_the_split(tmp_path: Path) -> None:
    """Golden values: no clip that is evaluated is trained on in another's place, nor the reverse."""
    for name in "abcde":
        add_clip(tmp_path, name)
    dataset = SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9)
    train, valid = Mixture([(dataset, [0, 2, 2, 4])]), Mixture([(dataset, [1, 3])])
    for name in "ade":
        (tmp_path / f"videos/{name}.mp4").unlink()
    assert [train[Draw(number, 0, 0)]["txt"][-1] for number in range(4)] == ["c"] * 4
    assert [valid[Draw(number, 0, 0)]["txt"][-1] for number in range(2)] == ["b"] * 2
    (tmp_path / "videos/c.mp4").unlink()
    with pytest.raises(UserError, match="3 do not decode"):
        train[Draw(1, 0, 0)]
    assert valid[Draw(0, 0, 0)]["txt"][-1] == "b"


def test_the_last_clip_of_a_size_is_stood_in_for_by_a_long_enough_one(tmp_path: Path) -> None:
    """Golden values: the stand-in has the size that the batch needs; one that would be too short for it has not."""
    for name, frames, size in (("a", 60, (64, 96)), ("b", 20, (96, 64)), ("c", 60, (96, 64))):
        write_painted(tmp_path / f"videos/{name}.mp4", even_times(16, frames), size=size)
        (tmp_path / f"videos/{name}.txt").write_text(name)
    buckets = [[17, 64, 96], [9, 96, 64]]
    dataset = SFTDataset(str(tmp_path), SIZE, 8, 17, skip_frms_num=0, max_pad_fraction=0.0, buckets=buckets)
    assert [clip.bucket for clip in dataset.clips] == [0, 1, 1]
    (tmp_path / "videos/a.mp4").unlink()
    sample = dataset[0]
    assert (sample["txt"], sample["num_frames"]) == ("c", 17) and sample["mp4"].shape == (17, 3, 64, 96)
    assert [name for name, *_ in sample[REPLACED]] == ["videos/a.mp4"]
    assert numbers(sample) == list(range(0, 34, 2)) and dataset[2]["mp4"].shape == (9, 3, 96, 64)


class Impatient(Group):
    def on_first(self, function: Any) -> Any:
        raise AssertionError("a GPU collective ends the run where it waits too long")


@pytest.fixture
def only_host_waits() -> Iterator[None]:
    before = install(Groups(world=Impatient()))
    yield
    install(before)


def test_the_ranks_wait_patiently_for_the_one_that_looks(tmp_path: Path, only_host_waits: None) -> None:
    """Identity: looking at much data, or at much of it on a slow storage, takes longer than a collective may."""
    add_clip(tmp_path, "a")
    assert len(SFTDataset(str(tmp_path), SIZE, fps=8, max_num_frames=9)) == 1
    shard = write_tar(tmp_path / "one.tar", in_shard("a", (tmp_path / "videos/a.mp4").read_bytes()))
    assert len(VideoDataset(str(shard), SIZE, num_frames=9, fps=8)) == 1


def test_a_list_of_one_folder_leaves_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Golden values: names count in the folder that the list is of, paths everywhere; all if that folder was moved."""
    for folder in ("one", "two"):
        for name in "abc":
            add_clip(tmp_path / folder, name)
    listed = tmp_path / "bad.txt"
    names = f"videos/a.mp4\tis dark\n{tmp_path}/two/videos/b.mp4\n"

    def used(folder: str) -> str:
        dataset = SFTDataset(str(tmp_path / folder), SIZE, 8, 9, quarantine=str(listed))
        return "".join(clip.caption[-1] for clip in dataset.clips)

    listed.write_text(f"# data: {tmp_path}/one\n{names}")
    assert (used("one"), used("two")) == ("bc", "ac") and "not there" not in caplog.text
    assert caplog.text.count(f"its names leave out nothing of {tmp_path}/two") == 1
    listed.write_text(names)
    assert (used("one"), used("two")) == ("bc", "c")
    listed.write_text(f"# data: {tmp_path}/gone\n{names}")
    assert used("two") == "c" and f"{tmp_path}/gone, which is not there" in caplog.text


def test_names_of_no_clip_in_a_list_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        add_clip(tmp_path, name)
    listed = tmp_path / "bad.txt"
    for text, strays in (("videos/a.mp4\n/elsewhere/c.mp4\n", 0), ("videos/a.mp4\nclips/nonsense.mp4\n", 1)):
        listed.write_text(text)
        caplog.clear()
        assert len(SFTDataset(str(tmp_path), SIZE, 8, 9, quarantine=str(listed)).clips) == 1
        assert caplog.text.count("are of no clip here: clips/nonsense.mp4") == strays
