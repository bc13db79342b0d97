"""Finding clips and captions in folders as people have them."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest

from cogvideox.data.formats import folder
from cogvideox.data.formats.folder import UnusableCaption, find_clips, read_caption, read_folder


def fill(place: Path, *files: str) -> None:
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(f"caption in {file}\n")


def names(place: Path) -> list[str]:
    return [path.as_posix() for path in find_clips(place)[0]]


def test_clips_nested_sorted_any_case_hidden_ones_left_out(tmp_path: Path) -> None:
    """Golden value."""
    fill(tmp_path, "videos/b.mp4", "videos/a/z.MP4", "plain.mov", "videos/._b.mp4", "images/c.PNG", "labels/b.txt")
    fill(tmp_path, ".cache/d.mp4", "videos/.trash/e.mp4", "videos/f.avi", "videos/a/g.webm", "videos/h.webp")
    expected = ["images/c.PNG", "plain.mov", *(f"videos/{name}" for name in ("a/g.webm", "a/z.MP4"))]
    assert names(tmp_path) == [*expected, "videos/b.mp4", "videos/f.avi", "videos/h.webp"]


def test_other_endings_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Golden value; captions, tables and notes are no clips that were missed, hidden files neither."""
    fill(
        tmp_path, "videos/a.mp4", "videos/b.gif", "videos/c.GIF", "videos/d.ts", "README", ".DS_Store", "videos/.e.gif"
    )
    fill(tmp_path, "labels/a.txt", "stats.json", "metadata.csv", "notes.md")
    assert [record.name for record in read_folder(tmp_path)] == ["videos/a.mp4"]
    (line,) = caplog.messages
    assert "left out 4 files" in line and "2 .gif" in line and "1 .ts" in line and "1 without an ending" in line


def test_files_of_one_stem_share_a_caption(tmp_path: Path) -> None:
    """Identity: both are kept, each under its own name."""
    fill(tmp_path, "videos/a.mp4", "videos/a.png", "labels/a.txt")
    found = [(record.name, record.caption) for record in read_folder(tmp_path)]
    assert found == [("videos/a.mp4", "caption in labels/a.txt"), ("videos/a.png", "caption in labels/a.txt")]


def test_link_loops_end_and_links_are_followed(tmp_path: Path) -> None:
    """Identity: each real folder once, whatever the links."""
    fill(tmp_path, "elsewhere/far.mp4", "data/videos/a.mp4")
    (tmp_path / "data/videos/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/videos/more").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "data") == ["videos/a.mp4", "videos/more/far.mp4"]


def test_labels_relative_to_the_data_folder(tmp_path: Path) -> None:
    """Golden values; the folder's own path holds "videos" and ".mp4", which replacing text would break."""
    data = tmp_path / "videos" / "my.mp4.videos"
    fill(data, "labels/a.txt", "labels/deep/b.txt", "plain.txt", "videos/beside.txt", "set1/labels/c.txt")
    assert read_caption(data, Path("videos/a.mp4")) == "caption in labels/a.txt"
    assert read_caption(data, Path("images/a.png")) == "caption in labels/a.txt"
    assert read_caption(data, Path("videos/deep/b.MP4")) == "caption in labels/deep/b.txt"
    assert read_caption(data, Path("plain.mp4")) == "caption in plain.txt"
    assert read_caption(data, Path("videos/beside.mp4")) == "caption in videos/beside.txt"
    assert read_caption(data, Path("set1/videos/c.mp4")) == "caption in set1/labels/c.txt"


def test_data_folder_called_videos(tmp_path: Path) -> None:
    """Golden value: the data folder is `videos` itself, its labels are beside it."""
    fill(tmp_path, "labels/a.txt")
    assert read_caption(tmp_path / "videos", Path("a.mp4")) == "caption in labels/a.txt"


def test_first_line_that_is_not_blank(tmp_path: Path) -> None:
    """Golden value: byte order mark, blank lines, spaces and later lines are no part of the caption."""
    (tmp_path / "a.txt").write_bytes("\ufeff\n   \n  Ein Äffchen spielt. \r\nnote to self\n".encode())
    assert read_caption(tmp_path, Path("a.mp4")) == "Ein Äffchen spielt."


def test_captions_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity: reading eight waits until all eight are being read; each clip gets its own, in order."""
    fill(tmp_path, *(f"videos/{n}.{ending}" for n in range(8) for ending in ("mp4", "txt")))
    together, plain = threading.Barrier(8), folder.read_caption

    def reading(place: Path, clip: Path) -> str:
        together.wait(5)
        return plain(place, clip)

    monkeypatch.setattr(folder, "read_caption", reading)
    assert [record.caption for record in read_folder(tmp_path)] == [f"caption in videos/{n}.txt" for n in range(8)]


def test_a_caption_that_hangs_costs_its_clip_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden value: the clip cannot be used, whatever is allowed of clips without a caption."""
    fill(tmp_path, *(f"videos/{n}.{ending}" for n in range(8) for ending in ("mp4", "txt")))
    never, plain = threading.Event(), folder.read_caption

    def reading(place: Path, clip: Path) -> str:
        return plain(place, clip) if clip.stem != "3" else str(never.wait())

    monkeypatch.setattr(folder, "read_caption", reading)
    monkeypatch.setattr(folder, "answer_all", partial(folder.answer_all, stall_s=0.2))
    records = read_folder(tmp_path)
    never.set()
    assert [record.name for record in records if record.fault] == ["videos/3.mp4"]
    assert (records[3].caption, records[3].kind) == (None, "not readable")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, r"missing \(no .*labels/a.txt\)"), (b"", "is empty"), (b" \n\n", "is empty"), (b"caf\xe9", "not UTF-8")],
)
def test_unusable_captions_say_why(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """Golden values."""
    (tmp_path / "labels").mkdir()
    if content is not None:
        (tmp_path / "labels/a.txt").write_bytes(content)
    with pytest.raises(UnusableCaption, match=reason):
        read_caption(tmp_path, Path("videos/a.mp4"))
