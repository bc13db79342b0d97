"""One optimizer step and one evaluation: in place of SAT's `train_step`, `train` and `evaluate_and_print_results`.

SAT reduces the loss twice, synchronises host and device once per metric and micro-batch, lets a NaN into the averages,
counts evaluations and saves into "time per iteration", and reports rank 0's loss as everybody's.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cogvideox.checkpoint.resuming import restore_random_state
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import current_device
from cogvideox.sat_bridge.distributed import seed_everything, seed_of_draws
from cogvideox.sat_bridge.loaders import EvaluationLoader
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.sat_bridge.timers import Timers
from cogvideox.telemetry.phases import phases

logger = logging.getLogger(__name__)

Step = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]
MAX_BAD_BATCHES = 50


class NonFiniteLoss(UserError):
    """The loss was NaN or infinite for `MAX_BAD_BATCHES` batches in a row."""


def train_step(
    data_iterator: Iterator[Any],
    engine: Any,
    optimizer: Any,
    lr_scheduler: Any,
    args: argparse.Namespace,
    timers: Timers,
    *,
    forward_step: Step,
    recorder: Recorder,
) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    """Forward and backward for every micro-batch of an iteration, then the optimizer.

    A loss that is not finite on any rank makes all ranks drop that micro-batch together and draw another.

    Returns:
        the mean loss over micro-batches and ranks (a scalar on the device), 1 if fp16 overflowed else 0, and no
        metrics: the recorder keeps them on the device until they are logged.
    """
    losses: list[torch.Tensor] = []
    bad_batches = 0
    while True:
        if engine.zero_optimization_partition_weights():
            # Else stage 3 overwrites the gradients of earlier micro-batches: DeepSpeed 0.19 counts micro-batches in its
            # own `forward`, which SAT's `shared_step` passes by. To go when either changes.
            engine.optimizer.clear_backward_seen_flag()
        loss, metrics = forward_step(data_iterator, engine, args, timers)
        reduced, finite = _reduce(loss, metrics)
        if not finite:
            bad_batches += 1
            recorder.skipped_batches += 1
            if current().world.rank == 0:
                logger.warning("iteration %d: the loss is not finite; batch dropped on all ranks", args.iteration + 1)
            if bad_batches >= MAX_BAD_BATCHES:
                raise NonFiniteLoss(
                    f"the loss was not finite for {bad_batches} batches in a row at iteration {args.iteration + 1}: "
                    "lower the learning rate, or train in bf16 instead of fp16"
                )
            continue
        losses.append(reduced["loss"])
        recorder.add_micro_batch(reduced, samples=args.batch_size)
        with phases("backward"):
            engine.backward(loss)
        if engine.is_gradient_accumulation_boundary():
            break
        engine.step()
    recorder.lr = optimizer.param_groups[0]["lr"]
    recorder.grad_norm = _gradient_norm_before_step(engine)
    with phases("optimizer"):
        engine.step()
    recorder.take_grad_norm(engine)
    overflowed = bool(args.fp16 and optimizer.overflow)
    if not overflowed:
        lr_scheduler.step()
    return torch.stack(losses).mean(), int(overflowed), {}


def _reduce(loss: torch.Tensor, metrics: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Means over the data parallel ranks in one collective, and whether every rank's loss is finite (one host sync)."""
    names = ["loss", *(name for name in metrics if name != "loss" and "eval" not in name)]
    values = [loss, *(metrics[name] for name in names[1:])]
    packed = torch.stack([value.detach().float() for value in values])
    current().data.mean(packed)
    return dict(zip(names, packed.unbind(), strict=True)), bool(torch.isfinite(packed[0]))


def _gradient_norm_before_step(engine: Any) -> torch.Tensor | None:
    """DeepSpeed reports no norm for plain fp32 without ZeRO, where the gradients are there to be measured."""
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        return None
    grads = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(grads)


@contextmanager
def prepared_for_training(args: argparse.Namespace, random_state: dict[str, Any] | None) -> Iterator[None]:
    """What holds around SAT's `train`: each rank's own draws (or those to resume), no collector.

    Collecting cost the reference 0.35 s at every step; what setup left behind is frozen once instead.
    """
    seed_everything(seed_of_draws(args.seed, current().data.rank))
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
    loader: EvaluationLoader, engine: Any, batches: int, args: argparse.Namespace, timers: Timers, forward_step: Step
) -> dict[str, float]:
    """Mean loss and metrics over all samples of the first `batches` batches and over all ranks.

    Every evaluation sees the same samples with the same draws, so that its losses compare.
    """
    totals: dict[str, torch.Tensor] = {}
    counted = torch.zeros((), dtype=torch.float64)
    engine.eval()
    args.eval_batch = 0
    with torch.no_grad(), own_random_stream(seed_of_draws(args.seed, current().data.rank)):
        iterator = iter(loader)
        for number in range(min(batches, len(loader))):
            args.eval_batch = number
            loss, metrics = forward_step(iterator, engine, args, timers)
            for name, value in {"loss": loss, **metrics}.items():
                total = value.detach().double().cpu() * loader.weight_of(number)
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + total
            counted += loader.weight_of(number)
    engine.train()
    current().host.barrier()  # data parallel rank 0 may have sampled for longer than a GPU collective waits
    return _mean_over_ranks(totals, counted)


def _mean_over_ranks(totals: dict[str, torch.Tensor], counted: torch.Tensor) -> dict[str, float]:
    packed = torch.stack([*totals.values(), counted]).to(current_device(), torch.float32)
    current().data.sum(packed)
    *sums, count = packed.tolist()
    return {name: value / count if count else math.nan for name, value in zip(totals, sums, strict=True)}
