"""Lists, folders of the `datasets` package, and which of several forms is taken."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cogvideox.data.clips import Clip
from cogvideox.data.records import WITHOUT_CAPTION, Record, fault_of_place, find_records
from cogvideox.data.sampling import UsableSpan
from tests.data.manifests import captions, refusal, write, write_rows


@pytest.mark.parametrize("name", ["prompts.txt", "captions.txt"])
def test_lists_go_line_by_line(tmp_path: Path, name: str) -> None:
    """Golden values: only newlines part lines (U+2028 does not), blank lines at the end are none, others count."""
    write(tmp_path / name, "\ufeffone\u2028more\r\n\r\n three \r\n\r\n")
    write(tmp_path / "videos.txt", "videos/1.mp4\nvideos/2.mp4\n/far/3.mp4")
    records = find_records(tmp_path)
    assert records == find_records(tmp_path, "lists")
    assert captions(records) == {"videos/1.mp4": "one\u2028more", "videos/2.mp4": None, "/far/3.mp4": "three"}
    assert records[1].fault == "videos.txt line 2: the caption is empty" and records[1].kind == WITHOUT_CAPTION


def test_lists_of_different_length_say_both(tmp_path: Path) -> None:
    """Golden value."""
    write(tmp_path / "prompts.txt", "one\n\nthree\n\n\n")
    videos = write(tmp_path / "videos.txt", "1.mp4\n2.mp4\n")
    text = refusal(tmp_path)
    assert f"{videos} has 2 lines, {tmp_path}/prompts.txt has 3" in text
    videos.write_text("\n\n")
    (tmp_path / "prompts.txt").write_text("\n")
    assert "is empty" in refusal(tmp_path)


def test_video_folder_as_datasets_reads_it(tmp_path: Path) -> None:
    """Reference: files and captions of the split `train` as the `datasets` package gives them."""
    datasets = pytest.importorskip("datasets")
    for split, count in {"train": 2, "test": 1}.items():
        rows = [{"file_name": f"clips/{n}.mp4", "text": f"{split} {n}"} for n in range(count)]
        write_rows(tmp_path / "data" / split / "metadata.jsonl", rows)
        for row in rows:
            write(tmp_path / "data" / split / row["file_name"])
    place = tmp_path / "data"
    table = datasets.load_dataset("videofolder", data_dir=str(place), split="train", cache_dir=str(tmp_path / "cache"))
    rows = table.cast_column("video", datasets.Video(decode=False))
    expected = {Path(row["video"]["path"]): row["text"] for row in rows}
    assert len(expected) == 2
    for format in ("auto", "huggingface"):
        assert {record.path: record.caption for record in find_records(place, format)} == expected


def test_video_folder_nested_or_with_one_table_above_its_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Golden values: names are those of the place, rows of other splits are left out."""
    write_rows(tmp_path / "a/train/x/metadata.jsonl", [{"file_name": "1.mp4", "text": "one"}, {"text": "none"}])
    write_rows(tmp_path / "a/train/y/metadata.jsonl", [{"file_name": "1.mp4", "text": "two"}])
    found = captions(find_records(tmp_path / "a", "huggingface"))
    assert found == {"train/x/1.mp4": "one", "train/x/metadata.jsonl line 2": None, "train/y/1.mp4": "two"}
    rows = [{"file_name": f"{split}/1.mp4", "text": split} for split in ("train", "test")]
    write_rows(tmp_path / "b/metadata.jsonl", rows)
    (tmp_path / "b/train").mkdir()
    assert captions(find_records(tmp_path / "b", "huggingface")) == {"train/1.mp4": "train"}
    assert len(find_records(tmp_path / "b")) == 2
    assert "huggingface takes the split" in caplog.messages[-1]


def test_auto_takes_the_first_form_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Identity: table before lists before split before folder; each other form can be asked for."""
    write(tmp_path / "videos/a.mp4")
    write(tmp_path / "labels/a.txt", "folder")
    assert captions(find_records(tmp_path)) == {"videos/a.mp4": "folder"} and not caplog.messages
    write(tmp_path / "videos.txt", "videos/a.mp4\n")
    find_records(tmp_path)
    assert "videos.txt is not read, for want of prompts.txt" in caplog.messages[-1]
    write_rows(tmp_path / "train/metadata.jsonl", [{"file_name": "a.mp4", "text": "split"}])
    write(tmp_path / "prompts.txt", "list\n")
    assert captions(find_records(tmp_path)) == {"videos/a.mp4": "list"}
    assert "lists is taken, not huggingface, folder" in caplog.messages[-1]
    write_rows(tmp_path / "metadata.jsonl", [{"file": "videos/a.mp4", "text": "table"}])
    assert captions(find_records(tmp_path)) == {"videos/a.mp4": "table"}
    assert "metadata is taken, not lists, huggingface, folder" in caplog.messages[-1]
    write(tmp_path / "metadata.csv", "file,text\nvideos/a.mp4,other\n")
    assert captions(find_records(tmp_path)) == {"videos/a.mp4": "table"}
    assert "metadata.jsonl is read, metadata.csv not" in caplog.messages[-1]
    for format, caption in {"folder": "folder", "lists": "list", "huggingface": "split"}.items():
        assert list(captions(find_records(tmp_path, format)).values()) == [caption]


def test_a_clip_takes_little_memory_and_comes_whole_to_other_ranks() -> None:
    """Identity: no dictionary for each of a million, and what is sent to another rank is equal."""
    record = Record(Path("a.mp4"), "a.mp4", "x")
    clip = Clip(record, UsableSpan(0.0, 1.0, 0.1), 0, 9, 9)
    assert not any("__dict__" in dir(each) for each in (clip, clip.record, clip.span))
    assert pickle.loads(pickle.dumps(clip)) == clip and str(clip) == str(record) == "a.mp4"


def test_places_without_data_say_what_was_looked_for(tmp_path: Path) -> None:
    """Golden values; an unknown format names the choices."""
    looked_for = {
        "folder": ".mp4, .mov",
        "metadata": "metadata.csv",
        "lists": "videos.txt with prompts.txt",
        "huggingface": "metadata.parquet (subfolders too)",
    }
    for format, part in looked_for.items():
        assert part in refusal(tmp_path, format) and part in (fault_of_place(tmp_path, format) or "")
        assert part in refusal(tmp_path) or format == "huggingface"
    for name in ("none", "x" * 300):
        assert "does not exist" in refusal(tmp_path / name)
    assert "nor a table (.jsonl, .csv, .parquet)" in refusal(write(tmp_path / "a.mp4"))
    assert "use one of auto, folder, metadata, lists, huggingface" in refusal(tmp_path, "webdataset")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_the_tables_of_the_manual_are_read(tmp_path: Path, ending: str) -> None:
    """Golden values, from the examples in docs/data.md as they stand."""
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    table = write(tmp_path / f"metadata.{ending}", page.split(f"```{ending}\n")[1].partition("```")[0])
    beach, trip = find_records(table)
    assert (beach.name, beach.caption, beach.weight) == ("clips/beach.mp4", "Waves roll onto a beach.", 1.0)
    assert trip.path == tmp_path / "clips/trip.mov" and (trip.start_s, trip.end_s, trip.weight) == (12.5, 18.0, 2.0)
    assert trip.caption is not None and trip.fault is None
