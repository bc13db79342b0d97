"""A run that goes on on another number of ranks. Truths: identity with the undisturbed run (every draw is a function of
the sample, see `fixed_draws`), and each clip once an epoch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cogvideox.telemetry.metrics_file import read_metrics
from tests.end_to_end.runs import CACHED, LORA, Run, train

TESTS = ("--allow-target", "tests")
FIXED = {"model": {"loss_fn_config": {"target": "tests.end_to_end.fixed_draws.FixedDrawLoss"}}}
EMA = {"deepspeed": {"optimizer": {"type": "EmaAdamW"}}}
STOPPED, ITERATIONS = 2, 5
SIX_A_STEP = {1: 6, 2: 3, 3: 2}  # batch size by ranks


def settings(stage: int, batch: int) -> dict:
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    length = {"train_iters": ITERATIONS, "lr_decay_iters": ITERATIONS, "warmup": 0.0, "save_interval": STOPPED}
    return {"args": length, "deepspeed": {"zero_optimization": zero, "train_micro_batch_size_per_gpu": batch}}


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "split" not in line]


def gone_on(whole: Run, folder: Path, ranks: int, *changes: dict, at: int = STOPPED) -> list[float]:
    """The losses of `whole` up to iteration `at`, then of as many ranks."""
    run = folder / "run"
    shutil.copytree(whole.folder, run)
    resumed = train(folder / "job", *changes, ranks=ranks, flags=(*TESTS, "--resume", str(run / str(at))))
    assert resumed.status == 0, resumed.output[-3000:]
    assert "its parts are cut anew" in resumed.output
    return losses_of(run)


KINDS = [(1, {}), (2, LORA), (3, {}), (3, LORA)]


@pytest.mark.parametrize(("stage", "kind"), KINDS, ids=["1", "2-lora", "3", "3-lora"])
def test_the_loss_goes_on_as_on_as_many_ranks(tmp_path: Path, stage: int, kind: dict) -> None:
    """The optimizer's moments and averages are there in full: without them the next losses are others by far more."""
    changes = (FIXED, kind, EMA, CACHED)
    whole = train(tmp_path / "whole", settings(stage, SIX_A_STEP[2]), *changes, ranks=2, flags=TESTS)
    assert whole.status == 0 and len(whole.losses) == ITERATIONS, whole.output[-3000:]
    for ranks in (1, 3):
        losses = gone_on(whole, tmp_path / str(ranks), ranks, settings(stage, SIX_A_STEP[ranks]), *changes)
        assert losses == pytest.approx(whole.losses, rel=1e-5)
        assert losses[:STOPPED] == whole.losses[:STOPPED] and losses != whole.losses[:1] * ITERATIONS


def test_each_clip_comes_once_in_the_epoch_whose_ranks_change(tmp_path: Path) -> None:
    """With a learning rate of 0 a loss tells which clips a step had."""
    still = {"args": {"save_interval": 1, **CACHED["args"]}, "deepspeed": {"optimizer": {"params": {"lr": 0.0}}}}
    one = train(tmp_path / "one", settings(1, 1), FIXED, still, flags=(*TESTS, "--train-iters", "6"))
    clips = sorted(one.losses)
    assert one.status == 0 and len(set(clips)) == 6, one.output[-3000:]
    two = train(tmp_path / "two", settings(1, 1), FIXED, still, ranks=2, flags=(*TESTS, "--train-iters", "2"))
    total = 2 * sum(two.losses)
    rest = {"args": {"train_iters": 4}}
    later = gone_on(two, tmp_path / "rest", 1, settings(1, 1), FIXED, still, rest, at=2)[2:]
    assert len(later) == 2 and total + sum(later) == pytest.approx(sum(clips), rel=1e-5)
    last = gone_on(one, tmp_path / "three", 3, settings(1, 1), FIXED, still, rest, at=3)[3:]
    assert sum(one.losses[:3]) + 3 * last[0] == pytest.approx(sum(clips), rel=1e-5)
