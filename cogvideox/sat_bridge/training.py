"""One optimizer step and one evaluation: in place of SAT's `train_step`, `train` and `evaluate_and_print_results`.

SAT reduces the loss twice, synchronises host and device once per metric and micro-batch, lets a NaN into the averages,
counts evaluations and saves into "time per iteration", and reports rank 0's loss as everybody's.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cogvideox.checkpoint.resuming import restore_random_state
from cogvideox.parallel import current
from cogvideox.platform import current_device
from cogvideox.progress import tick
from cogvideox.sat_bridge.bad_numbers import GRADIENTS, LOSS, NumberWatch
from cogvideox.sat_bridge.distributed import seed_everything, seed_of_draws
from cogvideox.sat_bridge.gradients import Outcome, drop_gradients, take_step
from cogvideox.sat_bridge.loaders import EvaluationLoader
from cogvideox.sat_bridge.timers import Timers
from cogvideox.telemetry.phases import phases

Step = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]


def train_step(
    data_iterator: Iterator[Any],
    engine: Any,
    optimizer: Any,
    lr_scheduler: Any,
    args: argparse.Namespace,
    timers: Timers,
    *,
    forward_step: Step,
    watch: NumberWatch,
    recover: Callable[[], None],
) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    """One step of the optimizer, from as many micro-batches as it takes.

    A step whose loss or gradients are not finite on any rank is left out on all of them, and tried again with the next
    batches. After `--max-bad-steps` in a row `recover` is called, which may set the run back (`args.iteration` too).

    Returns:
        the mean loss over micro-batches and ranks (a scalar on the device), 1 if fp16 overflowed else 0, and no
        metrics: the recorder keeps them on the device until they are logged. An overflow takes an iteration without
        changing the weights or the learning rate, while fp16's loss scale looks for its size.
    """
    recorder = watch.recorder
    while True:
        parts, loss = _accumulate(data_iterator, engine, args, timers, forward_step, watch)
        outcome, norm = Outcome.BAD, None
        if math.isfinite(loss):
            recorder.lr = optimizer.param_groups[0]["lr"]
            with phases("optimizer"):
                outcome, norm = take_step(engine)
        if outcome is not Outcome.BAD:
            break
        drop_gradients(engine)
        if watch.bad(args.iteration + 1, GRADIENTS if math.isfinite(loss) else LOSS):
            recover()
    for part in parts:
        recorder.add_micro_batch(part, samples=args.batch_size)
    recorder.grad_norm = recorder.grad_norm if norm is None else norm
    recorder.overflows += outcome is Outcome.OVERFLOW
    watch.good(args.iteration + 1, loss)
    if outcome is Outcome.APPLIED:
        lr_scheduler.step()
    return torch.stack([part["loss"] for part in parts]).mean(), int(outcome is Outcome.OVERFLOW), {}


def _accumulate(
    data_iterator: Iterator[Any],
    engine: Any,
    args: argparse.Namespace,
    timers: Timers,
    forward_step: Step,
    watch: NumberWatch,
) -> tuple[list[dict[str, torch.Tensor]], float]:
    """Forward and backward of a step's micro-batches, up to one with a bad loss; what each gave, and the mean loss."""
    parts: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    watch.begin()
    while True:
        if engine.zero_optimization_partition_weights():
            # Else stage 3 overwrites the gradients of earlier micro-batches: DeepSpeed 0.19 counts micro-batches in its
            # own `forward`, which SAT's `shared_step` passes by. To go when either changes.
            engine.optimizer.clear_backward_seen_flag()
        began = watch.forward_begins()
        loss, metrics = forward_step(data_iterator, engine, args, timers)
        watch.forward_ended(began, engine, loss)
        part, mean = _reduce(loss, metrics)
        parts.append(part)
        losses.append(mean)
        if not math.isfinite(mean):
            break
        with phases("backward"):
            engine.backward(loss)
        if engine.is_gradient_accumulation_boundary():
            break
        engine.step()
    return parts, sum(losses) / len(losses)


def _reduce(loss: torch.Tensor, metrics: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], float]:
    """Means over the data parallel ranks in one collective, and the mean loss as a number, by the one host sync of a
    micro-batch: not finite on any rank if it is not on one.
    """
    names = ["loss", *(name for name in metrics if name != "loss" and "eval" not in name)]
    values = [loss, *(metrics[name] for name in names[1:])]
    packed = torch.stack([value.detach().float() for value in values])
    current().data.mean(packed)
    model = current().model
    if model.size > 1:  # all ranks must know of one's bad loss, and go by one number
        bad = model.sum((~torch.isfinite(packed[0])).float())
        packed = model.broadcast(packed)
        packed[0] = torch.where(bad > 0, torch.nan, packed[0])
    return dict(zip(names, packed.unbind(), strict=True)), float(packed[0])


@contextmanager
def prepared_for_training(args: argparse.Namespace, random_state: dict[str, Any] | None) -> Iterator[None]:
    """What holds around SAT's `train`: each rank's own draws (or those to resume), no collector.

    Collecting cost the reference 0.35 s at every step; what setup left behind is frozen once instead.
    """
    seed_everything(seed_of_draws(args.seed, current().data.rank, args.iteration))
    if random_state is not None:
        restore_random_state(random_state)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def own_random_stream(seed: int) -> Iterator[None]:
    """Draw from `seed` inside; the training's random stream goes on after it as if nothing had been drawn."""
    device = current_device()
    devices = [] if device.type == "cpu" else [device]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        seed_everything(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def evaluate(
    loader: EvaluationLoader,
    engine: Any,
    batches: int,
    args: argparse.Namespace,
    timers: Timers,
    forward_step: Step,
    goes_on: Callable[[], bool] = lambda: True,
) -> dict[str, float] | None:
    """Mean loss and metrics over all samples of the first `batches` batches and over all ranks.

    Every evaluation sees the same samples with the same draws, so that its losses compare. None where `goes_on`, which
    is asked before each batch, says that the run ends.
    """
    totals: dict[str, torch.Tensor] = {}
    counted = torch.zeros((), dtype=torch.float64)
    engine.eval()
    args.eval_batch, is_whole = 0, True
    with torch.no_grad(), own_random_stream(seed_of_draws(args.seed, current().data.rank)):
        iterator = iter(loader)
        for number in range(min(batches, len(loader))):
            if not (is_whole := goes_on()):
                break
            args.eval_batch = number
            loss, metrics = forward_step(iterator, engine, args, timers)
            for name, value in {"loss": loss, **metrics}.items():
                total = value.detach().double().cpu() * loader.weight_of(number)
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + total
            counted += loader.weight_of(number)
            tick("a batch of an evaluation")
    engine.train()
    current().host.barrier()  # data parallel rank 0 may have sampled for longer than a GPU collective waits
    return _mean_over_ranks(totals, counted) if is_whole else None


def _mean_over_ranks(totals: dict[str, torch.Tensor], counted: torch.Tensor) -> dict[str, float]:
    packed = torch.stack([*totals.values(), counted]).to(current_device(), torch.float32)
    current().data.sum(packed)
    *sums, count = packed.tolist()
    return {name: value / count if count else math.nan for name, value in zip(totals, sums, strict=True)}
