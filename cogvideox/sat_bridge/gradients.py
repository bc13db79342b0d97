"""Whether a step's gradients are finite, known before the optimizer uses them; and how to forget them. At every stage.

DeepSpeed 0.19 measures the gradients' norm before its optimizers step: at ZeRO 1 to 3, and at 0 in half precision.
Where it is not finite, on whatever rank, all ranks leave out the step together. What it leaves to us: float32 at ZeRO
0, whose optimizer is torch's, and configs that turn its checks off. So a good step costs one host synchronisation more
than DeepSpeed's own at ZeRO 0 in float32, and none elsewhere.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from cogvideox.parallel import current


class Outcome(Enum):
    """What became of a step: the optimizer took it, fp16's loss scale was too large for it, or it is bad."""

    APPLIED = "applied"
    OVERFLOW = "overflow"
    BAD = "bad"


def take_step(engine: Any) -> tuple[Outcome, torch.Tensor | float | None]:
    """The optimizer's step, if the gradients are finite on every rank; else it is as if there had been none.

    At the end of an accumulation. The second is the gradients' norm before clipping, if it was measured.
    """
    optimizer = engine.optimizer
    if _checks_nothing(engine):
        norm = _total_norm(engine.module)
        if current().model.sum((~torch.isfinite(norm)).float()):
            return Outcome.BAD, norm
        engine.step()
        return Outcome.APPLIED, norm
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        # Of ZeRO 1 and 2 in bfloat16, where a config says no, and where one turns the norm off.
        in_bf16 = optimizer.dtype == torch.bfloat16
        optimizer.check_grad_overflow |= in_bf16 or not optimizer.compute_grad_norm
    scale, least = _loss_scale(optimizer)
    engine.step()
    return outcome_of(engine.was_step_applied(), scale, least), engine.get_global_grad_norm()


def outcome_of(applied: bool, scale: float | None, least: float | None) -> Outcome:
    """What it means that a step was `applied` or not: `scale` is the loss scale that its gradients were taken with, if
    it moves, and `least` the smallest that it moves to.

    While it can fall, gradients that are not finite are its doing, or will show that they are not once it has fallen.
    """
    if applied:
        return Outcome.APPLIED
    if scale is not None and least is not None and scale > least:
        return Outcome.OVERFLOW
    return Outcome.BAD


def gradient_scale(engine: Any) -> float:
    """What a micro-batch's loss is multiplied by before its backward."""
    optimizer = engine.optimizer
    is_zero = isinstance(optimizer, DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3)
    scale = float(optimizer.loss_scaler.loss_scale) if is_zero else 1.0
    return scale / float(engine.gradient_accumulation_steps())


def drop_gradients(engine: Any) -> None:
    """Forget what was accumulated since the last step, and count micro-batches anew."""
    optimizer = engine.optimizer
    optimizer.zero_grad(set_to_none=True)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        # As its own step does where gradients are not finite. DeepSpeed has no public way.
        optimizer.micro_step_id = -1
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None
        for group in optimizer.all_grad_tensors:
            optimizer.all_grad_tensors[group] = None
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer._overflow_clean_up(None)
    elif isinstance(optimizer, BF16_Optimizer):
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads()
    engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()


def _checks_nothing(engine: Any) -> bool:
    """Whether the optimizer is torch's own, which takes any gradient."""
    return not (engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled())


def _total_norm(module: torch.nn.Module) -> torch.Tensor:
    """Of this model parallel rank's gradients, which are those of all data parallel ranks together."""
    return torch.nn.utils.get_total_norm([each.grad for each in module.parameters() if each.grad is not None])


def _loss_scale(optimizer: Any) -> tuple[float | None, float | None]:
    """fp16's loss scale and the least that it falls to; None where there is none that moves."""
    if not isinstance(optimizer, DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3):
        return None, None
    scaler = optimizer.loss_scaler
    if not isinstance(scaler, DynamicLossScaler):
        return None, None
    scaler.raise_error_at_min_scale = False  # it would end the run; a loaded checkpoint brings a scaler of its own
    return float(scaler.cur_scale), float(scaler.min_scale)
