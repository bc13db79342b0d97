"""Truth: round trip. What was written is read back, wherever the writer died."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideox.telemetry.metrics_file import MetricsFile, read_metrics

ROOT = Path(__file__).resolve().parents[2]

WRITE_FOR_EVER = """
import sys, itertools
from pathlib import Path
from cogvideox.telemetry.metrics_file import MetricsFile
file = MetricsFile(Path(sys.argv[1]))
for step in itertools.count():
    file.write({"iteration": step, "loss": step / 7, "text": "x" * (step % 50)})
"""


def write(path: Path, *objects: dict) -> None:
    file = MetricsFile(path)
    for each in objects:
        file.write(each)
    file.close()


def test_round_trip(tmp_path: Path) -> None:
    objects = [{"iteration": 1, "loss": 0.1 + 0.2, "ok": True}, {"iteration": 2, "split": "val", "loss": 1e-300}]
    write(tmp_path / "metrics.jsonl", *objects)
    assert read_metrics(tmp_path / "metrics.jsonl") == objects


@pytest.mark.parametrize(("value", "note"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_non_finite_values_stay_valid_json(tmp_path: Path, value: float, note: str) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    write(tmp_path / "m", {"iteration": 1, "loss": value})
    line = (tmp_path / "m").read_text()
    assert json.loads(line, parse_constant=refuse) == {"iteration": 1, "loss": None, "loss_nonfinite": note}


@pytest.mark.parametrize("value", [torch.tensor(1.0), np.float32(1.0), np.float64(1.0), np.int64(1), [1.0]])
def test_only_plain_values_are_taken(tmp_path: Path, value: object) -> None:
    file = MetricsFile(tmp_path / "m")
    with pytest.raises(AssertionError, match="loss"):
        file.write({"loss": value})
    assert not (tmp_path / "m").exists()


def test_cut_anywhere_the_whole_lines_are_read_and_the_next_append_starts_a_line(tmp_path: Path) -> None:
    path = tmp_path / "m"
    objects = [{"iteration": 1, "text": "é{}"}, {"iteration": 22, "loss": 0.5}]
    write(path, *objects)
    data = path.read_bytes()
    first_line_ends = data.index(b"\n")
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = (cut >= first_line_ends) + (cut >= len(data) - 1)
        assert read_metrics(path) == objects[:whole], cut
        write(path, {"iteration": 3})
        assert read_metrics(path) == [*objects[:whole], {"iteration": 3}], cut
        assert all(json.loads(line) for line in path.read_bytes().splitlines()), cut


def test_a_bad_line_inside_is_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m").write_bytes(b'{"iteration": 1}\n\x00\x00{"iter\n{"iteration": 3}\n')
    assert read_metrics(tmp_path / "m") == [{"iteration": 1}, {"iteration": 3}]
    assert "line 2" in caplog.text


def test_a_killed_writer_leaves_every_line_but_perhaps_the_last(tmp_path: Path) -> None:
    path = tmp_path / "m"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(path)], env=environment)
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and not (path.exists() and path.stat().st_size > 100_000):
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    steps = [each["iteration"] for each in read_metrics(path)]
    assert len(steps) > 1000
    assert steps == list(range(len(steps)))


class FullDisk:
    """A raw file that takes `room` more bytes."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room, self.name = file, room, "m"

    def write(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        if not taken:
            raise OSError(28, "No space left on device")
        return self.file.write(taken)

    def truncate(self, size: int) -> None:
        self.file.truncate(size)


@pytest.mark.parametrize("room", [0, 5])
def test_a_full_disk_leaves_no_half_line(tmp_path: Path, room: int) -> None:
    file = MetricsFile(tmp_path / "m")
    file.write({"iteration": 1})
    real, file._opened = file._opened, FullDisk(file._opened, room)
    with pytest.raises(OSError):
        file.write({"iteration": 2, "loss": 0.25})
    file._opened = real
    file.write({"iteration": 3})
    assert read_metrics(tmp_path / "m") == [{"iteration": 1}, {"iteration": 3}]
