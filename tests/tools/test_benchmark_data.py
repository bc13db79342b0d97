"""tools/benchmark_data.py. Each test says which truth it checks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cogvideox.data.looking import look_at
from cogvideox.errors import UserError
from tools import benchmark, benchmark_data
from tools.benchmark_data import Job, job_of, measure, ours, reference, write_source

SMALL = (96, 160)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    for number, rate in enumerate(benchmark_data.SOURCE_RATES):
        write_source(folder / f"{number}.mp4", rate, number, SMALL, seconds=3)
    return sorted(folder.iterdir())


def test_contestants_read_the_same_frames(sources: list[Path]) -> None:
    """Identity: ours and the reference's way give the same pictures, and one frame later gives others."""
    for path, rate in zip(sources, benchmark_data.SOURCE_RATES, strict=True):
        job = job_of(path, rate, 9, (48, 64), 0.4, look_at(path, 3))
        alike = benchmark_data.decibels(ours(job), reference(job))
        later = Job(job.path, job.start_s, job.fps, tuple(each + 1 for each in job.indices), rate, job.size)
        assert alike > benchmark_data.ALIKE_DB and alike > benchmark_data.decibels(ours(job), reference(later)) + 3


def test_ratios_are_those_of_the_rates(sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity, with a peer that is missing and is told."""

    def missing(job: Job) -> np.ndarray:
        raise ModuleNotFoundError(f"No module named 'peer' for {job.path.name}")

    monkeypatch.setattr(benchmark_data, "PEERS", {"peer": missing})
    result = measure(sources, 5, (48, 64), "random", runs=5)
    assert result["skipped"] == {"peer": "ModuleNotFoundError: No module named 'peer' for 0.mp4"}
    assert result["ours_over"].keys() == {"reference"} and len(result["ours"]["seconds"]) == 5
    assert result["ours_over"]["reference"] == result["ours"]["clips_per_s"] / result["reference"]["clips_per_s"]
    with pytest.raises(UserError, match="lower --frames"):
        measure(sources, 81, (48, 64), "first", runs=5)


def test_other_frames_than_ours_are_not_timed(sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_data, "PEERS", {"black": lambda job: np.zeros_like(ours(job))})
    with pytest.raises(UserError, match="black"):
        measure(sources, 5, (48, 64), "first", runs=5)


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    """Golden values: what is written says what was run, with versions."""
    report = tmp_path / "report.json"
    assert benchmark.main(["data", "--clips", "1", "--frames", "5", "--json", str(report)]) == 0
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["benchmark"] == "data" and written["versions"]["av"]
    (result,) = written["results"]
    assert (result["clips"], result["frames"], result["size"]) == (1, 5, [480, 720])
