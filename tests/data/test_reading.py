"""Videos made by the tests, with numbers painted in, against the frames that reading picks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from cogvideox.data import looking, reading
from cogvideox.data.checking import answer_all
from cogvideox.data.clips import look_at_record
from cogvideox.data.looking import look_at, usable_span
from cogvideox.data.reading import UnreadableVideo, read_frames
from cogvideox.data.records import Record
from tests.data.painted import HEIGHT, WIDTH, even_times, numbers_in, write_painted

ROOT = Path(__file__).resolve().parents[2]
SIZE = (HEIGHT, WIDTH)
RATES = [8, Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, 60]


def irregular_times(count: int) -> list[float]:
    """Variable frame rate: gaps between 10 and 120 ms."""
    gaps = np.random.default_rng(0).uniform(0.010, 0.120, count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


def check_nearest(path: Path, times: list[float], fps: float, skip: int, start_s: float | None = None) -> None:
    """The truth: by brute force, the frame nearest to each wanted time, of the frames that may be used."""
    span = usable_span(path, skip)
    start_s = span.start_s if start_s is None else start_s
    count = int((span.end_s - start_s) * fps + 1e-6) + 1
    picked = numbers_in(read_frames(path, start_s, fps, count, SIZE))
    wanted = start_s + np.arange(count) / fps
    distance = np.abs(np.array(times)[None] - wanted[:, None])
    error = distance[np.arange(count), picked]
    assert error == pytest.approx(distance.min(axis=1), abs=2e-5)
    assert skip <= min(picked) and max(picked) <= len(times) - 1 - skip
    assert error.mean() <= np.diff(times).mean() / 2


@pytest.mark.parametrize("source_fps", RATES, ids=lambda rate: f"{float(rate):.3f}")
@pytest.mark.parametrize("fps", [8, 16])
def test_picked_frames_are_the_nearest(tmp_path: Path, source_fps: Fraction | int, fps: int) -> None:
    times = write_painted(tmp_path / "clip.mp4", even_times(source_fps, min(200, int(3 * source_fps))))
    check_nearest(tmp_path / "clip.mp4", times, fps, skip=3)


@pytest.mark.parametrize("fps", [8, 16])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_variable_frame_rate(tmp_path: Path, fps: int, b_frames: int) -> None:
    times = write_painted(tmp_path / "clip.mp4", irregular_times(120), b_frames=b_frames)
    check_nearest(tmp_path / "clip.mp4", times, fps, skip=3)


@pytest.mark.parametrize("start_s", [0.5, 1.0, 1.2, 2.0, 3.33])
def test_start_in_the_middle(tmp_path: Path, start_s: float) -> None:
    """Also where the wanted first frame is shown before the keyframe that a seek by decoding time finds."""
    times = write_painted(tmp_path / "clip.mp4", even_times(30, 150), keyframe_interval=12)
    check_nearest(tmp_path / "clip.mp4", times, 8, skip=0, start_s=start_s)


def test_first_frame_not_at_zero_and_fragmented(tmp_path: Path) -> None:
    """A stream that starts late, and a container without an index (fragmented mp4)."""
    times = write_painted(tmp_path / "late.mp4", [0.7 + time for time in even_times(25, 60)])
    check_nearest(tmp_path / "late.mp4", times, 8, skip=2)
    options = {"movflags": "frag_keyframe+empty_moov"}  # such a file cannot undo the delay of b-frames: none here
    times = write_painted(tmp_path / "fragments.mp4", even_times(25, 60), b_frames=0, container_options=options)
    check_nearest(tmp_path / "fragments.mp4", times, 8, skip=2)


@pytest.mark.parametrize("skip", [0, 1, 3, 10])
def test_span_leaves_out_the_skipped_frames(tmp_path: Path, skip: int) -> None:
    """Round trip: the span's ends are the times of frames `skip` and n-1-skip, as written."""
    times = write_painted(tmp_path / "clip.mp4", irregular_times(60), keyframe_interval=8)
    span = usable_span(tmp_path / "clip.mp4", skip)
    assert span.start_s == pytest.approx(times[skip], abs=2e-5)
    assert span.end_s == pytest.approx(times[-1 - skip], abs=2e-5)
    assert span.last_frame_s == pytest.approx(times[-1 - skip] - times[-2 - skip], abs=2e-5)


