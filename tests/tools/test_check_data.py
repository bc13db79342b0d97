"""The data doctor: what it finds in each file, where it says so, and that training honours its list."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cogvideox.data.ledger import QUARANTINE_HEADER
from cogvideox.errors import UserError
from data_video import SFTDataset
from tests.data.painted import damage_packets, even_times, write_painted
from tools.check_data import default_out, main, pictures_of, share_of

ROOT = Path(__file__).resolve().parents[2]
PARAMS: dict[str, Any] = {"video_size": [64, 96], "fps": 8, "max_num_frames": 9, "skip_frms_num": 0}
OVERRIDES = [f"data.params.{key}={value}" for key, value in PARAMS.items()]
GOOD = ["videos/good.mp4", "videos/slow.mp4", "videos/twin.mp4"]
SCRIPT = "<script>alert(1)</script>"
TYPED = "=1+1 " + SCRIPT


def silent(_: Any = None) -> None:
    """Nobody listens."""


def add_clip(folder: Path, name: str, frames: int = 40, fps: float = 16, caption: bytes | None = b"a clip") -> Path:
    path = folder / "videos" / f"{name}.mp4"
    write_painted(path, even_times(fps, frames), keyframe_interval=8)
    (folder / "labels").mkdir(exist_ok=True)
    if caption is not None:
        (folder / "labels" / f"{name}.txt").write_bytes(caption)
    return path


def truncate(path: Path) -> None:
    """The first two thirds of a file that begins with its index."""
    write_painted(path, even_times(16, 40), container_options={"movflags": "faststart"})
    os.truncate(path, path.stat().st_size * 2 // 3)


def damage_middle(path: Path) -> None:
    """Bytes inside the middle packets, so that the index, the beginning and the end stay whole."""
    damage_packets(path, slice(18, 22))


def write_sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip.mp4", bytes(3000))


# Name → what is done to a good clip's file, the kind that it then is, and a part of the reason.
BREAK: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (truncate, "not readable", "is truncated"),
    "empty": (lambda path: path.write_bytes(b""), "not readable", "0 bytes"),
    "text": (lambda path: path.write_bytes(b"not a video\n" * 99), "not readable", "cannot be read"),
    "container": (write_zip, "not readable", "cannot be read"),
    "sound": (write_sound, "not readable", "no video stream"),
    "short": (lambda path: write_painted(path, even_times(16, 3)), "too short", "at least 5"),
    "uncaptioned": (silent, "without caption", "caption missing"),
    "blank": (silent, "without caption", "is empty"),
    "latin": (silent, "without caption", "not UTF-8"),
    "damaged": (damage_middle, "do not decode", "damaged at 1."),
}
CAPTIONS = {"uncaptioned": None, "blank": b" \n", "latin": b"caf\xe9"}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good clips, two of them the same pictures, and ten that are broken in ten ways."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    good = add_clip(folder, "good", caption=TYPED.encode())
    add_clip(folder, "slow", fps=5, frames=20, caption=("word " * 90).encode())
    add_clip(folder, "twin")
    with (
        av.open(str(good)) as source,
        av.open(str(folder / "videos/twin.mp4"), "w", options={"movflags": "faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        copy.metadata["title"] = "another file, the same pictures"
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    for name, (spoil, _, _) in BREAK.items():
        spoil(add_clip(folder, name, caption=CAPTIONS.get(name, b"a clip")))
    return folder


@pytest.fixture(scope="module")
def checked(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a check with the quickstart's tokenizer leaves."""
    out = tmp_path_factory.mktemp("out") / "check"
    base = ["--base", str(ROOT / "configs/quickstart.yaml")]
    assert main([str(broken), *base, "--out", str(out), "--workers", "2", "--max-bad", "80%", *OVERRIDES]) == 0
    return out


