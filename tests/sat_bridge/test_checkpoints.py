"""When a run saves, beside the training too. Truths: what is on the disk when, and what is told of a failure."""

from __future__ import annotations

import argparse
import errno
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cogvideox.checkpoint import durable, saving
from cogvideox.checkpoint.loading import read_starting_weights
from cogvideox.checkpoint.manifest import fault_of
from cogvideox.errors import UserError
from cogvideox.parallel import Group
from cogvideox.sat_bridge import checkpoints as module
from cogvideox.sat_bridge.checkpoints import Checkpoints

STATE = {"best": None}


class Engine:
    """Gives its weight as DeepSpeed would."""

    basic_optimizer = None
    module = SimpleNamespace(trains_adapters_only=False)

    def __init__(self) -> None:
        self.checkpoint_engine: Any = SimpleNamespace()
        self.weight = torch.zeros(2)

    def save_checkpoint(self, _folder: str, tag: str, **_settings: Any) -> None:
        self.checkpoint_engine.save(
            state_dict={"module": {"w": self.weight}}, path=f"x/{tag}/mp_rank_00_model_states.pt"
        )

    def zero_optimization_partition_weights(self) -> bool:
        return False


def checkpoints_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Checkpoints:
    values = {"async_save": False, "save_full": False, "load": None, "save_total_limit": None, "keep_every": None}
    monkeypatch.setattr(module, "gate_of", lambda _: None)
    monkeypatch.setattr(module, "another_host_group", Group)
    return Checkpoints(argparse.Namespace(**(values | changes)), folder)


def fail_in(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """A disk that is full while any of these checkpoints is written."""
    real = durable.open_file

    def open_file(path: Path) -> Any:
        if path.parent.name in [f"{number}.incomplete" for number in numbers]:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path)

    monkeypatch.setattr(durable, "open_file", open_file)


def hold_up(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No checkpoint is written before this is set."""
    may_write, real = threading.Event(), saving.Snapshot.write

    def write(taken: saving.Snapshot, folder: Path) -> Any:
        assert may_write.wait(30)
        return real(taken, folder)

    monkeypatch.setattr(saving.Snapshot, "write", write)
    return may_write


def test_a_failed_save_is_told_and_the_next_one_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, engine = checkpoints_in(tmp_path, monkeypatch), Engine()
    fail_in(monkeypatch, 2)
    for iteration in (1, 2, 3):
        run.save(iteration, engine, STATE, is_last=False)
    assert "iteration 2 could not be saved" in caplog.text and "No space left on device" in caplog.text
    assert f"the newest checkpoint is {tmp_path / '1'}" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "latest"]
    assert run.saved_at == 3 and fault_of(tmp_path / "3") is None


def test_the_last_state_must_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, engine = checkpoints_in(tmp_path, monkeypatch), Engine()
    fail_in(monkeypatch, 2)
    run.save(1, engine, STATE, is_last=False)
    with pytest.raises(UserError, match=f"iteration 2, could not be saved .*the newest checkpoint is {tmp_path / '1'}"):
        run.save(2, engine, STATE, is_last=True)
    run.save(1, engine, STATE, is_last=True)  # which is there already


def test_beside_the_training_what_was_when_it_began_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, engine = checkpoints_in(tmp_path, monkeypatch, async_save=True), Engine()
    may_write = hold_up(monkeypatch)
    run.save(1, engine, STATE, is_last=False)
    engine.weight += 1  # the training goes on, and nothing is written yet
    assert not (tmp_path / "latest").exists() and run.saved_at == -1
    may_write.set()
    run.save(2, engine, STATE, is_last=False)  # waits for the one before it
    assert read_starting_weights(tmp_path / "1").state_dict["w"].tolist() == [0.0, 0.0]
    run.save(2, engine, STATE, is_last=True)
    assert run.saved_at == 2 and read_starting_weights(tmp_path).state_dict["w"].tolist() == [1.0, 1.0]


def test_a_failure_beside_the_training_is_told_and_the_last_save_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, engine = checkpoints_in(tmp_path, monkeypatch, async_save=True), Engine()
    with monkeypatch.context() as patch:
        fail_in(patch, 1)
        run.save(1, engine, STATE, is_last=False)
        run.wait()
    assert "iteration 1 could not be saved" in caplog.text and "there is no earlier checkpoint" in caplog.text
    run.save(1, engine, STATE, is_last=True)
    assert fault_of(tmp_path / "1") is None


def test_a_run_leaves_the_checkpoints_after_the_one_it_goes_on_from_once_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, engine = checkpoints_in(tmp_path, monkeypatch), Engine()
    for iteration in (10, 20, 30):
        before.save(iteration, engine, STATE, is_last=False)
    run = checkpoints_in(tmp_path, monkeypatch)
    run.go_on_from(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20", "30", "latest"]
    assert (tmp_path / "latest").read_text() == "30"  # a start that comes to nothing has changed nothing
    engine.weight += 1
    for iteration in (20, 25):
        run.save(iteration, engine, STATE, is_last=False)
    names = ["10", "20", "20.abandoned", "25", "30.abandoned", "latest"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names and (tmp_path / "latest").read_text() == "25"
    assert read_starting_weights(tmp_path / "20").state_dict["w"].tolist() == [1.0, 1.0]
    assert read_starting_weights(tmp_path / "20.abandoned").state_dict["w"].tolist() == [0.0, 0.0]
    assert caplog.text.count("are kept as") == 1


def test_an_error_is_told_before_the_wait_for_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, engine = checkpoints_in(tmp_path, monkeypatch, async_save=True), Engine()
    may_write = hold_up(monkeypatch)
    run.save(1, engine, STATE, is_last=False)
    threading.Timer(0.3, may_write.set).start()
    with pytest.raises(RuntimeError):
        try:
            raise RuntimeError("a mishap\nin two lines")
        finally:
            run.finish()
    assert capsys.readouterr().err == (
        "rank 0 ends by RuntimeError: a mishap; it waits for the checkpoint of iteration 1, which is being written\n"
    )
    assert fault_of(tmp_path / "1") is None


def test_what_is_not_written_in_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, may_write = checkpoints_in(tmp_path, monkeypatch, async_save=True), hold_up(monkeypatch)
    monkeypatch.setattr(module, "FINISH_S", 0.1)
    run.save(1, Engine(), STATE, is_last=False)
    run.finish()
    may_write.set()
    assert "iteration 1 could not be saved (not written after 0 s)" in caplog.text


def test_without_memory_for_copies_the_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = checkpoints_in(tmp_path, monkeypatch, async_save=True)
    monkeypatch.setattr(module, "available_memory", lambda: 0)
    run.save(1, Engine(), STATE, is_last=False)
    assert run.saved_at == 1 and "the training waits for this save" in caplog.text


def test_old_ones_go_once_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, engine = checkpoints_in(tmp_path, monkeypatch, save_total_limit=2, keep_every=4), Engine()
    for iteration in range(1, 8):
        run.save(iteration, engine, {"best": {"loss": 1.0, "iteration": 2}}, is_last=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "6", "7", "latest"]