def test_only_what_is_needed_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden value: keyframes every 30, the sample lies in frames 60–90 of 250; and frames between are dropped."""
    write_painted(tmp_path / "clip.mp4", even_times(30, 250), keyframe_interval=30)
    decoded: list[int] = []
    plain = reading._decoded_frames

    def counting(stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
        frames = plain(stream, packet)
        decoded.extend(round(float(frame.pts * stream.time_base) * 30) for frame in frames)
        return frames

    monkeypatch.setattr(reading, "_decoded_frames", counting)
    frames = read_frames(tmp_path / "clip.mp4", 2.0, 10, 10, SIZE)
    assert numbers_in(frames) == list(range(60, 90, 3))
    assert min(decoded) >= 60 and max(decoded) <= 89
    assert len(decoded) < 28, "frames that nothing refers to and nobody wants are decoded"


def _cut(path: Path, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


def test_unusable_files_say_why(tmp_path: Path) -> None:
    times = even_times(25, 60)
    write_painted(tmp_path / "cut_end_index.mp4", times)
    _cut(tmp_path / "cut_end_index.mp4", 0.6)
    write_painted(tmp_path / "cut_front_index.mp4", times, container_options={"movflags": "faststart"})
    _cut(tmp_path / "cut_front_index.mp4", 0.6)
    write_painted(tmp_path / "never_finished.mp4", times)
    whole = (tmp_path / "never_finished.mp4").read_bytes()
    (tmp_path / "never_finished.mp4").write_bytes(whole[: whole.rindex(b"moov") - 4])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    write_painted(tmp_path / "short.mp4", even_times(25, 5))
    expected = {
        "cut_end_index": "is truncated .* the box mdat ends at",
        "never_finished": "has no index",
        "cut_front_index": "is truncated",
        "empty": r"is empty \(0 bytes\)",
        "text": "cannot be read as a video",
        "sound": "has no video stream",
        "short": "no frame is left after skipping 3",
        "absent": "No such file",
    }
    for name, reason in expected.items():
        with pytest.raises(UnreadableVideo, match=reason):
            usable_span(tmp_path / f"{name}.mp4", 3)


def test_an_index_without_keyframes_is_told(tmp_path: Path) -> None:
    """Golden value: its table of keyframes (stss) names frames that do not exist. FFmpeg finds no place in it."""
    write_painted(tmp_path / "clip.mp4", even_times(25, 60))
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    table = content.index(b"stss") + 8
    for place in range(int.from_bytes(content[table : table + 4], "big")):
        content[table + 4 * (place + 1) : table + 4 * (place + 2)] = (1000 + place).to_bytes(4, "big")
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UnreadableVideo, match="cannot be read"):
        read_frames(tmp_path / "clip.mp4", 0.0, 8, 9, SIZE)
    with pytest.raises(UnreadableVideo, match="index without any keyframe"):
        look_at(tmp_path / "clip.mp4", 3)


def test_pictures_without_a_size_are_told(tmp_path: Path) -> None:
    """Golden value: raw pictures, of which the file says that they are 0 high and wide."""
    write_painted(tmp_path / "clip.mp4", even_times(25, 60))
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    kind = content.index(b"avc1", content.index(b"stsd"))
    content[kind : kind + 4], content[kind + 28 : kind + 32] = b"raw ", bytes(4)
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UnreadableVideo, match="has no picture size"):
        look_at(tmp_path / "clip.mp4", 3)


@pytest.mark.parametrize(("pixel_aspect", "is_fine"), [(Fraction(20), True), (Fraction(1, 50), False)])
def test_pictures_that_are_nearly_a_line_are_told(tmp_path: Path, pixel_aspect: Fraction, is_fine: bool) -> None:
    """Golden values: as they are shown, 1920×64 and 1.92×64."""
    write_painted(tmp_path / "clip.mp4", even_times(25, 20), pixel_aspect=pixel_aspect)
    if is_fine:
        assert look_at(tmp_path / "clip.mp4", 3).width == 1920
    else:
        with pytest.raises(UnreadableVideo, match="one side is more than 32 times the other"):
            look_at(tmp_path / "clip.mp4", 3)


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Every file that is opened to be looked at."""
    files: list[object] = []
    plain = looking.open_video

    def counting(video: Path | bytes) -> AbstractContextManager[object]:
        files.append(video)
        time.sleep(0.05)  # so that threads ask while another is about it
        return plain(video)

    with monkeypatch.context() as patch:
        patch.setattr(looking, "open_video", counting)
        yield files


