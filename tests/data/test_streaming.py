"""Truths: an epoch has each sample of the shards once, whatever ranks and workers; shards are read, never unpacked."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cogvideox.data import streaming
from cogvideox.data.mixture import REPLACED, Mixture, collate
from cogvideox.data.order import Draw
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.streaming import VideoDataset
from cogvideox.errors import UserError
from tests.data.painted import numbers_in
from tests.data.shard_files import clip_bytes, sample, write_shards, write_tar

PARAMETERS: dict[str, Any] = {"image_size": [64, 96], "num_frames": 5, "fps": 8, "window": "first"}
RNG = np.random.default_rng(0)


def stream(path: object, **changes: Any) -> VideoDataset:
    return VideoDataset(str(path), **(PARAMETERS | changes))


def captions(dataset: VideoDataset) -> list[str]:
    return [dataset.sample(index, np.random.default_rng(0))["txt"] for index in range(len(dataset))]


def whole(item: Any) -> Any:
    return item


def test_a_sample_is_what_sft_dataset_gives(tmp_path: Path) -> None:
    """Identity: the same clip in a folder, and in a shard."""
    from data_video import SFTDataset

    video = clip_bytes(tmp_path, frames=20, fps=16)
    write_tar(tmp_path / "one.tar", sample("a", video, "a boat"))
    (tmp_path / "folder/videos").mkdir(parents=True)
    (tmp_path / "folder/labels").mkdir()
    (tmp_path / "folder/videos/a.mp4").write_bytes(video)
    (tmp_path / "folder/labels/a.txt").write_text("a boat")
    options: dict[str, Any] = {"window": "random", "crop": "random", "flip_probability": 0.5, "skip_frms_num": 2}
    shard = VideoDataset(str(tmp_path / "one.tar"), [48, 80], 5, 8, **options)
    folder = SFTDataset(str(tmp_path / "folder"), [48, 80], 8, 5, **options)
    for seed in range(3):
        ours, theirs = (each.sample(0, np.random.default_rng(seed)) for each in (shard, folder))
        assert torch.equal(ours.pop("mp4"), theirs.pop("mp4")) and ours == theirs


def test_frames_are_picked_by_time(tmp_path: Path) -> None:
    """Golden value: 16 frames a second at 8 are every second frame, after the two that are skipped."""
    write_tar(tmp_path / "one.tar", sample("a", clip_bytes(tmp_path, frames=20, fps=16)))
    mp4 = stream(tmp_path / "one.tar", skip_frms_num=2).sample(0, RNG)["mp4"]
    frames = ((mp4 + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert numbers_in(frames) == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_iterated_by_itself_an_epoch_has_each_sample_once(tmp_path: Path, workers: int) -> None:
    """Identity: in its order whatever the workers, and from any place on."""
    dataset = stream(write_shards(tmp_path / "shards"))
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=whole)
    epochs = []
    for epoch in (0, 1):
        dataset.start_at(epoch)
        epochs.append([each["txt"] for each in loader])
    assert [Counter(each) for each in epochs] == [Counter(captions(dataset))] * 2 and epochs[0] != epochs[1]
    dataset.start_at(1, given=4)
    rest = [each["txt"] for each in loader]
    assert rest == epochs[1][4:]


CAPTIONS = {
    "in the json": ({"a.json": b'{"caption": "it", "title": "other"}'}, {}, "it"),
    "under another key": ({"a.json": b'{"caption": "it", "title": "other"}'}, {"txt_key": "title"}, "other"),
    "in a member of that name": ({"a.title": b"mine", "a.json": b'{"title": "no"}'}, {"txt_key": "title"}, "mine"),
    "in the txt": ({"a.txt": b"\n plain \nsecond"}, {}, "plain"),
    "json without the key": ({"a.json": b'{"other": 1}', "a.txt": b"plain"}, {}, "plain"),
    "before the txt": ({"a.json": b'{"caption": "it"}', "a.txt": b"plain"}, {}, "it"),
    "allowed to be missing": ({}, {"allow_missing_captions": True}, ""),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_the_caption_is_under_txt_key(tmp_path: Path, case: str) -> None:
    members, options, wanted = CAPTIONS[case]
    write_tar(tmp_path / "one.tar", {"a.mp4": clip_bytes(tmp_path), **members})
    assert captions(stream(tmp_path / "one.tar", **options)) == [wanted]


def test_captions_from_the_list_beside_the_shard(tmp_path: Path) -> None:
    """Reference: SHARD.meta.jsonl, whose rows have a key and the `meta_names`."""
    video = clip_bytes(tmp_path)
    write_tar(tmp_path / "one.tar", {"a.mp4": video, "a.id": b"a", "b-$#%@&1.mp4": video, "b-$#%@&1.id": b"b"})
    rows = [{"key": "a", "long": "first"}, {"key": "b", "long": "second"}]
    (tmp_path / "one.meta.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nbroken\n")
    assert captions(stream(tmp_path / "one.tar", txt_key="long", meta_names=["long"])) == ["first", "second"]


def test_bad_samples_are_stood_in_for_and_told(tmp_path: Path) -> None:
    good = clip_bytes(tmp_path)
    members = {
        **sample("good", good),
        "mute.mp4": good,
        **sample("short", clip_bytes(tmp_path, frames=1)),
        **sample("broken", b"no video"),
        **sample("cut", good[: len(good) // 2]),
        "nothing.json": b'{"caption": "no video"}',
        **sample("quarantined", good),
    }
    path = write_tar(tmp_path / "one.tar", members)
    (tmp_path / "bad.txt").write_text(f"{path}/quarantined.mp4\treason\n")
    dataset = stream(path, quarantine=str(tmp_path / "bad.txt"), max_pad_fraction=0.0)
    assert {each.kind for each in dataset.left_out} == {"without video", "in quarantine"} and len(dataset) == 5
    assert REPLACED not in dataset.sample(0, RNG)
    stand_in = dataset.sample(1, RNG)
    assert stand_in["txt"] == "good"
    kinds = [(Path(name).name, kind) for name, kind, _ in stand_in[REPLACED]]
    assert kinds == [
        ("mute.mp4", "without caption"),
        ("short.mp4", "too short"),
        ("broken.mp4", "do not decode"),
        ("cut.mp4", "do not decode"),
    ]
    with pytest.raises(UserError, match="3 samples in a row.*3 do not decode"):
        stream(write_tar(tmp_path / "bad.tar", sample("a", b"x") | sample("b", b"") | sample("c", b"y"))).sample(0, RNG)


def test_stand_ins_are_the_same_whatever_was_read_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity: a clip of which the end is damaged is read again at the next draw, and stood in for in its part."""
    path = write_tar(
        tmp_path / "one.tar",
        {
            **sample("damaged", clip_bytes(tmp_path, frames=40)),
            **sample("other part", clip_bytes(tmp_path)),
            "mute.mp4": clip_bytes(tmp_path),
            **sample("good", clip_bytes(tmp_path)),
        },
    )
    read = streaming.read_frames

    def damaged(content: bytes, start_s: float, *args: Any) -> np.ndarray:
        if start_s > 2:
            raise UnreadableVideo("is damaged at 2.5 s")
        return read(content, start_s, *args)

    monkeypatch.setattr(streaming, "read_frames", damaged)
    dataset = stream(path, window="random")
    draws = [Draw(number % 2, number, 0) for number in range(16)]
    part = np.array([0, 2, 3])
    fresh = [stream(path, window="random").sample_of_part([0, 2][draw.sample], draw.rng(), part) for draw in draws]
    found = [each["txt"] for each in fresh]
    assert set(found[::2]) == {"damaged", "good"} and set(found[1::2]) == {"good"}
    assert found.index("good") < 15 - found[::-1].index("damaged"), "good after replaced"
    for workers in (0, 2):
        data, batches = Mixture([(dataset, [0, 2, 3])]), [[draw] for draw in draws]
        loader = DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=collate)
        for batch, alone in zip(loader, fresh, strict=True):
            assert torch.equal(batch["mp4"][0], alone["mp4"]) and batch.get(REPLACED) == alone.get(REPLACED)


