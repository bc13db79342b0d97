"""Truth: golden lists of what goes and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.retention import Retention, abandon_after, keep_up


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for number in (10, 20, 30, 40, 50, 60):
        (tmp_path / str(number)).mkdir()
    (tmp_path / "latest").write_text("50")
    return tmp_path


@pytest.mark.parametrize(
    ("retention", "goes"),
    [
        (Retention(), []),
        (Retention(every=20), []),
        (Retention(limit=1), [10, 20, 30, 40]),
        (Retention(limit=3), [10, 20]),
        (Retention(limit=9), []),
        (Retention(limit=1, every=20), [10, 30]),
        (Retention(limit=2, best=10), [20, 30]),
    ],
)
def test_what_goes(run: Path, retention: Retention, goes: list[int]) -> None:
    """60 is not the past of 50: an interrupted save's, or what the run went back from."""
    assert [int(path.name) for path in retention.to_delete(run)] == goes
    retention.apply(run)
    assert sorted(int(path.name) for path in run.iterdir() if path.is_dir()) == [
        number for number in (10, 20, 30, 40, 50, 60) if number not in goes
    ]


def test_one_that_cannot_be_deleted_is_told_and_stays(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = durable.remove_folder

    def remove(path: Path) -> None:
        if path.name == "20":
            raise PermissionError(13, "Permission denied", str(path))
        real(path)

    monkeypatch.setattr(durable, "remove_folder", remove)
    Retention(limit=2).apply(run)
    assert f"{run}/20 cannot be deleted (Permission denied)" in caplog.text
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["20", "40", "50", "60"]


def test_a_run_that_went_on_from_before_leaves_its_later_checkpoints_by_name(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """60 is an interrupted save's, after 50: the next save of 60 takes its place."""
    (run / "40.abandoned").mkdir()  # by going back before
    abandon_after(run, 30)
    assert "went on from iteration 30: its later checkpoints are kept as 40.abandoned-2, 50.abandoned" in caplog.text
    names = ["10", "20", "30", "40.abandoned", "40.abandoned-2", "50.abandoned", "60", "latest"]
    assert sorted(path.name for path in run.iterdir()) == names and (run / "latest").read_text() == "30"
    (run / "70").mkdir()
    (run / "latest").write_text("70")
    assert [path.name for path in Retention(limit=2).to_delete(run)] == ["10", "20", "30"]


def test_a_run_that_went_on_from_its_newest_checkpoint_changes_nothing(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    abandon_after(run, 50)
    keep_up(run, 50)
    keep_up(run, 30)
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before


@pytest.mark.parametrize("latest", ["50", None])
def test_latest_keeps_up_with_what_a_run_goes_on_from(run: Path, latest: str | None) -> None:
    if latest is None:
        (run / "latest").unlink()
    keep_up(run, 60)
    assert (run / "latest").read_text() == "60"


def test_names_that_cannot_be_given_are_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def rename(path: Path, name: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(durable, "rename", rename)
    abandon_after(run, 30)
    assert f"{run}: later checkpoints cannot be renamed (Permission denied)" in caplog.text
    assert (run / "latest").read_text() == "50"
