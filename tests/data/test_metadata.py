"""Tables of clips: the records that their rows give, and what is said of faults.

Files named by manifests need not exist for this: only reading them, later, opens them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cogvideox.data.formats.record import BAD_ROW
from cogvideox.data.records import WITHOUT_CAPTION, Record, fault_of_place, find_records
from tests.data.manifests import captions, refusal, write, write_rows, write_table


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_one_table_in_three_forms_gives_the_same_records(tmp_path: Path, ending: str) -> None:
    """Golden values: quotes, commas, newlines and letters of a caption, blanks around it, parts of a video, weights."""
    columns: dict[str, list[object]] = {
        "file_name": ["videos/a.mp4", "videos/a.mp4", "./b/../c.png"],
        "Text": ['A "red" ball,\nthen Äpfel', "  again ", "a picture"],
        "start_s": [None, 2.5, None],
        "end": [1.5, None, None],
        "weight": [1.0, 0.5, None],
        "aesthetic": [5.1, 4.2, 3.3],
    }
    write_table(tmp_path / f"metadata{ending}", columns)
    expected = [
        Record(tmp_path / "videos/a.mp4", "videos/a.mp4 (0 s to 1.5 s)", 'A "red" ball,\nthen Äpfel', end_s=1.5),
        Record(tmp_path / "videos/a.mp4", "videos/a.mp4 (2.5 s to its end)", "again", start_s=2.5, weight=0.5),
        Record(tmp_path / "c.png", "c.png", "a picture"),
    ]
    assert find_records(tmp_path) == find_records(tmp_path, "metadata") == expected


def test_a_table_of_any_name_is_a_place_of_its_own(tmp_path: Path) -> None:
    """Golden value: names are relative to its folder; an absolute one is taken, and said."""
    table = write_rows(tmp_path / "lists/train.jsonl", [{"path": "a.mp4", "prompt": "near"}])
    assert find_records(table) == [Record(tmp_path / "lists/a.mp4", "a.mp4", "near")]
    assert fault_of_place(table) is None
    assert "is not a folder" in refusal(table, "folder")


@pytest.mark.parametrize("column", ["file", "file_name", "video", "video_path", "path", "image"])
@pytest.mark.parametrize("text", ["caption", "text", "prompt", "txt"])
def test_columns_go_by_the_names_in_use(tmp_path: Path, column: str, text: str) -> None:
    """Golden value, in capitals too."""
    write(tmp_path / "metadata.csv", f"id,{column.upper()}, {text}\n7,a.mp4,fox\n")
    assert captions(find_records(tmp_path)) == {"a.mp4": "fox"}


def test_rows_may_speak_of_videos_or_of_images(tmp_path: Path) -> None:
    """Golden value: each row takes the first column that it fills."""
    write(tmp_path / "metadata.csv", "image,video,caption\ni.png,,one\n,v.mp4,two\ni.png,w.mp4,three\n")
    assert captions(find_records(tmp_path)) == {"i.png": "one", "v.mp4": "two", "w.mp4": "three"}


def test_absolute_names_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Identity."""
    write_rows(tmp_path / "metadata.jsonl", [{"file": "/far/a.mp4", "text": "far"}, {"file": "b.mp4", "text": "near"}])
    assert [record.path for record in find_records(tmp_path)] == [Path("/far/a.mp4"), tmp_path / "b.mp4"]
    assert any("1 of 2 files are named by absolute paths" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"file": "a.mp4", "text": "x", "start": "soon"}, "start is 'soon', not a number from 0 on (seconds)"),
        ({"file": "a.mp4", "text": "x", "start": True}, "start is 'True'"),
        ({"file": "a.mp4", "text": "x", "end": float("nan")}, "end is 'nan'"),
        ({"file": "a.mp4", "text": "x", "end": 10**400}, "end is '1000"),
        ({"file": "a.mp4", "text": "x", "start": -1}, "start is '-1'"),
        ({"file": "a.mp4", "text": "x", "start": 3, "end": 3}, "end 3 s is not after start 3 s"),
        ({"file": "a.mp4", "text": "x", "end": 0}, "end 0 s is not after start 0 s"),
        ({"file": "a.mp4", "text": "x", "weight": float("inf")}, "weight is 'inf'"),
        ({"file": "../a.mp4", "text": "x"}, "is no file below the manifest's folder"),
        ({"file": "b/../../a.mp4", "text": "x"}, "is no file below"),
        ({"file": ".", "text": "x"}, "is no file below"),
        ({"file": "a\0.mp4", "text": "x"}, "NUL"),
        ({"file": "\ud800.mp4", "text": "x"}, "half a character"),
        ({"file": "https://host/a.mp4", "text": "x"}, "is no file here"),
        ({"file": {"path": "a.mp4", "bytes": "…"}, "text": "x"}, "names no file but a dict"),
        ({"file": None, "text": "x"}, "names no file"),
        (["a.mp4", "x"], "is no JSON object"),
    ],
)  # fmt: skip
def test_a_bad_row_is_a_record_that_says_why(tmp_path: Path, row: object, reason: str) -> None:
    """Golden values; the rows beside it are read."""
    write_rows(tmp_path / "metadata.jsonl", [{"file": "ok.mp4", "text": "fine"}, row])
    good, bad = find_records(tmp_path)
    assert good.caption == "fine" and good.fault is None
    assert bad.kind == BAD_ROW and bad.caption is None and bad.fault is not None
    assert bad.fault.startswith("metadata.jsonl line 2: ") and reason in bad.fault
    assert bad.path in (tmp_path / "a.mp4", tmp_path / "metadata.jsonl")


