"""Compute a bad step again, rank by rank, and keep what it takes to do so elsewhere: the replay bundle."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

from torch import Tensor

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.ema import whole
from cogvideox.checkpoint.gradient_norms import GradientNorms
from cogvideox.checkpoint.replay_bundle import (
    CONFIG,
    BadStep,
    Forward,
    RankRecord,
    plain_part,
    versions,
    write_forward,
    write_step,
    write_weights,
)
from cogvideox.checkpoint.resuming import restore_random_state
from cogvideox.errors import UserError, without_credentials
from cogvideox.parallel import current
from cogvideox.platform import device_name
from cogvideox.sat_bridge.bad_numbers import LOSS, MicroBatch, NumberWatch
from cogvideox.sat_bridge.gradients import drop_gradients, gradient_scale

logger = logging.getLogger(__name__)

MOST_RANKS = 8  # whose batches are kept; where the weights went wrong, every rank is bad

# A batch to its loss, as the training does it.
ForwardStep = Callable[[dict[str, Any]], Tensor]


@dataclass(frozen=True)
class _Again:
    """A micro-batch that was computed again on this rank."""

    record: RankRecord
    forward: Forward

    @property
    def is_bad(self) -> bool:
        return not all(map(math.isfinite, [self.record.loss, *self.record.gradient_norms.values()]))


def keep_bad_step(
    run: Path, iteration: int, engine: Any, watch: NumberWatch, forward: ForwardStep, base_weights: str | None
) -> Path | None:
    """Write the bundle of the latest bad step into `run`; every rank must call this.

    The step's micro-batches are computed again until one goes wrong on some rank. The ranks where it does are kept,
    else those where it did, else all: gradients may be finite on each, and their sum is not. Gradients and random
    states are not what they were afterwards. `base_weights` are those under adapters. Returns its folder; None where it
    cannot be made, which is told.
    """
    host = current().host
    again = _computed_again(engine, watch, forward)
    if again is None:
        _tell("the batch cannot be read again: no replay bundle")
        return None
    own = again if current().model.rank == 0 else None
    found: list[_Again] = [each for each in host.gather_objects(own and _without_tensors(own)) if each is not None]
    step = _described(iteration, engine, watch, base_weights, _worth_keeping(found))
    weights = _weights(engine, only_trained=base_weights is not None)
    folder = host.on_first(lambda: durable.unused(run / f"bad-step-{iteration}"))
    incomplete = folder.with_name(f"{folder.name}.incomplete")

    def write() -> None:
        if own is not None and any(own.record.rank == each.rank for each in step.records):
            write_forward(incomplete, own.record.rank, own.forward)
        if current().data.rank == 0:
            write_weights(incomplete, current().model.rank, weights, base_weights)

    fault = _fault_on_first(lambda: _begin(incomplete, run))
    fault = fault or next(filter(None, host.gather_objects(durable.failure_of(write))), None)
    fault = fault or _fault_on_first(lambda: _finish(incomplete, folder, step))
    if fault is None:
        return folder
    _fault_on_first(lambda: durable.remove_folder(incomplete))
    _tell(f"no replay bundle in {folder}: {fault}")
    return None


def _worth_keeping(found: list[_Again]) -> list[RankRecord]:
    bad = [each for each in found if each.is_bad]
    was_bad = [each for each in found if not math.isfinite(each.record.seen_loss)]
    return [each.record for each in bad or was_bad or found][:MOST_RANKS]


def _computed_again(engine: Any, watch: NumberWatch, forward: ForwardStep) -> _Again | None:
    """The micro-batch of the latest bad step that goes wrong on some rank, or the last; None if one cannot be read."""
    candidates = watch.micro_batches[-1:] if watch.cause == LOSS else watch.micro_batches
    again = None
    for candidate in candidates:
        batch = _batch(watch, candidate)
        if not all(current().host.gather_objects(batch is not None)):
            return None
        assert batch is not None
        again = _compute(engine, watch, candidate, batch, forward)
        if any(current().host.gather_objects(again.is_bad)):
            break
    return again


def _batch(watch: NumberWatch, micro_batch: MicroBatch) -> dict[str, Any] | None:
    """This rank's, as it came from the loader; empty on ranks that are given theirs."""
    assert watch.loader is not None
    if current().model.rank > 0:
        return {}
    try:
        batch = watch.loader.batch_of(micro_batch.step)
    except UserError:
        return None
    return batch if isinstance(batch, dict) else None


def _compute(
    engine: Any, watch: NumberWatch, micro_batch: MicroBatch, batch: dict[str, Any], forward: ForwardStep
) -> _Again:
    drop_gradients(engine)
    if engine.zero_optimization_partition_weights():
        engine.optimizer.clear_backward_seen_flag()
    restore_random_state(micro_batch.random_state)
    given = dict(batch)
    with GradientNorms(engine.module) as norms:
        loss = forward(batch)
        engine.backward(loss)
    drop_gradients(engine)
    told = watch.told(micro_batch)
    record = RankRecord(
        rank=told.rank,
        seen_loss=told.loss,
        loss=float(loss.detach()),
        clips=[without_credentials(clip) for clip in told.clips],
        timesteps=told.timesteps,
        gradient_norms=norms.by_layer(),
        rest=plain_part(given),
    )
    return _Again(record, Forward(given, micro_batch.random_state))


def _without_tensors(again: _Again) -> _Again:
    return _Again(again.record, Forward({}, {}))


def _described(
    iteration: int, engine: Any, watch: NumberWatch, base_weights: str | None, records: list[RankRecord]
) -> BadStep:
    accumulation = int(engine.gradient_accumulation_steps())
    return BadStep(
        iteration=iteration,
        cause=watch.cause,
        ranks=current().data.size,
        model_ranks=current().model.size,
        accumulation=accumulation,
        loss_scale=gradient_scale(engine) * accumulation,
        dtype=str(engine.module.dtype).removeprefix("torch."),
        device=device_name(),
        base_weights=base_weights,
        records=records,
        versions=versions(),
    )


def _weights(engine: Any, only_trained: bool) -> dict[str, Tensor]:
    """On the CPU of data parallel rank 0, whole at any stage; every rank must call this."""
    parameters = dict(engine.module.named_parameters())
    state = engine.module.state_dict()
    is_first = current().data.rank == 0
    weights = {}
    for name, parameter in parameters.items():
        if only_trained and not parameter.requires_grad:
            continue
        with whole(parameter):
            if is_first:
                weights[name] = parameter.detach().to("cpu", copy=True)
    buffers = {} if only_trained or not is_first else {name: state[name] for name in state.keys() - parameters.keys()}
    return weights | {name: each.detach().to("cpu", copy=True) for name, each in buffers.items()}


def _begin(incomplete: Path, run: Path) -> None:
    durable.free_name(incomplete)
    durable.make_folder(incomplete)
    if (run / CONFIG).is_file():
        copyfile(run / CONFIG, incomplete / CONFIG)


def _finish(incomplete: Path, folder: Path, step: BadStep) -> None:
    write_step(incomplete, step)
    durable.sync(incomplete)
    durable.rename(incomplete, folder)


def _fault_on_first(function: Callable[[], None]) -> str | None:
    """`durable.failure_of` it on rank 0 alone, on every rank."""
    return current().host.on_first(lambda: durable.failure_of(function))


def _tell(text: str) -> None:
    if current().world.rank == 0:
        logger.warning("%s", text)
