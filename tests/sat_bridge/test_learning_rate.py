"""Truths: the ramp, both ends of the decay, and that the value in the optimizer is the one that `rate` says."""

from __future__ import annotations

import argparse

import pytest
import torch

from cogvideox.sat_bridge.learning_rate import LearningRate, get_learning_rate_scheduler, rate

SHAPE = {"warmup_iterations": 10, "decay_iterations": 101, "decay_ratio": 0.1}


def test_warmup_is_a_linear_ramp_that_reaches_lr() -> None:
    ramp = [rate(i, 2.0, decay_style="linear", **SHAPE) for i in range(11)]
    assert ramp == pytest.approx([0.2 * (i + 1) for i in range(10)] + [2.0])


@pytest.mark.parametrize("style", ["linear", "cosine", "exponential"])
def test_decay_ends_at_its_ratio_and_stays(style: str) -> None:
    values = [rate(i, 2.0, decay_style=style, **SHAPE) for i in range(10, 130)]
    assert values[0] == pytest.approx(2.0)
    assert values[90] == pytest.approx(0.2)
    assert values[-1] == pytest.approx(0.2)
    assert all(later <= earlier for earlier, later in zip(values, values[1:], strict=False))


def test_midpoints_of_the_decays() -> None:
    at = {style: rate(55, 1.0, decay_style=style, **SHAPE) for style in ("linear", "cosine", "exponential", "constant")}
    assert at == pytest.approx({"linear": 0.55, "cosine": 0.55, "exponential": 0.1**0.5, "constant": 1.0})


def test_no_warmup_starts_at_lr() -> None:
    assert rate(0, 1.0, decay_style="cosine", warmup_iterations=0, decay_iterations=10, decay_ratio=0.0) == 1.0


def test_the_old_hold_is_there_for_who_asks() -> None:
    held = [rate(i, 1.0, decay_style="constant", auto_warmup_until=100, **SHAPE) for i in (0, 99, 100)]
    assert held == [0.05, 0.05, 1.0]


def test_the_scheduler_applies_the_rate_times_each_groups_factor_and_resumes() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": factor} for factor in (1.0, 0.5)]
    optimizer = torch.optim.AdamW(groups)
    args = argparse.Namespace(
        lr=1e-3, lr_decay_iters=None, train_iters=20, warmup=0.25, lr_decay_style="cosine", lr_decay_ratio=0.1,
        auto_warmup=False,
    )  # fmt: skip
    scheduler = get_learning_rate_scheduler(optimizer, 0, args)
    seen = []
    for _ in range(20):
        seen.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(seen[-1] / 2)
        scheduler.step()
    shape = {"warmup_iterations": 5, "decay_iterations": 20, "decay_ratio": 0.1, "decay_style": "cosine"}
    assert seen == pytest.approx([rate(i, 1e-3, **shape) for i in range(20)])

    other = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}])
    resumed = LearningRate(other, 0, 1e-3, **shape)
    resumed.load_state_dict({"iteration": 7})
    assert other.param_groups[0]["lr"] == pytest.approx(seen[7])


def test_a_hold_ends_where_it_did_before_the_run_was_resumed() -> None:
    args = argparse.Namespace(
        lr=1.0, lr_decay_iters=None, train_iters=200, warmup=0.0, lr_decay_style="constant", lr_decay_ratio=0.1,
        auto_warmup=True,
    )  # fmt: skip

    def scheduler_at(iteration: int) -> LearningRate:
        group = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}
        return get_learning_rate_scheduler(torch.optim.AdamW([group]), iteration, args)

    for at, rate_there in ((50, 0.05), (150, 1.0)):
        whole, resumed = scheduler_at(0), scheduler_at(at)
        whole.step(at)
        resumed.load_state_dict(whole.state_dict())
        assert resumed.get_lr() == whole.get_lr() == rate_there