@pytest.mark.parametrize(
    ("caption", "reason"),
    [(None, "has no caption"), (" \n", "is empty"), (7, "is no text but a int"), ("\udc00", "half a character")],
)
def test_a_bad_caption_leaves_the_clip_usable(tmp_path: Path, caption: object, reason: str) -> None:
    """Golden values: `allow_missing_captions` needs the file and its part."""
    write_rows(tmp_path / "metadata.jsonl", [{"file": "a.mp4", "text": caption, "start": 1}])
    (record,) = find_records(tmp_path)
    assert record.fault is not None and reason in record.fault and "line 1" in record.fault
    expected = Record(tmp_path / "a.mp4", "a.mp4 (1 s to its end)", None, record.fault, 1.0, kind=WITHOUT_CAPTION)
    assert record == expected


def test_broken_lines_are_named_by_their_number(tmp_path: Path) -> None:
    """Golden values: cut JSON, bytes that are not UTF-8, and in CSV an unquoted comma after a row of two lines."""
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file": "a.mp4", "text": "x"}\n\n{"file": "b.m\n{"file": "\xe9"}\n')
    assert [record.name for record in find_records(tmp_path)] == [
        "a.mp4",
        *(f"metadata.jsonl line {n}" for n in (3, 4)),
    ]
    write(tmp_path / "t.csv", 'file,text\na.mp4,"one\ntwo"\nb.mp4,red, green\n,,\nc.mp4\n')
    records = find_records(tmp_path / "t.csv")
    assert [record.fault for record in records[::2]] == [None, "t.csv line 6: has no caption"]
    assert records[1].fault == "t.csv line 4: has 3 fields for 2 columns: a text with commas stands in quotes"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("metadata.csv", b"clip;text\na.mp4;x\n", ["no column of files", "clip;text", "file_name"]),
        ("metadata.csv", b"name,text\na.mp4,x\n", ["no column of files", "name, text", "folder"]),
        ("metadata.csv", b"file,text\n", ["no row", "file, text"]),
        ("metadata.csv", b"", ["no row"]),
        ("metadata.csv", b'file,text\na.mp4,"x\nb.mp4,y\n', ["line 2 is no CSV"]),
        ("metadata.csv", b"file,text\na.mp4,caf\xe9\n", ["not UTF-8"]),
        ("metadata.csv", b"file,text,Text\na.mp4,x,y\n", ["'text' twice"]),
        ("metadata.jsonl", b'[\n{"file": "a.mp4"}]\n', ["no line of", "line 1"]),
        ("metadata.jsonl", b'{"name": "a.mp4", "caption": "x"}\n', ["no column of files", "name, caption"]),
        ("metadata.parquet", b"version https://git-lfs.github.com/spec/v1\n", ["cannot be read as Parquet"]),
    ],
)
def test_a_table_that_cannot_be_used_is_one_error(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    """Golden values."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    text = refusal(tmp_path)
    for part in [str(tmp_path / name), *parts]:
        assert part in text, text


def test_videos_inside_a_parquet_table_are_told(tmp_path: Path) -> None:
    """Golden value."""
    write_table(tmp_path / "metadata.parquet", {"video": [{"bytes": b"0", "path": "a.mp4"}], "text": ["x"]})
    assert "video (struct<bytes: binary, path: string>), text" in refusal(tmp_path)


def test_parquet_without_its_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden value."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write(tmp_path / "metadata.parquet", "PAR1")
    assert "`pip install pyarrow`" in refusal(tmp_path)


def test_the_name_tells_parts_of_a_video_apart(tmp_path: Path) -> None:
    """Identity: the same file in two rows gives two names, one path."""
    rows = [{"file": "a.mp4", "text": "x", "start": at, "end": at + 1} for at in (0, 1)]
    write_rows(tmp_path / "metadata.jsonl", rows)
    first, second = find_records(tmp_path)
    assert first.name == "a.mp4 (0 s to 1 s)" and second.name == "a.mp4 (1 s to 2 s)"
    assert replace(first, name="", start_s=None, end_s=None) == replace(second, name="", start_s=None, end_s=None)