def ledger_of(out: Path) -> dict[str, dict[str, Any]]:
    lines = (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


@pytest.mark.parametrize("name", BREAK)
def test_each_kind_of_broken_file_is_named_everywhere(checked: Path, name: str) -> None:
    """Golden value: kind and reason of ten broken files in the ledger, on the page and in the list."""
    _, kind, reason = BREAK[name]
    entry = ledger_of(checked)[f"videos/{name}.mp4"]
    assert entry["kind"] == kind and reason in entry["reason"]
    assert f"<th>videos/{name}.mp4</th><td>{kind}: " in (checked / "index.html").read_text(encoding="utf-8")
    listed = dict(line.split("\t") for line in (checked / "quarantine.txt").read_text().splitlines()[2:])
    assert listed[f"videos/{name}.mp4"] == entry["reason"]


def test_training_with_the_list_leaves_exactly_the_bad_out(checked: Path, broken: Path) -> None:
    """Identity: what training uses with the list is what the ledger has no fault with; without it, one more."""
    listed = str(checked / "quarantine.txt")
    dataset = SFTDataset.create_dataset_function(str(broken), argparse.Namespace(quarantine=listed), **PARAMS)
    assert sorted(clip.record.name for clip in dataset.clips) == GOOD
    assert sorted(each.video.as_posix() for each in dataset.left_out) == sorted(f"videos/{name}.mp4" for name in BREAK)
    assert {each.kind for each in dataset.left_out} == {"in quarantine"}
    assert "videos/damaged.mp4" in [clip.record.name for clip in SFTDataset(str(broken), **PARAMS).clips]


def test_ledger_of_good_clips(checked: Path) -> None:
    """Golden values: rates, sizes, padding, tokens against the limit of 48, and the twin by its pictures."""
    ledger = ledger_of(checked)
    good, slow, twin = (ledger[name] for name in GOOD)
    assert (good["fps"], good["frames"], good["duration_s"]) == pytest.approx((16, 40, 2.5))
    assert (good["height"], good["width"], good["rotation"], good["codec"]) == (64, 96, 0, "h264")
    assert (good["bucket"], good["sample_frames"], good["padded_share"]) == ("9×64×96", 9, 0)
    assert good["variable_frame_rate"] is False and good["effective_fps"] == 8
    # 9 wanted times at 1/8 s show the frames 0 to 5 of a 5 fps source: 6 in 9/8 s.
    assert slow["effective_fps"] == pytest.approx(6 * 8 / 9)
    assert slow["caption_tokens"] - slow["caption_tokens_cut"] == 48 and slow["remarks"] == ["cut"]
    assert twin["content"] == good["content"] and twin["duplicate_of"] == GOOD[0] and twin["remarks"] == ["duplicate"]
    assert good["duplicate_of"] is None and slow["content"] != good["content"]
    with (checked / "ledger.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows.keys() == ledger.keys() and rows[GOOD[0]]["caption"] == "'" + TYPED and good["caption"] == TYPED


def test_page_shows_the_very_sample_and_runs_nothing(checked: Path, broken: Path) -> None:
    """Identity: the picture of a clip is the sample's frames 0, 3, 5, 8; captions are escaped."""
    page = (checked / "index.html").read_text(encoding="utf-8")
    assert SCRIPT not in page and "&lt;script&gt;" in page and "script-src 'none'" in page
    picture = ledger_of(checked)[GOOD[0]]["picture"]
    assert f'src="pictures/{picture}"' in page
    sample = SFTDataset(str(broken), **PARAMS)
    place = [clip.record.name for clip in sample.clips].index(GOOD[0])
    frames = ((sample[place]["mp4"] + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    shown = np.asarray(Image.open(checked / "pictures" / picture)).astype(float)
    wanted = np.concatenate([frames[k] for k in (0, 3, 5, 8)], axis=1)
    assert shown.shape == wanted.shape and np.abs(shown - wanted).mean() < 4


def test_exit_status_and_the_last_line(broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Golden values: 10 bad of 13 and a duplicate are above 2 %; what is missing is told, an older check replaced."""
    out, listed = tmp_path / "out", tmp_path / "bad.txt"
    (out / "pictures").mkdir(parents=True)
    for old in ("pictures/000099.jpg", "pictures/mine.jpg", "ledger.jsonl"):
        (out / old).write_text("old")
    listed.write_text(f"{QUARANTINE_HEADER}\nold.mp4\tis old\n")
    words = [str(broken), "--out", str(out), "--workers", "1", "--max-bad", "2%", "--no-pictures", *OVERRIDES]
    assert main([*words, "--quarantine", str(listed), "--also-bad", "duplicate"]) == 1
    told = capfd.readouterr().out.splitlines()
    assert "caption tokens are not counted" in told[0]
    assert told[-1].startswith("13 clips, 11 bad (84.615% of 2.000% allowed)") and str(out / "index.html") in told[-1]
    assert [each.name for each in (out / "pictures").iterdir()] == ["mine.jpg"] and len(ledger_of(out)) == 13
    assert "Contact sheet" not in (out / "index.html").read_text()
    lines = listed.read_text().splitlines()
    assert lines[1] == f"# data: {broken}" and len(lines) == 13 and not (out / "quarantine.txt").exists()
    assert "videos/twin.mp4\thas the same pictures as a clip before it (videos/good.mp4)" in lines


def test_what_is_left_out_by_choice_is_not_bad(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Identity: the ledger says of each clip what training says of it, also of those of weight 0 and in quarantine.

    Golden values: these count as nothing, their files are not touched, and the new list keeps what was in the old one.
    """
    data, out, old = tmp_path / "set", tmp_path / "check", tmp_path / "old.txt"
    for name in ("good", "short", "idle", "listed"):
        add_clip(data, name, frames=3 if name == "short" else 40)
    for name in ("idle", "listed"):
        (data / f"videos/{name}.mp4").write_bytes(b"no video")
    rows = [{"file": f"videos/{name}.mp4", "text": name, "weight": int(name != "idle")} for name in ("good", "short")]
    rows += [{"file": "videos/idle.mp4", "text": "idle", "weight": 0}, {"file": "videos/listed.mp4", "text": "listed"}]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    old.write_text(f"# data: {data}\nvideos/listed.mp4\tcrashes the reader\n")
    words = [str(data), "--out", str(out), "--workers", "1", *OVERRIDES, f"data.params.quarantine={old}"]
    assert main([*words, "--max-bad", "50%"]) == 0
    assert "4 clips, 1 bad (50.000% of 50.000% allowed), 2 left out by choice" in capfd.readouterr().out
    said = {(name, entry["kind"], entry["reason"]) for name, entry in ledger_of(out).items() if entry["kind"]}
    dataset = SFTDataset(str(data), **PARAMS, quarantine=str(old))
    assert said == {(each.video.as_posix(), each.kind, each.reason) for each in dataset.left_out}
    assert {kind for _, kind, _ in said} == {"too short", "without weight", "in quarantine"}
    assert [clip.caption for clip in dataset.clips] == ["good"]
    lines = [line.partition("\t")[0] for line in (out / "quarantine.txt").read_text().splitlines()]
    assert lines[1:] == [f"# data: {data}", "videos/short.mp4", "videos/listed.mp4"]
    assert "left out by choice: without weight" in (out / "index.html").read_text()


def mistakes(folder: Path) -> dict[str, list[str]]:
    """Part of the message → command line that leads to it."""
    (folder / "mine.txt").write_text("my notes\n")
    (folder / "full").mkdir()
    (folder / "full/thesis.txt").write_text("all of it")
    add_clip(folder / "one", "a")
    one = str(folder / "one")
    return {
        "does not exist": [str(folder / "none")],
        "--max-bad 2:": [one, "--max-bad", "2"],
        "there is no file": [one, "--base", str(folder / "none.yaml")],
        "data.params.fsp": [one, "data.params.fsp=8"],
        "45 or 49": [one, "data.params.max_num_frames=48"],
        "no list of this tool": [one, "--quarantine", str(folder / "mine.txt")],
        "holds other things": [one, "--out", str(folder / "full")],
        "--workers 0": [one, "--out", str(folder / "new"), "--workers", "0"],
        "--timeout 0": [one, "--timeout", "0"],
        "describes no data set": [one, "--base", str(ROOT / "configs/cogvideox_2b.yaml")],
    }


def test_mistakes_are_told_without_a_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Golden values: exit status 2 and what is wrong; nothing that was there is touched."""
    for message, words in mistakes(tmp_path).items():
        assert main(words) == 2, message
        assert message in capfd.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "my notes\n"
    assert [each.name for each in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_where_it_writes_by_default(tmp_path: Path) -> None:
    """Golden values: beside the data, never inside; shares with and without a percent sign."""
    (tmp_path / "set/videos").mkdir(parents=True)
    for given in ("set", "set/videos", "set/metadata.jsonl"):
        assert default_out(tmp_path / given) == tmp_path / "set-check"
    assert [share_of(text) for text in ("2%", "0.02", "100 %", "0", "1")] == [0.02, 0.02, 1, 0, 1]
    for text in ("-1%", "101%", "2", "few", "nan"):
        with pytest.raises(UserError, match="--max-bad"):
            share_of(text)
    assert list(pictures_of(10, 4, tmp_path)) == [0, 2, 5, 7] and len(pictures_of(3, 200, tmp_path)) == 3


def test_as_a_command(tmp_path: Path) -> None:
    """Golden value: run as a script from another folder, it leaves the page beside the data and nothing in it."""
    data = tmp_path / "set"
    shutil.copytree(ROOT / "assets/quickstart/clips", data)
    before = sorted(data.rglob("*"))
    command = [sys.executable, str(ROOT / "tools/check_data.py"), str(data), "--workers", "1", *OVERRIDES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "6 clips, 0 bad" in done.stdout and (tmp_path / "set-check/index.html").is_file()
    assert sorted(data.rglob("*")) == before
