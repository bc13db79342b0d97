"""What comes from elsewhere is refused or harmless. Truth: nothing that it names was run, read or written; the message
names the file. Configs are in test_untrusted_configs.py, more of weights in test_untrusted_weights.py.
"""

from __future__ import annotations

import io
import logging
import os
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train_video
from cogvideox.errors import UserError
from cogvideox.telemetry.console import PlainFormatter
from cogvideox.telemetry.evaluation_samples import save_samples
from cogvideox.telemetry.report import write_report
from data_video import SFTDataset, VideoDataset
from tests.data.painted import even_times, write_painted
from tests.data.shard_files import clip_bytes
from tools import convert_checkpoint

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
SIZES: dict[str, Any] = {"video_size": [32, 48], "fps": 8, "max_num_frames": 5}
FAR = 60_000
CAPTION = "$(touch evil); `touch evil` | touch evil && <script>alert(1)</script> '\"; --x {a,b} %s %(x)s \\ * ~ !!"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, in which whatever runs by mistake would leave `evil`."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def clips(folder: Path, *names: str, caption: str = "a clip") -> Path:
    """A data folder with these painted videos and their captions."""
    (folder / "labels").mkdir(parents=True)
    for name in names:
        write_painted(folder / "videos" / f"{name}.mp4", even_times(8, 12))
        (folder / "labels" / f"{name}.txt").write_text(caption)
    return folder


def used(dataset: SFTDataset) -> list[str]:
    return [clip.record.name for clip in dataset.clips]


class Evil:
    """Unpickled, it would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


def test_a_malicious_pickle_checkpoint(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for is_zip in (True, False):
        torch.save({"module": Evil()}, place / "weights.pt", _use_new_zipfile_serialization=is_zip)
        assert convert_checkpoint.main([str(place / "weights.pt"), str(place / "out"), "--to", "sat"]) == 2
        said = capsys.readouterr().err
        assert f"{place}/weights.pt: refused" in said and "asks for posix.system" in said
        assert "weights.plain.pt" in said
    assert os.listdir(place) == ["weights.pt"]


def test_a_yaml_with_python_tags(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tag in ("python/object/apply:os.system [touch evil]", "python/object/new:os.system ['touch evil']"):
        (place / "evil.yaml").write_text(f"args:\n  experiment_name: !!{tag}\n")
        assert train_video.main(["--base", QUICKSTART, "evil.yaml"]) == 2
        said = capsys.readouterr().err
        assert "evil.yaml:2" in said and "could not determine a constructor" in said and "Traceback" not in said
    assert os.listdir(place) == ["evil.yaml"]


def test_a_target_that_is_a_program(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "{target: os.system, params: {command: touch evil}}"
    assert train_video.main(["--base", QUICKSTART, f"model.sampler_config={evil}"]) == 2
    said = capsys.readouterr().err
    assert "model.sampler_config" in said and "`os.system` may not be named" in said
    assert not os.listdir(place)


def test_a_tar_whose_members_leave_their_folder(tmp_path: Path, place: Path) -> None:
    video = clip_bytes(tmp_path)
    members = {"../evil.mp4": video, "../evil.txt": b"up", f"{place}/evil.mp4": video, f"{place}/evil.txt": b"away"}
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for kind, name in ((tarfile.SYMTYPE, "link.mp4"), (tarfile.LNKTYPE, "hard.mp4"), (tarfile.CHRTYPE, "dev.mp4")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    dataset = VideoDataset(str(tmp_path / "000.tar"), [32, 48], 5, 8)
    captions = {sample["txt"] for sample in dataset}
    assert captions == {"up", "away"}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tar_whose_headers_would_fill_the_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A member's long name of 10 GB, as the header before it says, in a file that has them."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10**10
    with (tmp_path / "000.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(10**10 + 4096)
    with pytest.raises(UserError, match=r"damaged \(a header of 10,000,000,\d+ bytes\)"):
        VideoDataset(str(tmp_path), [32, 48], 5, 8)


def test_a_caption_of_shell_metacharacters(tmp_path: Path, place: Path) -> None:
    data = clips(tmp_path / "data", "$(touch evil)", "a;touch evil", "-y", caption=CAPTION)
    dataset = SFTDataset(data, **SIZES)
    assert len(used(dataset)) == 3
    batch = {"txt": [dataset[0]["txt"]], "fps": torch.tensor([8])}
    assert batch["txt"] == [CAPTION]
    save_samples({"samples": dataset[0]["mp4"][None]}, batch, tmp_path / "$(touch evil)", 1)
    assert (tmp_path / "$(touch evil)/video_texts/00000001").read_text() == CAPTION + "\n"
    page = write_report(tmp_path / "$(touch evil)").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert not os.listdir(place)


def test_names_and_captions_do_not_speak_to_the_terminal(tmp_path: Path) -> None:
    """A log and a message of ours have neither colours nor lines of others in them."""
    name = "a\x1b[2J\x9b1m\u202e.mp4\n12:00:00 saved runs/1 in 0.1 s"
    line = PlainFormatter().format(logging.LogRecord("x", logging.INFO, "", 0, "left out %s", (name,), None))
    assert "a\\x1b[2J\\x9b1m\\u202e.mp4" in line
    assert all(part.startswith("  ") for part in line.split("\n")[1:])
    assert str(UserError(f"no {name}")).splitlines()[0] == "no a\\x1b[2J\\x9b1m\\u202e.mp4"


def _declare_huge(path: Path) -> None:
    """Let an mp4's sample description and track header say 60,000 × 60,000."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"avc1", content.index(b"stsd")) + 4 + 24
    content[entry : entry + 4] = FAR.to_bytes(2, "big") * 2
    header = content.index(b"tkhd") + 4 + 76
    content[header : header + 8] = (FAR << 16).to_bytes(4, "big") * 2
    path.write_bytes(content)


