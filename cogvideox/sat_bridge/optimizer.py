"""Optimizers: torch's own, and AdamW with an exponential moving average of the weights.

SAT's `FusedEmaAdam` compiles a CUDA extension at run time and breaks without nvcc. `EmaAdamW` keeps the same moving
average (state `shadow`) on top of torch's AdamW: no build step, any device, any ZeRO stage, since DeepSpeed hands the
optimizer fp32 partitions and saves its state with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from cogvideox.config import OPTIMIZER_TYPES
from cogvideox.errors import UserError

Closure = Callable[[], float]


class EmaAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) whose state also holds `shadow`, the moving average of each parameter.

    `shadow ← decay·shadow + (1 − decay)·parameter` after each step, with the decay ramped as (1 + n)/(10 + n) over the
    first steps, so that the average does not remember the initial weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        ema_decay: float = 0.9999,
    ) -> None:
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)  # type: ignore[arg-type]
        self.ema_decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One AdamW step, then the moving average of every parameter that has a gradient."""
        loss = super().step(closure)
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not params:
                continue
            for parameter in params:
                if "shadow" not in self.state[parameter]:
                    self.state[parameter]["shadow"] = parameter.detach().clone()
            shadows = [self.state[parameter]["shadow"] for parameter in params]
            steps = float(self.state[params[0]]["step"])
            decay = min(self.ema_decay, (1 + steps) / (10 + steps))
            torch._foreach_lerp_(shadows, [parameter.detach() for parameter in params], 1 - decay)
        return loss


CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    cls.__name__: cls for cls in (EmaAdamW, torch.optim.AdamW, torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD)
}
# Parameters that other Adams take and that say how to compute, not what.
IMPLEMENTATION_ONLY = frozenset({"adam_w_mode", "torch_adam", "set_grad_none", "amsgrad_mode"})


def optimizer_factory(config: dict[str, Any]) -> Callable[[Iterable[Any]], torch.optim.Optimizer]:
    """The optimizer of a `deepspeed.optimizer` section, to be called with the parameter groups.

    Raises:
        UserError: an unknown `type`, or a parameter that the optimizer does not take.
    """
    name = str(config.get("type", "AdamW"))
    if name.lower() not in OPTIMIZER_TYPES:
        raise UserError(
            f"deepspeed.optimizer.type {name!r} is not known: use one of "
            "AdamW, EmaAdamW (the same with averaged weights; sat.ops.FusedEmaAdam means it), Adagrad, SGD"
        )
    cls = CLASSES[OPTIMIZER_TYPES[name.lower()]]
    params = {key: value for key, value in (config.get("params") or {}).items() if key not in IMPLEMENTATION_ONLY}
    params = {key: float(value) if isinstance(value, str) else value for key, value in params.items()}
    if "betas" in params:
        params["betas"] = tuple(float(beta) for beta in params["betas"])
    try:
        cls([torch.nn.Parameter(torch.zeros(1))], **params)
    except TypeError as error:
        raise UserError(f"deepspeed.optimizer.params do not fit {name}: {error}") from error
    return functools.partial(cls, **params)
