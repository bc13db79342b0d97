"""Half-precision products on a CPU without AVX-512, where torch's take far longer than in float32.

A product of two bfloat16 or float16 numbers is exact in float32, and torch sums in float32 either way: widening changes
no more than the order of a sum. Everywhere else these are torch's own functions. To go when torch does so itself.

Shapes: I inputs, O outputs, B batch, L tokens, H heads, Q queries, K keys, E head size, `...` any.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

HALF = (torch.bfloat16, torch.float16)
HALF_IS_SLOW_ON_CPU = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def _widens(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in HALF and HALF_IS_SLOW_ON_CPU


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., I), weight (O, I), bias (O,) -> (..., O)"""
    if _widens(x):
        return _WidenedLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def add_product(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
    """out + scale * x weight^T. out (B, L, O), x (B, L, I), weight (O, I) -> (B, L, O)"""
    if _widens(x):
        return torch.add(out, linear(x, weight), alpha=scale)
    return torch.addmm(out.flatten(0, 1), x.flatten(0, 1), weight.t(), alpha=scale).view_as(out)


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention without a mask. q (B, H, Q, E), k and v (B, H, K, E) -> (B, H, Q, E)"""
    if _widens(q):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class _WidenedLinear(Function):
    """F.linear of half-precision tensors, computed in float32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        wide_bias = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), wide_bias).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        wide = grad.flatten(0, -2).float()
        grad_x = (wide @ weight.float()).to(x.dtype).view_as(x) if needs_x else None
        grad_weight = (wide.t() @ x.flatten(0, -2).float()).to(weight.dtype) if needs_weight else None
        return grad_x, grad_weight, wide.sum(0).to(weight.dtype) if needs_bias else None
