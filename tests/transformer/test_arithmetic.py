"""Truth: reference. Widened products equal torch's own to the rounding of their type, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cogvideox.transformer import arithmetic


@pytest.fixture(autouse=True)
def as_on_an_old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "HALF_IS_SLOW_ON_CPU", True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(dtype: torch.dtype, with_bias: bool) -> None:
    x, weight, bias = (torch.randn(s).to(dtype).requires_grad_() for s in ((2, 9, 24), (8, 24), (8,)))
    inputs = [x, weight, *([bias] if with_bias else [])]
    cotangent = torch.randn(2, 9, 8).to(dtype)
    found, expected = arithmetic.linear(*inputs), F.linear(*inputs)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for one, other in zip(*(torch.autograd.grad(out, inputs, cotangent) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=5e-2)


def test_linear_with_a_frozen_weight_computes_no_gradient_for_it() -> None:
    x = torch.randn(3, 4).bfloat16().requires_grad_()
    weight = torch.randn(5, 4).bfloat16()
    arithmetic.linear(x, weight).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_attention() -> None:
    q, k, v = (torch.randn(1, 2, 9, 16).bfloat16().requires_grad_() for _ in range(3))
    found, expected = arithmetic.attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert found.dtype == torch.bfloat16


def test_float32_is_torchs_own() -> None:
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(arithmetic.linear(x, weight), F.linear(x, weight))