def test_many_parts_of_a_video_are_one_look_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity: in threads, each part is what a look at the file's content gives; a changed file is seen anew."""
    path = tmp_path / "clip.mp4"
    write_painted(path, even_times(25, 200))
    parts = [(number / 4, number / 4 + 2) for number in range(20)]
    records = [Record(path, str(part), "x", None, *part) for part in parts]
    content = path.read_bytes()
    expected = [look_at(content, 1, *part) for part in parts]
    with opened(monkeypatch) as files:
        assert answer_all(partial(look_at_record, skip_frames=1), records) == expected
        assert files == [path] * 2  # its packets, and a frame to see whether it lies on a side
        with pytest.raises(UnreadableVideo, match="has no frame from 50 s"):
            look_at(path, 1, 50.0)
        assert len(files) == 2
    write_painted(path, even_times(25, 100))
    with pytest.raises(UnreadableVideo, match=r"has no frame from 4.75 s to 6.75 s \(it lasts 3.96 s\)"):
        look_at_record(records[-1], 1)
    path.unlink()
    with pytest.raises(UnreadableVideo, match="No such file"):
        look_at_record(records[0], 1)


def test_an_unknown_codec_is_told(tmp_path: Path) -> None:
    write_painted(tmp_path / "clip.mp4", even_times(25, 60))
    content = (tmp_path / "clip.mp4").read_bytes()
    assert content.count(b"avc1") >= 1
    at = content.index(b"avc1", content.index(b"stsd"))
    unknown = content[:at] + b"zzzz" + content[at + 4 :]
    with pytest.raises(UnreadableVideo, match="does not know, or encrypted"):
        usable_span(unknown, 3)


LISTS = {
    "concat": "ffconcat version 1.0\nfile {0}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD type="static" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
    '<Period duration="PT2S"><AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1">'
    "<BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_list_of_other_files_is_no_video(tmp_path: Path, kind: str, as_bytes: bool) -> None:
    """FFmpeg goes by content: a text named .mp4 could have any file read, or any address called."""
    write_painted(tmp_path / "other.mp4", even_times(25, 60))
    text = LISTS[kind].format("other.mp4")
    (tmp_path / "clip.mp4").write_text(text)
    with pytest.raises(UnreadableVideo, match="cannot be read as a video"):
        usable_span(text.encode() if as_bytes else tmp_path / "clip.mp4", 3)


@pytest.mark.parametrize("frame", [0, 10])
def test_damage_inside_is_an_error_not_a_gray_frame(tmp_path: Path, frame: int) -> None:
    """The container is whole, but the bytes of one coded frame (a keyframe, another) are not what they were."""
    path = tmp_path / "clip.mp4"
    content = bytearray((ROOT / "assets/quickstart/clips/videos/bunny_burrow.mp4").read_bytes())
    path.write_bytes(content)
    read_frames(path, 0.0, 8, 13, SIZE)
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[frame]
        middle, end = entry.pos + entry.size // 2, entry.pos + entry.size
    content[middle:end] = bytes(end - middle)
    path.write_bytes(content)
    usable_span(path, 0)
    with pytest.raises(UnreadableVideo, match="damaged|decode|cannot be read"):
        read_frames(path, 0.0, 8, 13, SIZE)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_open_files_stay_flat(tmp_path: Path) -> None:
    write_painted(tmp_path / "clip.mp4", even_times(25, 30))
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:2000])

    def read_both() -> int:
        read_frames(tmp_path / "clip.mp4", 0.0, 8, 9, SIZE)
        with pytest.raises(UnreadableVideo):
            usable_span(tmp_path / "bad.mp4", 0)
        return len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))

    before = read_both()
    assert [read_both() for _ in range(50)][-1] <= before
