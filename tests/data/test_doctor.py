"""The parts of the data doctor: processes that may crash, videos decoded whole, the ledger and the list."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cogvideox.data.clips import ClipSize
from cogvideox.data.doctor import files_of, unanswered
from cogvideox.data.judging import Wanted
from cogvideox.data.ledger import Entry, is_quarantine_list, with_duplicates, with_remarks, write_quarantine
from cogvideox.data.processes import Lost, in_processes
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.records import Record
from cogvideox.data.whole import decode_whole
from tests.data.jobs import work_or_not
from tests.data.painted import even_times, write_painted


def silent(_: Any = None) -> None:
    """Nobody listens."""


def test_a_crash_and_a_hang_cost_one_job_each() -> None:
    """Golden values: each bad job is named with its end, all others are answered; by a single process too."""
    jobs = ["a", "crash", "b", "hang", "fail", "long", "crash", "c"]
    answers = dict(in_processes(work_or_not, jobs, workers=2, stall_s=3.0))
    assert sorted(answers) == list(range(8)) and all(answers[place] == [] for place in (0, 2, 5, 7))
    lost = {place: answer for place, answer in answers.items() if isinstance(answer, Lost)}
    kinds = {place: answer.kind for place, answer in lost.items()}
    assert kinds == {1: "crashed", 3: "hung", 4: "failed", 6: "crashed"}
    assert "SIGSEGV" in lost[1].reason and "3 s" in lost[3].reason and "ValueError: no" in lost[4].reason
    (crashed, _), (answered, answer) = in_processes(work_or_not, ["crash", "a"], workers=1, stall_s=3.0)
    assert (crashed, answered, answer) == (0, 1, [])


def test_a_file_that_crashes_its_reader_is_bad_for_what_is_wanted_of_it() -> None:
    """Golden values: of two parts of a file, the one of weight 0 stays left out by choice."""
    parts = [Record(Path("/a.mp4"), name, "text", weight=weight) for name, weight in (("a", 1.0), ("b", 0.0))]
    wanted = Wanted((ClipSize(9, 64, 96),), 8, 0, 0.5, False, 1.0)
    (file,) = files_of(parts, {})
    entries = [entry for _, entry in unanswered(file, "crash the reader", "SIGSEGV", wanted)]
    assert [(each.name, each.kind, each.is_bad) for each in entries] == [
        ("a", "crash the reader", True),
        ("b", "without weight", False),
    ]


def write_plain(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(16))
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def test_black_frozen_and_variable(tmp_path: Path) -> None:
    """Golden values: the shares of black and of repeated pictures; which frame rates vary."""
    black, grey = np.zeros((64, 96, 3), np.uint8), np.full((64, 96, 3), 120, np.uint8)
    write_plain(tmp_path / "black.mp4", [black] * 10)
    write_plain(tmp_path / "half.mp4", [black] * 5 + [grey] * 6)
    found = {name: decode_whole(tmp_path / f"{name}.mp4", silent) for name in ("black", "half")}
    assert (found["black"].black_share, found["black"].still_share) == (1, 1)
    assert (found["half"].black_share, found["half"].still_share) == pytest.approx((5 / 11, 9 / 10))
    times = {"even": even_times(24, 20), "ntsc": even_times(Fraction(30000, 1001), 20)}
    times["gap"] = [time + (0.1 if time > 0.5 else 0) for time in times["even"]]
    for name, of_frames in times.items():
        write_painted(tmp_path / f"{name}.mp4", of_frames)
        whole = decode_whole(tmp_path / f"{name}.mp4", silent)
        assert whole.has_variable_rate == (name == "gap") and not whole.damaged_s and whole.still_share < 0.1
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(UnreadableVideo):
        decode_whole(tmp_path / "empty.mp4", silent)


def test_names_that_a_list_cannot_hold(tmp_path: Path) -> None:
    """Golden values: a comment's sign gives the path; line breaks, and names shared with a good clip, are returned."""
    bad = [Entry(name, f"/data/{name}", "too short", "is\ntoo\tshort") for name in ("#1.mp4", "a\nb.mp4", "two.mp4")]
    entries = [*bad, Entry("two.mp4", "/data/two.mp4", start_s=1.0)]
    unlisted = write_quarantine(entries, tmp_path / "q.txt", tmp_path)
    lines = (tmp_path / "q.txt").read_text().splitlines()
    assert lines[1:] == [f"# data: {tmp_path}", "/data/#1.mp4\tis too short"]
    assert unlisted == bad[1:] and is_quarantine_list(tmp_path / "q.txt")


def test_duplicates_are_of_the_same_window_and_never_of_a_bad_clip() -> None:
    """Golden values."""
    same = {"content": "x", "path": "p"}
    entries = [
        Entry("bad", **same, kind="too short"), Entry("a", **same), Entry("a", **same, start_s=2.0), Entry("b", **same),
    ]  # fmt: skip
    assert [entry.duplicate_of for entry in with_duplicates(entries)] == [None, None, None, "a"]
    frozen = with_remarks(Entry("c", "p", frames=9, still_share=1.0), also_bad=["frozen"])
    assert frozen.kind == "frozen" and frozen.is_bad and frozen.remarks == ("frozen",)
