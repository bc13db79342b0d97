"""Truths: a loss that is not finite is dropped and never averaged; evaluations draw alike, aside from training."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from cogvideox.data.mixture import Mixture
from cogvideox.parallel import Group
from cogvideox.sat_bridge import training
from cogvideox.sat_bridge.loaders import EvaluationLoader
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.sat_bridge.timers import Timers


class FakeEngine:
    """Counts what DeepSpeed would be asked to do, with `accumulation` micro-batches a step."""

    def __init__(self, accumulation: int = 1) -> None:
        self.accumulation, self.losses, self.steps = accumulation, [], 0
        self.module = torch.nn.Linear(1, 1)

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())

    def is_gradient_accumulation_boundary(self) -> bool:
        return len(self.losses) % self.accumulation == 0

    def step(self) -> None:
        self.steps += 1

    def zero_optimization(self) -> bool:
        return True

    def zero_optimization_partition_weights(self) -> bool:
        return False

    def get_global_grad_norm(self) -> float:
        return 2.0

    def eval(self) -> None:
        pass

    def train(self) -> None:
        pass


def step(losses: list[float], accumulation: int = 1) -> tuple[torch.Tensor, FakeEngine, Recorder]:
    engine, recorder, values = FakeEngine(accumulation), Recorder(), iter(losses)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    scheduler = SimpleNamespace(step=lambda: None)
    args = argparse.Namespace(iteration=0, batch_size=3, fp16=False)

    def forward(*_: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value = torch.tensor(next(values))
        return value, {"loss": value, "extra": 2 * value}

    loss, skipped, metrics = training.train_step(
        iter(()), engine, optimizer, scheduler, args, Timers(), forward_step=forward, recorder=recorder
    )
    assert (skipped, metrics) == (0, {})
    return loss, engine, recorder


def test_loss_and_metrics_are_means_over_micro_batches() -> None:
    loss, engine, recorder = step([1.0, 3.0], accumulation=2)
    assert loss.item() == 2.0 and engine.losses == [1.0, 3.0] and engine.steps == 2
    assert recorder.samples == 6
    assert recorder.drain() == {"loss": 2.0, "extra": 4.0, "grad_norm": 2.0, "lr": 0.5}


def test_a_non_finite_batch_is_dropped_and_another_drawn() -> None:
    loss, engine, recorder = step([float("nan"), 1.0, float("inf"), 3.0], accumulation=2)
    assert loss.item() == 2.0 and engine.losses == [1.0, 3.0]
    assert recorder.skipped_batches == 2 and recorder.drain()["loss"] == 2.0


def test_only_non_finite_batches_end_the_run_with_advice() -> None:
    with pytest.raises(training.NonFiniteLoss, match="learning rate"):
        step([float("nan")] * training.MAX_BAD_BATCHES)


class Numbers(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> float:
        return float(index)


def test_evaluation_is_the_mean_over_samples_and_does_not_move_trainings_draws() -> None:
    args = argparse.Namespace(num_workers=0, seed=3, prefetch_factor=2)
    loader = EvaluationLoader(Mixture([(Numbers(), range(len(Numbers())))]), 2, Group(), args, None)
    draws = []

    def forward(iterator, *_: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # noqa: ANN001
        values = next(iterator)
        draws.append(torch.rand(()).item())
        return values.mean(), {"square": (values**2).mean()}

    engine = FakeEngine()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    results = [training.evaluate(loader, engine, 10, args, Timers(), forward) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    assert draws[:3] == draws[3:]
    assert results == [pytest.approx({"loss": 2.0, "square": 6.0})] * 2
    assert training.evaluate(loader, engine, 1, args, Timers(), forward)["loss"] == 0.5
