"""Truth: round trip. Each sink gives back what was logged, by TensorBoard's own reader and by wandb's rule of steps."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cogvideox.telemetry.metrics_file import read_metrics
from cogvideox.telemetry.sinks import NullLogger, RunLogger, WandbSettings
from cogvideox.telemetry.wandb_run import INIT_TIMEOUT_S


class FakeRun:
    """Keeps wandb's rule: a row for a step below the present one is dropped, and a step is committed by the next."""

    def __init__(self) -> None:
        self.rows: dict[int, dict] = {}
        self.calls: list[int] = []
        self.is_finished = False
        self.starting_step = 0

    def log(self, values: dict, step: int) -> None:
        self.calls.append(step)
        if step >= max(self.rows, default=0):
            self.rows.setdefault(step, {}).update(values)

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def wandb_run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    run = FakeRun()

    def init(**settings: object) -> FakeRun:
        run.settings = settings
        return run

    limits = type("Settings", (dict,), {"model_fields": {"init_timeout": None}})
    module = SimpleNamespace(init=init, Settings=limits, Video=lambda path, format: (path, format))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


def settings(tmp_path: Path) -> WandbSettings:
    return WandbSettings(project="films", name="first", dir=tmp_path, config={"lr": 1.0})


def board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in board(folder).Scalars(tag)]


def test_metrics_and_the_tags_of_the_reference(tmp_path: Path) -> None:
    log = RunLogger(tmp_path)
    log.iteration(10, {"loss": 0.5, "lr": 1e-4, "seconds_per_iteration": 0.25, "grad_norm": 2.0})
    log.evaluation(10, {"loss": 1.5}, split="val")
    log.evaluation(10, {"loss": 2.5}, split="test")
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"iteration": 10, "loss": 0.5, "lr": 1e-4, "seconds_per_iteration": 0.25, "grad_norm": 2.0},
        {"iteration": 10, "split": "val", "loss": 1.5},
        {"iteration": 10, "split": "test", "loss": 2.5},
    ]
    found = {tag: scalars(tmp_path, tag)[0] for tag in board(tmp_path).Tags()["scalars"]}
    assert found == {
        "Train/train_loss": (10, 0.5),
        "Train/lr": (10, pytest.approx(1e-4)),
        "Train/elapsed_time": (10, 250.0),  # milliseconds
        "Train/grad_norm": (10, 2.0),
        "Train/valid_loss": (10, 1.5),
        "Train/valid_ppl": (10, pytest.approx(math.exp(1.5))),
        "Train/test_loss": (10, 2.5),
        "Train/test_ppl": (10, pytest.approx(math.exp(2.5))),
    }


def test_a_resumed_run_replaces_what_it_trains_again(tmp_path: Path) -> None:
    for steps, loss in (((1, 2, 3), 1.0), ((2, 3, 4), 2.0)):
        log = RunLogger(tmp_path)
        for step in steps:
            log.iteration(step, {"loss": loss})
        log.close()
    assert scalars(tmp_path, "Train/train_loss") == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6


def test_non_finite_values_reach_every_sink(tmp_path: Path, wandb_run: FakeRun) -> None:
    log = RunLogger(tmp_path, wandb=settings(tmp_path))
    log.iteration(1, {"loss": math.nan})
    log.evaluation(1, {"loss": math.inf}, split="val")
    log.close()
    assert math.isnan(scalars(tmp_path, "Train/train_loss")[0][1])
    assert scalars(tmp_path, "Train/valid_ppl") == [(1, pytest.approx(math.exp(20)))]
    assert math.isnan(wandb_run.rows[1]["Train/train_loss"])


def test_wandb_gets_one_call_a_step_and_drops_nothing(tmp_path: Path, wandb_run: FakeRun) -> None:
    log = RunLogger(tmp_path, wandb=settings(tmp_path))
    log.iteration(5, {"loss": 0.5})
    log.videos(5, {"samples_video_0": tmp_path / "a.mp4"}, fps=8)
    log.evaluation(5, {"loss": 0.7}, split="val")
    log.iteration(10, {"loss": 0.4})
    log.evaluation(9, {"loss": 0.9}, split="test")  # past: joins step 10 instead of being dropped
    log.close()
    assert wandb_run.calls == [5, 10]
    assert wandb_run.rows[5] == {
        "Train/train_loss": 0.5,
        "samples_video_0": (str(tmp_path / "a.mp4"), "mp4"),
        "Train/valid_loss": 0.7,
        "Train/valid_ppl": pytest.approx(math.exp(0.7)),
    }
    assert wandb_run.rows[10]["Train/train_loss"] == 0.4
    assert wandb_run.rows[10]["Train/test_loss"] == 0.9
    assert wandb_run.is_finished
    assert wandb_run.settings == {
        "project": "films",
        "name": "first",
        "dir": str(tmp_path),
        "id": (tmp_path / "wandb_run_id").read_text().strip(),
        "resume": "allow",
        "config": {"lr": 1.0},
        "settings": {"init_timeout": INIT_TIMEOUT_S},
    }


def test_a_failing_service_is_said_once_and_stops_nothing(
    tmp_path: Path, wandb_run: FakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(values: dict, step: int) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb_run, "log", fail)
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    log = RunLogger(tmp_path, wandb=settings(tmp_path))
    for step in range(1, 5):
        log.iteration(step, {"loss": 0.5})
    log.close()
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert any("wandb" in each and "no route to host" in each for each in warnings)
    assert any("TensorBoard" in each for each in warnings)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_a_missing_wandb_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    RunLogger(tmp_path, wandb=settings(tmp_path)).iteration(1, {"loss": 0.5})
    assert "pip install 'wandb" in caplog.text


def test_wandb_is_imported_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # any import of it fails from here on
    log = RunLogger(tmp_path, tensorboard=False)
    log.iteration(1, {"loss": 0.5})
    log.videos(1, {"samples": tmp_path / "a.mp4"}, fps=8)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_numbers_that_are_not_plain_are_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="loss"):
        RunLogger(tmp_path, tensorboard=False).iteration(1, {"loss": np.float32(1)})


def test_the_null_logger_has_the_same_methods_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = NullLogger()
    log.iteration(1, {"loss": 0.5})
    log.evaluation(1, {"loss": 0.5}, split="val")
    log.videos(1, {}, fps=8)
    log.close()
    assert not list(tmp_path.iterdir())
