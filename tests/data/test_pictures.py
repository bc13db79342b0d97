"""Prompt files and the pictures that they name. Truth: golden values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from av.error import FFmpegError
from PIL import Image

from cogvideox.data import pictures
from cogvideox.data.clips import ClipSize, look
from cogvideox.data.pictures import read_picture, read_still
from cogvideox.data.prompts import Prompt, parse_prompt, read_prompts
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.records import Record
from cogvideox.errors import UserError


def test_a_file_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "first.png").touch()
    file = tmp_path / "prompts.txt"
    file.write_text("# what to draw\na cat@@first.png\n\n  two words  \n", encoding="utf-8-sig")
    with_image, plain = read_prompts(file)
    assert with_image == Prompt("a cat", tmp_path / "first.png", f"{file}:2")
    assert (plain.text, plain.image) == ("two words", None)
    assert parse_prompt("a@@b @@c").image == Path("b @@c")
    file.write_text("# nothing\n\n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(file)


def test_a_picture_is_covered_and_cropped_to_its_middle(tmp_path: Path) -> None:
    """Golden: a wide picture's outer thirds, red and blue, are cropped away; white is 1, black −1, in 16 bits too."""
    pixels = np.zeros((32, 96, 3), dtype=np.uint8)
    pixels[:, :32, 0], pixels[:, 64:, 2], pixels[:16, 32:64] = 255, 255, 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    picture = read_picture(tmp_path / "wide.png", (64, 64))
    assert picture.shape == (3, 64, 64) and picture.dtype == torch.float32
    inner = picture[:, :, 8:-8]
    assert inner[:, :28].min() > 0.99 and inner[:, 36:].max() < -0.99
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera's note: turn by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = read_picture(tmp_path / "turned.png", (96, 32))
    assert upright[0, :24].min() > 0.9 and upright[2, -24:].min() > 0.9
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for name in ("I;16", "I"):
        deep = tmp_path / f"{name[0]}{len(name)}.tiff"
        Image.fromarray(ramp if name == "I;16" else ramp.astype(np.int32)).save(deep)
        Image.fromarray(ramp).save(tmp_path / "deep.png")
        for file in (deep, tmp_path / "deep.png"):
            grey = read_picture(file, (64, 64))
            assert abs(grey.mean()) < 0.01 and grey[:, 0].max() < -0.9 and grey[:, -1].min() > 0.9, file
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="no.png cannot be read"):
        read_picture(tmp_path / "no.png", (64, 64))


def test_a_picture_that_is_nearly_a_line_is_told_at_the_start(tmp_path: Path) -> None:
    """Golden value: scaled to cover 480×720, it would be 480×960000 pixels."""
    Image.new("RGB", (2000, 1)).save(tmp_path / "line.png")
    Image.new("RGB", (64, 2)).save(tmp_path / "flat.png")
    left_out, clip = (
        look(Record(tmp_path / name, name, "x"), [ClipSize(1, 480, 720)], 8, 0, 0.5)
        for name in ("line.png", "flat.png")
    )
    assert (left_out.kind, clip.available) == ("not readable", 1)
    assert left_out.reason == "is 2000 wide and 1 high: one side is more than 32 times the other"
    with pytest.raises(UserError, match="line.png is 2000 wide"):
        read_picture(tmp_path / "line.png", (480, 720))


@pytest.mark.parametrize("error", [MemoryError(), FFmpegError(12, "Cannot allocate memory")])
def test_a_picture_that_cannot_be_scaled_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Identity: what scaling raises is a fault of this file, as what reading it raises."""

    def fail(*_: object) -> None:
        raise error

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures.FrameScaler, "__call__", fail)
    with pytest.raises(UnreadableVideo, match="cannot be read"):
        read_still(tmp_path / "a.png", (16, 16))
