"""Truths: a signal or a limit ends a run between two steps, saved, with 0, and what goes on from there is bit for bit
the undisturbed run; a rank that dies or hangs ends all of them within seconds, with one account of why.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.end_to_end import runs
from tests.end_to_end.runs import CACHE, Run, train

ITERATIONS = 6
BASE = {
    "args": {"train_iters": ITERATIONS, "seed": 7, "cache": CACHE},
    "model": {"network_wrapper": "tests.end_to_end.mishaps.MishapWrapper"},
    "deepspeed": {"zero_optimization": {"stage": 2}},
}
ALLOWED = ("--allow-target", "tests")
MOST_STOPPING_S, MOST_DYING_S = 30, 15


def run(folder: Path, *flags: str, changes: dict | None = None, ranks: int = 2) -> Run:
    return train(folder, BASE, changes or {}, ranks=ranks, flags=(*ALLOWED, *flags))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    done = run(tmp_path_factory.mktemp("undisturbed"))
    assert done.status == 0, done.output[-3000:]
    return done


def seconds_since_mishap(done: Run) -> float:
    return time.time() - float(done.output.rpartition("mishap at ")[2].split()[0])


def last_line(done: Run) -> str:
    return done.output.strip().splitlines()[-1]


def test_a_signal_to_one_rank_stops_all_and_the_rest_is_exact(
    undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISHAPS", "1 3 TERM")
    # The reader gets the signal too, as from a batch system, and must live on.
    stopped = run(tmp_path, changes={"args": {"num_workers": 1, "eval_interval": 3, "eval_iters": 1}})
    assert stopped.status == 0, stopped.output[-3000:]
    assert f"stopped at iteration 3 of {ITERATIONS} by SIGTERM, saved" in last_line(stopped)
    assert f"--resume {stopped.folder}" in last_line(stopped)
    monkeypatch.delenv("MISHAPS")
    assert run(tmp_path, "--resume", str(stopped.folder)).status == 0
    assert stopped.losses == undisturbed.losses and len(stopped.losses) == ITERATIONS


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISHAPS", "0 2 INT+INT")
    done = run(tmp_path, ranks=1)
    assert done.status == 128 + 2 and "SIGINT: a second signal" in last_line(done), done.output[-3000:]
    assert "Traceback" not in done.output and not (done.folder / "latest").exists()


@pytest.mark.parametrize(("flag", "at"), [("--max-hours=0.000001", 1), ("--exit-interval=2", 2)])
def test_limits_end_a_run_saved(tmp_path: Path, flag: str, at: int) -> None:
    done = run(tmp_path, flag, ranks=1)
    assert done.status == 0, done.output[-3000:]
    assert f"stopped at iteration {at} of {ITERATIONS} by --" in last_line(done)
    assert (done.folder / "latest").read_text().strip() == str(at) and len(done.losses) == at


def test_a_killed_rank_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISHAPS", "1 2 KILL")
    done = run(tmp_path)
    assert seconds_since_mishap(done) < MOST_DYING_S
    assert done.status == 1 and "Traceback" not in done.output, done.output[-3000:]
    assert "rank 1 (pid " in last_line(done) and done.output.count("is gone without a word") == 1


def test_a_ranks_own_error_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISHAPS", "0 2 raise")
    done = run(tmp_path)
    assert done.status == 1 and done.output.count("Traceback") == 1, done.output[-3000:]
    assert "rank 0 has failed (RuntimeError: a mishap)" in last_line(done)


def test_a_stalled_rank_leaves_the_stacks_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISHAPS", "1 2 sleep")
    done = run(tmp_path, "--stall-timeout-s=2")
    assert done.status == 1 and done.output.count("no rank has got on for 2 s") == 1, done.output[-3000:]
    assert "happen" in (done.folder / "stacks/rank-1.txt").read_text()
    assert "train_step" in (done.folder / "stacks/rank-0.txt").read_text()


def test_torchrun_restarts_after_a_death_and_ends_with_0_after_a_signal(
    undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 is killed once, after a checkpoint; the second attempt's launcher is told to stop; then it is resumed."""
    changes = {"args": {"save_interval": 1, "resume": "auto"}}
    monkeypatch.setenv("MISHAPS", "0 3 KILL 0;1 3 ^TERM 1")
    launcher = [*runs.launcher(2), "--max-restarts=1", str(runs.ROOT / "train_video.py")]
    config = runs.write_config(tmp_path, BASE, changes)
    done = runs.run([*launcher, "--base", str(config), *ALLOWED], tmp_path / "runs", runs.environment(2))
    print(f"stopped under torchrun in {seconds_since_mishap(done):.1f} s")
    assert seconds_since_mishap(done) < MOST_STOPPING_S
    assert done.status == 0, done.output[-3000:]
    assert "rank 0 (" in done.output and "Traceback" not in done.output
    at = int((done.folder / "latest").read_text())
    assert f"stopped at iteration {at} of {ITERATIONS} by SIGTERM, saved" in done.output and 2 < at < ITERATIONS
    monkeypatch.delenv("MISHAPS")
    assert run(tmp_path, changes=changes).status == 0
    assert done.losses == undisturbed.losses and len(done.losses) == ITERATIONS
