"""What is known of the numbers of each step: which clips and timesteps it had, whether they went wrong, how often.

A step is bad where on any rank the loss of a micro-batch is not finite, or its gradients are not. All ranks leave it
out together and try the iteration again with the next batches, so that an iteration stays a step of the optimizer and
the learning rate follows it. The whole step goes, also where one micro-batch of many had the bad loss and the others'
gradients would have done: what made it bad is more often the weights than the clip, losses and gradients fall under one
rule, and a row of bad steps can be counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from cogvideox.checkpoint.saving import random_state
from cogvideox.parallel import current
from cogvideox.sat_bridge.loss_spikes import LossSpikes
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.sat_bridge.walk import Walk

logger = logging.getLogger(__name__)

LOSS, GRADIENTS = "the loss is not finite", "the gradients are not finite"
TOLD = 3  # micro-batches that a line of the log names; metrics.jsonl has all


class Loader(Protocol):
    """What is asked of a training loader."""

    walk: Walk

    @property
    def order_id(self) -> str: ...

    def clips_of(self, step: int) -> list[str]: ...

    def batch_of(self, step: int) -> Any: ...


class Teller(Protocol):
    """Who writes down what went wrong; rank 0 does."""

    def data_line(self, step: int, kind: str, values: Mapping[str, float | int | str]) -> None: ...


@runtime_checkable
class DrawsTimesteps(Protocol):
    """A loss that remembers the timesteps of its latest batch, as VideoDiffusionLoss does."""

    drawn_t: Tensor | None


@dataclass(frozen=True)
class MicroBatch:
    """One forward on this rank: the loader's step, the random state before it, its loss and timesteps on the device."""

    step: int
    random_state: dict[str, Any]
    loss: Tensor
    timesteps: Tensor | None


@dataclass(frozen=True)
class Told:
    """A micro-batch in plain numbers, of data parallel rank `rank`."""

    rank: int
    loss: float
    clips: list[str]
    timesteps: list[int]

    def __str__(self) -> str:
        clips = ", ".join(self.clips) or "clips without names"
        return f"rank {self.rank}: loss {self.loss:.4g}, {clips}, t = {', '.join(map(str, self.timesteps)) or '?'}"


class NumberWatch:
    """Watches the steps of a run. Every rank calls the same of it; in a good step none of it waits for the device."""

    def __init__(self, max_bad_steps: int, recorder: Recorder, teller: Teller) -> None:
        self.recorder, self._max_bad_steps, self._teller = recorder, max_bad_steps, teller
        self.loader: Loader | None = None
        self.micro_batches: list[MicroBatch] = []  # of the step that is being made
        self.bad_in_a_row = 0
        self.cause = ""  # of the latest bad step
        self._spikes = LossSpikes()
        self._bad_steps: set[int] = set()  # of the loader

    def begin(self) -> None:
        """A step begins."""
        self.micro_batches = []

    def forward_begins(self) -> tuple[int, dict[str, Any]]:
        """The loader's step that the next forward is of, and the random state before it."""
        step, passed = self.loader.walk.advance() if self.loader is not None else (-1, 0)
        self.recorder.skipped_batches += passed
        return step, random_state()

    def forward_ended(self, began: tuple[int, dict[str, Any]], engine: Any, loss: Tensor) -> None:
        """The forward that `forward_begins` gave `began` for."""
        loss_fn = getattr(engine.module, "loss_fn", None)
        timesteps = loss_fn.drawn_t if isinstance(loss_fn, DrawsTimesteps) else None
        self.micro_batches.append(MicroBatch(*began, loss.detach(), timesteps))

    def good(self, iteration: int, loss: float) -> None:
        """The step of `iteration` was taken, with this mean `loss` over micro-batches and ranks."""
        self.bad_in_a_row = 0
        if not self._spikes.is_spike(loss):
            return
        self.recorder.loss_spikes += 1
        told = sorted(self._told(self.micro_batches), key=lambda each: -each.loss)
        self._write(iteration, "loss spike", told)
        warn(f"iteration {iteration}: the loss {loss:.4g} stands out; highest: {_some(told)}")

    def bad(self, iteration: int, cause: str) -> bool:
        """The step of `iteration` was left out because of `cause`. True if that were too many in a row."""
        self.cause = cause
        concerned = self.micro_batches[-1:] if cause == LOSS else self.micro_batches
        told = self._told(concerned)
        if cause == LOSS:
            told = [each for each in told if not math.isfinite(each.loss)] or told
        self._bad_steps |= {each.step for each in concerned}
        self.recorder.skipped_steps += 1
        self.recorder.skipped_batches += len(self.micro_batches)
        self.bad_in_a_row += 1
        self._write(iteration, cause, told)
        what = f"{cause}; step left out on all ranks, {self.bad_in_a_row} in a row"
        warn(f"iteration {iteration}: {what}: {_some(told)}")
        return self.bad_in_a_row >= self._max_bad_steps

    def quarantine_bad(self) -> int:
        """Have the loader pass over what was bad so far, where it comes again; how many that are."""
        assert self.loader is not None
        self.loader.walk.quarantined |= self._bad_steps
        self.bad_in_a_row = 0
        return len(self._bad_steps)

    def state(self) -> dict[str, Any]:
        """What to save: of quarantined steps those that may still come."""
        assert self.loader is not None
        walk = self.loader.walk
        ahead = sorted(step for step in walk.quarantined if step >= walk.next)
        return {"order": self.loader.order_id, "quarantined": ahead, "loss_spikes": self._spikes.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; what is in quarantine by now stays there."""
        assert self.loader is not None
        self._spikes.restore(state["loss_spikes"])
        if state["order"] == self.loader.order_id:
            self.loader.walk.quarantined |= set(state["quarantined"])
        elif state["quarantined"]:
            warn(f"{len(state['quarantined'])} batches that went wrong are not passed over: batches are others by now")

    def told(self, micro_batch: MicroBatch) -> Told:
        """Of this rank, in plain numbers."""
        clips = self.loader.clips_of(micro_batch.step) if self.loader is not None else []
        timesteps = [] if micro_batch.timesteps is None else micro_batch.timesteps.tolist()
        return Told(current().data.rank, float(micro_batch.loss), clips, timesteps)

    def _told(self, micro_batches: list[MicroBatch]) -> list[Told]:
        """Of all data parallel ranks."""
        own = [self.told(each) for each in micro_batches] if current().model.rank == 0 else []
        return [each for of_rank in current().host.gather_objects(own) for each in of_rank]

    def _write(self, iteration: int, kind: str, told: list[Told]) -> None:
        for each in told:
            clips, timesteps = ", ".join(each.clips), ", ".join(map(str, each.timesteps))
            self._teller.data_line(
                iteration, kind, {"rank": each.rank, "loss": each.loss, "clips": clips, "timesteps": timesteps}
            )


def warn(text: str) -> None:
    """A warning in rank 0's log."""
    if current().world.rank == 0:
        logger.warning("%s", text)


def _some(told: list[Told]) -> str:
    more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return "; ".join(map(str, told[:TOLD])) + more
