"""mp4 files written, then read back."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cogvideox.data.looking import usable_span
from cogvideox.data.reading import read_frames
from cogvideox.data.writing import to_uint8_frames, write_video
from tests.data.painted import numbers_in, paint


def painted_clip(count: int) -> torch.Tensor:
    frames = np.stack([paint(number) for number in range(count)])
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("fps", [8, 16, 30000 / 1001])
def test_round_trip(tmp_path: Path, fps: float) -> None:
    """Round trip: every frame at its time, colours to what H.264 at crf 18 keeps."""
    clip = painted_clip(17)
    clip[:, 0] *= 0.7
    write_video(tmp_path / "new" / "clip.mp4", clip, fps)
    span = usable_span(tmp_path / "new" / "clip.mp4", 0)
    assert span.frame_count(fps) == 17
    back = read_frames(tmp_path / "new" / "clip.mp4", span.start_s, fps, 17, (64, 96))
    assert numbers_in(back) == list(range(17))
    error = back.astype(float) - to_uint8_frames(clip)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 35
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.mp4"]


def test_players_can_show_it(tmp_path: Path) -> None:
    """Golden values: H.264, yuv420p, the index in front of the pictures."""
    write_video(tmp_path / "clip.mp4", painted_clip(5), 8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
    content = (tmp_path / "clip.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_value_ranges_and_dtypes() -> None:
    """Identity: both ranges give the same bytes; out of range is clamped; NaN is black; half precision is taken."""
    clip = painted_clip(3)
    frames = to_uint8_frames(clip)
    assert np.array_equal(frames, np.stack([paint(number) for number in range(3)]))
    assert np.array_equal(to_uint8_frames((clip + 1) / 2, (0.0, 1.0)), frames)
    wild = torch.tensor([-3.0, 3.0, float("nan")]).view(1, 3, 1, 1).bfloat16()
    assert to_uint8_frames(wild).ravel().tolist() == [0, 255, 0]


def test_odd_sizes_repeat_a_line(tmp_path: Path) -> None:
    """Identity: 63x95 becomes 64x96, the picture at the top left."""
    write_video(tmp_path / "clip.mp4", painted_clip(5)[:, :, :63, :95], 8)
    assert numbers_in(read_frames(tmp_path / "clip.mp4", 0.0, 8, 5, (64, 96))) == list(range(5))


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity: no file, whole or partial."""

    def fail(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(tmp_path / "clip.mp4", painted_clip(5), 8)
    assert list(tmp_path.iterdir()) == []
