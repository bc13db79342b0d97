"""Truth: golden lists of what goes and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.retention import Retention


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
