"""The learning rate as a function of the iteration, in SAT's `AnnealingLR` clothes.

SAT 0.4.12 holds 5 % of `lr` for 100 iterations, jumps, divides by zero without warmup and ignores `lr_decay_ratio`
where the decay is linear. Here warmup is a linear ramp, the decay ends at `lr_decay_ratio · lr`, and the old hold is
there for who asks (`auto_warmup`). The class must descend from `AnnealingLR`, since `training_main` asserts it.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

from cogvideox.sat_bridge import importing  # noqa: F401  (makes `import sat` work)

from sat.training.learning_rates import AnnealingLR  # isort: skip

AUTO_WARMUP_ITERATIONS, AUTO_WARMUP_RATE = 100, 0.05
DECAY_STYLES = ("constant", "linear", "cosine", "exponential")


def rate(
    iteration: int,
    lr: float,
    *,
    warmup_iterations: int,
    decay_iterations: int,
    decay_style: str,
    decay_ratio: float,
    auto_warmup_until: int = 0,
) -> float:
    """The learning rate that iteration `iteration` (0-based) applies.

    Ramps linearly to `lr` over `warmup_iterations`, then decays to `decay_ratio · lr`, reached at the last of
    `decay_iterations` and kept after it. `exponential` is geometric between the same two ends.
    """
    if iteration < auto_warmup_until:
        return AUTO_WARMUP_RATE * lr
    if iteration < warmup_iterations:
        return lr * (iteration + 1) / warmup_iterations
    span = max(1, decay_iterations - 1 - warmup_iterations)
    progress = min(1.0, max(0, iteration - warmup_iterations) / span)
    if decay_style == "linear":
        return lr * (1 - (1 - decay_ratio) * progress)
    if decay_style == "cosine":
        return lr * (decay_ratio + (1 - decay_ratio) * (1 + math.cos(math.pi * progress)) / 2)
    if decay_style == "exponential":
        return lr * decay_ratio**progress
    return lr


class LearningRate(AnnealingLR):
    """Writes `rate(iteration)` times each parameter group's own factor into the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, iteration: int, lr: float, **shape: Any) -> None:
        self.optimizer = optimizer
        self.lr, self.shape = lr, shape
        self.factors = [group["lr"] for group in optimizer.param_groups]
        self.num_iters = iteration
        self._apply()

    def get_lr(self) -> float:
        """The learning rate that the next step applies."""
        return rate(self.num_iters, self.lr, **self.shape)

    def step(self, step_num: int | None = None) -> None:
        """Move on to the next iteration, or to iteration `step_num`."""
        self.num_iters = self.num_iters + 1 if step_num is None else step_num
        self._apply()

    def state_dict(self) -> dict[str, int]:
        """The position, and where the hold at the run's beginning ends; everything else is the config's."""
        return {"iteration": self.num_iters, "auto_warmup_until": self.shape.get("auto_warmup_until", 0)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken. The hold is that of the run's beginning, if one is still wanted."""
        if self.shape.get("auto_warmup_until"):
            self.shape["auto_warmup_until"] = state.get("auto_warmup_until", AUTO_WARMUP_ITERATIONS)
        self.step(state["iteration"])

    def _apply(self) -> None:
        lr = self.get_lr()
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = lr * factor


def get_learning_rate_scheduler(
    optimizer: torch.optim.Optimizer, iteration: int, args: argparse.Namespace
) -> LearningRate:
    """Stands in for SAT's function of this name: same `args`, honest curve."""
    decay_iterations = args.lr_decay_iters if args.lr_decay_iters is not None else args.train_iters
    return LearningRate(
        optimizer,
        iteration,
        args.lr,
        warmup_iterations=round(args.warmup * decay_iterations),
        decay_iterations=max(1, decay_iterations),
        decay_style=args.lr_decay_style,
        decay_ratio=args.lr_decay_ratio,
        auto_warmup_until=iteration + AUTO_WARMUP_ITERATIONS if args.auto_warmup else 0,
    )
