"""Truths: a step that is not finite is left out and never averaged; evaluations draw alike, aside from training."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from cogvideox.data.mixture import Mixture
from cogvideox.parallel import Group, Groups, install
from cogvideox.sat_bridge import training
from cogvideox.sat_bridge.bad_numbers import GRADIENTS, LOSS, NumberWatch
from cogvideox.sat_bridge.loaders import EvaluationLoader
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.sat_bridge.timers import Timers
from cogvideox.sat_bridge.walk import Walk

NAN = float("nan")


class FakeEngine:
    """Counts what DeepSpeed would be asked to do, with `accumulation` micro-batches a step; some steps do not apply."""

    def __init__(self, accumulation: int = 1, bad_steps: tuple[int, ...] = ()) -> None:
        self.accumulation, self.losses, self.steps, self.micro_steps = accumulation, [], 0, 0
        self.bad_steps, self.applied = bad_steps, True
        self.module = torch.nn.Linear(1, 1)
        self.optimizer = SimpleNamespace(zero_grad=lambda **_: self.losses.clear())

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())

    def is_gradient_accumulation_boundary(self) -> bool:
        return (self.micro_steps + 1) % self.accumulation == 0

    def gradient_accumulation_steps(self) -> int:
        return self.accumulation

    def step(self) -> None:
        self.micro_steps += 1
        if self.micro_steps % self.accumulation == 0:
            self.steps += 1
            self.applied = self.steps not in self.bad_steps

    def was_step_applied(self) -> bool:
        return self.applied

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


class FakeLoader:
    order_id = "an order"

    def __init__(self) -> None:
        self.walk = Walk()

    def clips_of(self, step: int) -> list[str]:
        return [f"clip {step}"]

    def batch_of(self, step: int) -> Any:
        raise NotImplementedError


class Lines:
    """Takes down what would go to metrics.jsonl."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, dict[str, Any]]] = []

    def data_line(self, step: int, kind: str, values: Any) -> None:
        self.lines.append((step, kind, dict(values)))


class Recovered(Exception):
    """Stands where a run goes back or ends."""


def give_up() -> None:
    raise Recovered


def watching(most: int = 3) -> NumberWatch:
    watch = NumberWatch(most, Recorder(), Lines())
    watch.loader = FakeLoader()
    return watch