def test_a_shards_names_lead_nowhere(tmp_path: Path) -> None:
    """Invariant: nothing is written, links are passed over, odd names spelled out; a damaged end costs its rest."""
    video, folder = clip_bytes(tmp_path), tmp_path / "shards"
    evil = sample("../../evil", video) | sample("/etc/evil", video) | sample("new\nline\x1b", video)
    write_tar(folder / "a.tar", evil)
    with tarfile.open(folder / "a.tar", "a") as tar:
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    cut = write_tar(folder / "b.tar", sample("whole", video) | sample("lost", video))
    with tarfile.open(cut) as tar:
        place = tar.getmember("lost.mp4").offset_data
    cut.write_bytes(cut.read_bytes()[: place + 100])
    (folder / "c.tar").write_bytes(b"not a tar" * 100)
    before = sorted(path for path in tmp_path.rglob("*"))
    dataset = stream(folder)
    assert captions(dataset)[:4] == ["../../evil", "/etc/evil", "new\nline\x1b", "whole"]
    names = [shard.name_of(row) for shard in dataset.shards for row in range(len(shard.names))]
    assert all(name.isprintable() for name in names) and not any("link" in name for name in names)
    assert {each.video.name for each in dataset.left_out} >= {"b.tar", "c.tar"}
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "evil.mp4").exists()


def test_sizes_in_headers_are_not_believed(tmp_path: Path) -> None:
    video = clip_bytes(tmp_path)
    lie = tarfile.TarInfo("z.mp4")
    lie.size = 1 << 70
    path, content = tmp_path / "a.tar", io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in sample("a", video).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    path.write_bytes(content.getvalue()[:end] + lie.tobuf(tarfile.GNU_FORMAT))
    dataset = stream(path)
    assert captions(dataset) == ["a"] and "damaged" in dataset.left_out[0].reason