def test_a_video_of_60_000_by_60_000(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the headers say is what counts, before anything is decoded; of H.264 FFmpeg reads the true size itself."""
    data = clips(tmp_path / "data", "good", "huge", "still", "bare", "large")
    _declare_huge(data / "videos/huge.mp4")
    still = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(still, "png")
    header = b"IHDR" + FAR.to_bytes(4, "big") * 2 + still.getvalue()[24:29]
    checked = header + zlib.crc32(header).to_bytes(4, "big")
    (data / "videos/still.png").write_bytes(still.getvalue()[:12] + checked + still.getvalue()[33:])
    (data / "videos/still.mp4").unlink()
    (data / "videos/bare.mp4").write_bytes(_raw_avi(FAR, FAR))
    (data / "videos/large.mp4").write_bytes(_raw_avi(12_000, 12_000))
    began = time.monotonic()
    dataset = SFTDataset(data, **SIZES)
    samples = [dataset[place]["mp4"].shape for place in range(len(used(dataset)))]
    assert set(samples) == {(5, 3, 32, 48)} and "videos/good.mp4" in used(dataset)
    assert {name for name in used(dataset)} <= {"videos/good.mp4", "videos/huge.mp4"}
    assert "bare.mp4: has no picture size" in caplog.text  # FFmpeg's own limit lies between this and the next
    assert "large.mp4: is 12000 wide and 12000 high: more than 134,217,728 pixels" in caplog.text
    assert "still.png: cannot be read (Image size (3600000000 pixels) exceeds limit" in caplog.text
    assert time.monotonic() - began < 20


def _raw_avi(width: int, height: int) -> bytes:
    """An AVI file of one uncompressed picture, as its headers say; there is next to nothing of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + len(content).to_bytes(4, "little") + content

    def words(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(4, "little") for number in numbers)

    main = words(125_000, 0, 0, 0x10, 1, 0, 1, 0, width, height, 0, 0, 0, 0)
    stream = b"vidsDIB " + words(0, 0, 0, 1, 8, 0, 1, 0, 0, 0, 0, 0)
    bitmap = words(40, width, height) + b"\x01\x00\x18\x00" + words(0, 0, 0, 0, 0, 0)
    streams = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", bitmap))
    headers = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + streams)
    return chunk(b"RIFF", b"AVI " + headers + chunk(b"LIST", b"movi" + chunk(b"00db", bytes(64))))


def test_loops_of_links_pipes_and_devices_in_the_data_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = clips(tmp_path / "data", "good", "endless", "piped", "own")
    (data / "videos/up").symlink_to(data)
    (data / "videos/self").symlink_to(data / "videos/self")
    (data / "videos/self.mp4").symlink_to(data / "videos/self.mp4")
    (data / "videos/zero.png").symlink_to("/dev/zero")
    (data / "videos/own.mp4").unlink()
    (data / "videos/own.mp4").symlink_to("/dev/zero")
    os.mkfifo(data / "videos/fifo.png")
    os.mkfifo(data / "videos/fifo.mp4")
    for name in ("zero", "fifo", "self"):
        (data / "labels" / f"{name}.txt").write_text("a clip")
    for name, make in (("endless", lambda path: path.symlink_to("/dev/zero")), ("piped", os.mkfifo)):
        (data / "labels" / f"{name}.txt").unlink()
        make(data / "labels" / f"{name}.txt")
    (tmp_path / "list").write_text("videos/other.mp4\n")
    began = time.monotonic()
    dataset = SFTDataset(data, **SIZES, quarantine=str(tmp_path / "list"))
    assert used(dataset) == ["videos/good.mp4"]
    assert time.monotonic() - began < 20
    for name in ("self.mp4", "zero.png", "own.mp4", "fifo.png", "fifo.mp4", "endless.mp4", "piped.mp4"):
        assert f"videos/{name}" in caplog.text, name
