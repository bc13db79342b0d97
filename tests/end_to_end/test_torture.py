"""Truths: a run that is killed at any moment and resumed is the undisturbed run, to the bit; no checkpoint is lost."""

from __future__ import annotations

import random
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.end_to_end.runs import CACHE, environment, write_config
from tests.end_to_end.warm_start import start_warm
from tools import torture
from tools.torture_rounds import ANNOUNCED, LATEST, NAMED, SAVING, START_UP, STEP, Moment, Row, Torture

RANKS, LAST = 2, 9
EVERY_FEW = {
    "args": {
        "train_iters": LAST,
        "cache": CACHE,
        "save_interval": 2,
        "save_total_limit": 2,
        "eval_interval": 6,
        "eval_batch_size": 1,
        "eval_iters": 1,
        "strict_eval": False,
        "only_log_video_latents": True,
    }
}


@dataclass
class Warm:
    """A process that a rank is."""

    process: BaseProcess

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


def start_ranks(config: Path, save: Path, log: Path) -> list[Warm]:
    arguments = ["--base", str(config), "--save", str(save), "--resume", "auto"]
    return [Warm(process) for process in start_warm(arguments, environment(RANKS), RANKS, log)]


def tortured(folder: Path, stage: int, *kills: Moment, save_interval: int = 2) -> list[Row]:
    """What `Torture` did, without an objection, with runs of the smallest size.

    One more run is made where a moment never came, since the last one was over before.
    """
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0} if stage == 3 else {"stage": stage}
    changes = {"args": {"save_interval": save_interval}, "deepspeed": {"zero_optimization": zero}}
    config = write_config(folder, EVERY_FEW, changes)
    rows: list[Row] = []
    (folder / "work").mkdir()
    draws = random.Random(stage)
    job = Torture(
        lambda save, log: start_ranks(config, save, log), folder / "work", LAST, draws, rows.append, patience_s=1.0
    )
    job.undisturbed()
    job.disturbed(iter(kills))
    assert [row.moment for row in rows if row.killed] == [f"{kill.kind} {kill.nth}" for kill in kills]
    return rows


def test_runs_that_are_killed_at_each_kind_of_moment_end_as_the_undisturbed_one(tmp_path: Path) -> None:
    kills = [
        Moment(SAVING, 1, 0.0),
        Moment(NAMED, 1, 0.0),
        Moment(START_UP, 1, 2.0),
        Moment(LATEST, 1, 0.0),
        Moment(ANNOUNCED, 1, 0.1),
        Moment(STEP, 1, 0.05),
    ]
    rows = tortured(tmp_path, 2, *kills)
    assert any(row.resumed for row in rows) and rows[-1].reached == LAST


def test_whole_parameters_in_parts(tmp_path: Path) -> None:
    """ZeRO 3; below it nothing differs from 2 but who keeps what."""
    assert tortured(tmp_path, 3, Moment(LATEST, 2, 0.0))[-1].resumed in range(2, LAST)


def test_an_evaluation_that_was_logged_after_the_last_save_is_remembered(tmp_path: Path) -> None:
    assert tortured(tmp_path, 0, Moment(STEP, 7, 0.0), save_interval=6)[-1].resumed == 6


def test_the_tool_with_adapters_averages_and_saves_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_config(tmp_path)
    monkeypatch.setattr(torture.Processes, "__call__", lambda self, save, log: start_ranks(self.config, save, log))
    options = ["--rounds", "1", "--iterations", "8", "--lora", "--ema", "--async-save", "--base", str(base)]
    status = torture.main([*options, "--keep", str(tmp_path / "kept")])
    printed = capsys.readouterr().out
    assert status == torture.PASSED and printed.endswith("\npassed\n"), printed
    (run,) = (tmp_path / "kept" / "lap-1").iterdir()
    assert (run / "8" / "mp_rank_00_ema_states.pt").is_file() and "load:" in (run / "training_config.yaml").read_text()
