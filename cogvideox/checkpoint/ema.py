"""The moving average of the weights, whole, out of the optimizer's state, where `EmaAdamW` keeps it as `shadow`.

ZeRO 0 has it beside each parameter (in half precision beside its float32 master), ZeRO 1 and 2 in each rank's piece of
a flat vector, ZeRO 3 in each rank's piece of the parameter. DeepSpeed's `safe_get_full_optimizer_state` is of use at
stage 3 alone: below it knows the state of the first parameter group only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from cogvideox.parallel import current

SHADOW = "shadow"


def averages_of(engine: Any) -> dict[str, Tensor]:
    """The averages of what trains, on the CPU; nothing but on data parallel rank 0. Every rank must call this.

    They have the names, shapes and dtype of the weights in the model file, so that they load in their place; those in
    float32 stay in the optimizer's state, from which training goes on. One parameter at a time is whole on the device.
    """
    averages = {}
    for name, average in _averages(engine):
        if current().data.rank == 0:
            averages[name] = average.to("cpu", copy=True)
    return averages


def whole(parameter: Tensor, *, changes: bool = False) -> AbstractContextManager[None]:
    """`parameter.data` is in full inside the block, at any stage of ZeRO; every rank must enter it.

    `changes`: what data parallel rank 0 writes into it is what it holds afterwards, everywhere.
    """
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changes else None)


def _averages(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and average, on the device and in the parameter's dtype, of all that trains."""
    from deepspeed.utils import safe_get_full_optimizer_state

    optimizer = engine.basic_optimizer
    has_begun = any(SHADOW in state for state in optimizer.state.values())
    masters = _masters(engine.optimizer)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if not has_begun:
            with whole(parameter):
                yield name, parameter.detach()
        elif engine.zero_optimization_partition_weights():
            yield name, safe_get_full_optimizer_state(parameter, SHADOW).to(parameter.dtype)
        elif engine.zero_optimization():
            yield name, _from_pieces(parameter, optimizer).to(parameter.dtype)
        else:
            state = optimizer.state.get(masters.get(parameter, parameter), {})
            yield name, state.get(SHADOW, parameter).detach().to(parameter.dtype)


def _masters(optimizer: Any) -> dict[Tensor, Tensor]:
    """The float32 copies that step for parameters in half precision, where there are any."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    if not isinstance(optimizer, FP16_UnfusedOptimizer):
        return {}
    return {
        half: master
        for halves, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        for half, master in zip(halves, masters, strict=True)
    }


def _from_pieces(parameter: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    """ZeRO 1 and 2: each data parallel rank gives what its piece of the group's flat vector holds of the parameter."""
    average = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
    piece = parameter._hp_mapping
    if piece is not None:
        (flat,) = optimizer.param_groups[piece.param_group_index]["params"]
        here, there = piece.hp_fragment_address, piece.lp_fragment_address
        shadow = optimizer.state[flat][SHADOW].narrow(0, here.start, here.numel)
        average.view(-1).narrow(0, there.start, there.numel).copy_(shadow)
    return current().data.sum(average)
