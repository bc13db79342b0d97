"""The process that verifies a checkpoint. Truth: what stand-ins for the tool print and how they end."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.progress import forget, last_tick
from cogvideox.sat_bridge import verification


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    path = folder / "tool.py"
    path.write_text(f"import sys, time\nprint(sys.argv[1], flush=True)\n{body}\n")
    monkeypatch.setattr(verification, "TOOL", path)
    monkeypatch.setattr(verification, "LOOK_S", 0.05)
    forget()


def test_what_it_says_and_its_status_come_back_and_the_wait_is_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, "time.sleep(0.5); print('NOT verified'); sys.exit(1)")
    assert verification.ask(["a folder"]) == (1, "a folder\nNOT verified")
    last = last_tick()
    assert last is not None and last[0] == "a look at the verification"


def test_one_that_does_not_end_is_killed_and_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tool(tmp_path, monkeypatch, "time.sleep(100)")
    monkeypatch.setattr(verification, "MOST_S", 1.0)
    gate = verification.LiveGate.__new__(verification.LiveGate)
    gate.allowed = []
    gate.check(tmp_path / "1")
    assert f"{tmp_path / '1'} could not be verified, training goes on" in caplog.text
    assert "was ended by signal 9, as when memory runs out, or after 0.000277778 hours" in caplog.text