def step(
    losses: list[float], accumulation: int = 1, bad_steps: tuple[int, ...] = (), watch: NumberWatch | None = None
) -> tuple[torch.Tensor, FakeEngine, NumberWatch]:
    engine, values = FakeEngine(accumulation, bad_steps), iter(losses)
    watch = watch or watching()
    rates: list[None] = []
    args = argparse.Namespace(iteration=0, batch_size=3)

    def forward(*_: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value = torch.tensor(next(values))
        return value, {"loss": value, "extra": 2 * value}

    loss, skipped, metrics = training.train_step(
        iter(()),
        engine,
        SimpleNamespace(param_groups=[{"lr": 0.5}]),
        SimpleNamespace(step=lambda: rates.append(None)),
        args,
        Timers(),
        forward_step=forward,
        watch=watch,
        recover=give_up,
    )
    assert (skipped, metrics, len(rates)) == (0, {}, 1)
    return loss, engine, watch


def test_loss_and_metrics_are_means_over_micro_batches() -> None:
    loss, engine, watch = step([1.0, 3.0], accumulation=2)
    assert loss.item() == 2.0 and engine.losses == [1.0, 3.0] and engine.steps == 1
    assert watch.recorder.samples == 6
    assert watch.recorder.drain() == {"loss": 2.0, "extra": 4.0, "grad_norm": 2.0, "lr": 0.5}


def test_a_step_with_a_bad_loss_is_left_out_and_made_anew() -> None:
    loss, engine, watch = step([1.0, NAN, float("inf"), 5.0, 7.0], accumulation=2)
    assert loss.item() == 6.0 and engine.losses == [5.0, 7.0] and engine.steps == 1
    recorder = watch.recorder
    assert (recorder.skipped_steps, recorder.skipped_batches, recorder.samples) == (2, 3, 6)
    assert recorder.drain() == {
        "loss": 6.0,
        "extra": 12.0,
        "grad_norm": 2.0,
        "lr": 0.5,
        "skipped_batches": 3.0,
        "skipped_steps": 2.0,
    }
    told = [(kind, values["clips"]) for _, kind, values in watch._teller.lines]
    assert told == [(LOSS, "clip 1"), (LOSS, "clip 2")]


def test_a_step_with_bad_gradients_is_left_out_with_all_its_batches() -> None:
    loss, engine, watch = step([1.0, 3.0, 5.0, 7.0], accumulation=2, bad_steps=(1,))
    assert loss.item() == 6.0 and engine.steps == 2
    assert (watch.recorder.skipped_steps, watch.recorder.skipped_batches) == (1, 2)
    told = [(kind, values["clips"]) for _, kind, values in watch._teller.lines]
    assert told == [(GRADIENTS, "clip 0"), (GRADIENTS, "clip 1")]


def test_only_bad_steps_in_a_row_are_too_many() -> None:
    watch = watching(most=2)
    for _ in range(5):
        step([NAN, 1.0], watch=watch)
    with pytest.raises(Recovered):
        step([NAN, NAN, 1.0], watch=watch)
    assert watch.recorder.skipped_steps == 7


def test_what_was_bad_is_passed_over_when_it_comes_again_also_after_a_resume() -> None:
    watch = watching()
    step([1.0, NAN, 1.0, 1.0], accumulation=2, watch=watch)
    assert watch.loader.walk.next == 4
    assert watch.quarantine_bad() == 1
    watch.loader.walk.set(0)
    state = watch.state()
    resumed = watching()
    resumed.restore(state)
    for each in (watch, resumed):
        before = each.recorder.skipped_batches
        step([1.0, 1.0], accumulation=2, watch=each)
        assert [micro_batch.step for micro_batch in each.micro_batches] == [0, 2]
        assert each.recorder.skipped_batches == before + 1
    assert watch.state()["quarantined"] == []
    other = watching()
    other.loader.order_id = "another order"
    other.restore(state)
    assert not other.loader.walk.quarantined


def test_a_spike_is_told_with_its_clips_and_changes_nothing_and_a_resumed_run_flags_the_same() -> None:
    watch, resumed = watching(), watching()
    for number in range(120):
        step([1.0 + 0.1 * (number % 3)], watch=watch)
    resumed.restore(watch.state())
    for each, clip in ((watch, "clip 120"), (resumed, "clip 0")):
        loss, engine, _ = step([9.0], watch=each)
        assert (loss.item(), engine.steps) == (9.0, 1)
        (line,) = each._teller.lines
        assert line[1] == "loss spike" and (line[2]["clips"], line[2]["loss"]) == (clip, 9.0)
        assert each.recorder.drain()["loss_spikes"] == 1.0
        assert "loss_spikes" not in each.recorder.drain()


@dataclass(frozen=True)
class OtherModelRank(Group):
    """A model parallel rank whose other one has a loss that is not finite, or as here."""

    is_bad: bool = False

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(float(self.is_bad))

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        return tensor


@pytest.mark.parametrize("is_bad", [True, False])
def test_a_bad_loss_of_another_model_parallel_rank_counts(is_bad: bool) -> None:
    before = install(Groups(model=OtherModelRank(rank=0, size=2, is_bad=is_bad)))
    try:
        part, loss = training._reduce(torch.tensor(1.5), {"extra": torch.tensor(3.0)})
    finally:
        install(before)
    assert part["extra"].item() == 3.0
    assert math.isnan(loss) == is_bad and (is_bad or loss == 1.5)


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
