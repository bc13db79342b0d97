"""Bad steps at every stage of ZeRO, in float32 and bfloat16. Truth: identity of the training's state, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16 import loss_scaler
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from cogvideox.sat_bridge.gradients import Outcome, outcome_of, take_step
from tests.end_to_end.warm_start import free_port, warm_context
from tests.sat_bridge.skipping_ranks import on_ranks


def test_a_bad_step_changes_nothing_at_any_stage(tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    arguments = [(rank, port, str(log), "compare", [0, 1, 2, 3]) for rank in range(2)]
    processes = [warm_context().Process(target=on_ranks, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0], log.read_text(errors="replace")[-4000:]


@pytest.mark.parametrize(
    ("applied", "scale", "least", "outcome"),
    [
        (True, None, None, Outcome.APPLIED),
        (True, 1024.0, 1.0, Outcome.APPLIED),
        (False, 1024.0, 1.0, Outcome.OVERFLOW),
        (False, 2.0, 1.0, Outcome.OVERFLOW),
        (False, 1.0, 1.0, Outcome.BAD),  # it cannot fall any further: it is not its doing
        (False, None, None, Outcome.BAD),  # no loss scale, or one that does not move
    ],
)
def test_fp16_overflows_are_told_from_what_is_not_finite(
    applied: bool, scale: float | None, least: float | None, outcome: Outcome
) -> None:
    assert outcome_of(applied, scale, least) is outcome


class HalfPrecision:
    """An engine at ZeRO 2 in fp16 whose gradients are not finite, as far as a CPU lets one have it."""

    def __init__(self, scaler: Any) -> None:
        self.optimizer = DeepSpeedZeroOptimizer.__new__(DeepSpeedZeroOptimizer)
        self.optimizer.__dict__ |= {
            "loss_scaler": scaler,
            "dtype": torch.float16,
            "compute_grad_norm": True,
            "check_grad_overflow": True,
        }

    def zero_optimization(self) -> bool:
        return True

    def step(self) -> None:
        self.optimizer.loss_scaler.update_scale(True)

    def was_step_applied(self) -> bool:
        return False

    def get_global_grad_norm(self) -> float:
        return float("inf")


def test_a_loss_scale_falls_to_its_least_before_steps_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 1)  # the one that logs is 0
    scaler = DynamicLossScaler(
        init_scale=8.0, scale_window=1000, min_scale=1.0, delayed_shift=1, consecutive_hysteresis=False
    )
    engine = HalfPrecision(scaler)
    outcomes = [take_step(engine)[0] for _ in range(5)]  # DeepSpeed's own would end the run at the fourth
    assert outcomes == [Outcome.OVERFLOW] * 3 + [Outcome.BAD] * 2 and scaler.cur_scale == 1.0


def test_a_loss_scale_that_does_not_move_is_no_excuse() -> None:
    assert take_step(HalfPrecision(LossScaler(8.0)))[0] is Outcome.BAD
