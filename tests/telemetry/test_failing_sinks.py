"""Truth: golden values. A logging service that raises, hangs or meets a full disk costs a warning and never the run."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.telemetry.background import Background
from cogvideox.telemetry.metrics_file import MetricsFile, read_metrics
from cogvideox.telemetry.sinks import RunLogger, WandbSettings, _Guard
from cogvideox.telemetry.wandb_run import run_id_in
from cogvideox.telemetry.wandb_sink import WandbSink

SHORT_S, LONG_S = 0.2, 20.0


class Service:
    """A wandb whose parts do what a test says: `init`, `log` and `finish` are functions without arguments."""

    def __init__(self, **parts: Callable[[], object]) -> None:
        self.parts = {"init": lambda: None, "log": lambda: None, "finish": lambda: None} | parts
        self.settings: dict[str, Any] = {}
        self.steps: list[int] = []
        self.starting_step = 0
        self.Settings = type("Settings", (dict,), {"model_fields": {}})

    def init(self, **settings: Any) -> Any:
        self.settings = settings
        self.parts["init"]()
        return SimpleNamespace(log=self._log, finish=self.parts["finish"], starting_step=self.starting_step)

    def _log(self, values: dict, step: int) -> None:
        self.parts["log"]()
        self.steps.append(step)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs in a test waits for this; set at its end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


def service(monkeypatch: pytest.MonkeyPatch, **parts: Callable[[], object]) -> Service:
    fake = Service(**parts)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def sink(folder: Path, init_s: float = LONG_S, finish_s: float = LONG_S) -> WandbSink:
    return WandbSink(WandbSettings("films", "first", folder), _Guard("wandb"), init_s, finish_s)


def raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize("part", ["init", "log", "finish"])
@pytest.mark.parametrize("error", [ConnectionError("no route to host"), SystemExit(1)])
def test_a_service_that_fails_is_no_reason_to_stop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: str,
    error: BaseException,
) -> None:
    service(monkeypatch, **{part: raising(error)})
    log = RunLogger(tmp_path, tensorboard=False, wandb=WandbSettings("films", "first", tmp_path))
    for step in (1, 2, 3):
        log.iteration(step, {"loss": 0.5})
    log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    if isinstance(error, Exception):
        assert "wandb failed (ConnectionError: no route to host); training goes on" in caplog.text


def test_a_start_that_hangs_is_waited_for_a_while_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gate: threading.Event
) -> None:
    fake = service(monkeypatch, init=gate.wait)
    began = time.monotonic()
    log = sink(tmp_path, init_s=SHORT_S)
    log.add(1, {"loss": 0.5})
    assert SHORT_S <= time.monotonic() - began < LONG_S
    assert "wandb has not started within 0.2 s" in caplog.text
    gate.set()
    log.close()
    assert fake.steps == [1]


@pytest.mark.parametrize("part", ["log", "finish"])
def test_an_end_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gate: threading.Event, part: str
) -> None:
    service(monkeypatch, **{part: gate.wait})
    log = sink(tmp_path, finish_s=SHORT_S)
    began = time.monotonic()
    for step in (1, 2, 3):
        log.add(step, {"loss": 0.5})
    log.close()
    assert SHORT_S <= time.monotonic() - began < LONG_S
    assert "wandb has not taken everything within 0.2 s" in caplog.text


def test_a_service_that_does_not_answer_does_not_fill_the_memory(gate: threading.Event) -> None:
    background = Background("test", most_waiting=2)
    assert not background.wait(gate.wait, SHORT_S)
    assert [background.call(lambda: None) for _ in range(3)] == [True, True, False]


def test_all_resumes_of_a_run_are_one_run_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for name in ("one", "one", "two"):
        fake = service(monkeypatch)
        WandbSink(WandbSettings("films", name, tmp_path / name), _Guard("wandb")).close()
        assert fake.settings["resume"] == "allow"
        ids.append(fake.settings["id"])
    assert ids[0] == ids[1] != ids[2]
    (tmp_path / "one" / "wandb_run_id").write_text("../../x")
    assert run_id_in(tmp_path / "one").isalnum()


def test_what_a_resumed_run_trains_again_is_not_sent_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = service(monkeypatch)
    fake.starting_step = 3
    log = sink(tmp_path)
    for step in (1, 2, 3, 4):
        log.add(step, {"loss": 0.5})
    log.close()
    assert fake.steps == [3, 4]


def test_credentials_stay_out_of_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = service(monkeypatch)
    fake.Settings.model_fields["x_disable_meta"] = None  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "argv", ["train_video.py", "--train-data", "s3://me:hush@store/a.tar"])
    config = {"merged": {"args": {"train_data": ["s3://me:hush@store/a.tar"]}}}
    WandbSink(WandbSettings("films", "first", tmp_path, config), _Guard("wandb")).close()
    assert "hush" not in str(fake.settings)
    assert fake.settings["config"]["merged"]["args"]["train_data"] == ["s3://***@store/a.tar"]
    assert fake.settings["settings"] == {"x_disable_meta": True}


def test_a_full_disk_costs_lines_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLogger(tmp_path, tensorboard=False)
    log.iteration(1, {"loss": 0.5})
    with monkeypatch.context() as full:
        full.setattr(MetricsFile, "write", lambda *_: raising(OSError(errno.ENOSPC, "No space left on device"))())
        log.iteration(2, {"loss": 0.5})
    log.iteration(3, {"loss": 0.5})
    log.close()
    assert [line["iteration"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert "metrics.jsonl failed (OSError: [Errno 28] No space left on device); training goes on" in caplog.text
