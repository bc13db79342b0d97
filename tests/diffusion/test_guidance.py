"""Classifier-free guidance: the combination and the scale over time."""

from __future__ import annotations

import math

import pytest
import torch

from cogvideox.config import instantiate
from cogvideox.diffusion.guidance import DynamicCFG, VanillaCFG, doubled
from cogvideox.errors import UserError


def test_combination_starts_from_the_unconditional_half():
    """Truth: identity. scale 0 gives the first half, 1 the second, 2 as far again beyond."""
    uncond, cond = torch.randn(2, 3, 4)
    both = torch.cat([uncond, cond])
    for scale, expected in ((0.0, uncond), (1.0, cond), (2.0, 2 * cond - uncond)):
        torch.testing.assert_close(VanillaCFG(scale)(both, t=5), expected)
        torch.testing.assert_close(VanillaCFG(9.0)(both, t=5, scale=scale), expected)


@pytest.mark.parametrize("t", [0, 19, 49, 50, 499, 999])
def test_dynamic_scale_equals_diffusers_pipelines(t):
    """Truth: reference: the expression of diffusers' `use_dynamic_cfg`, bit for bit."""
    expected = 1 + 6 * ((1 - math.cos(math.pi * ((50 - t) / 50) ** 5.0)) / 2)
    assert DynamicCFG(scale=6, exp=5, num_steps=50).scale_at(t) == pytest.approx(expected, rel=1e-12)


def test_dynamic_scale_ends_low():
    """Truth: golden values: 1 + s at t = 0 (whole cosine), 1 at t = n."""
    guider = DynamicCFG(scale=6, exp=5, num_steps=50)
    assert guider.scale_at(0) == 7.0 and guider.scale_at(50) == 1.0
    assert guider.scale_at(10, num_steps=10) == 1.0 and guider.scale_at(0, scale=2.0) == 3.0


def test_fractional_exponent_is_refused():
    """Truth: the message names the key and why."""
    node = {"target": "cogvideox.diffusion.guidance.DynamicCFG", "params": {"scale": 6, "exp": 4.5, "num_steps": 50}}
    with pytest.raises(UserError, match="exp is 4.5"):
        instantiate(node)


def test_doubling_puts_the_unconditional_half_first():
    """Truth: identity; a mapping that does not match is our own mistake."""
    uc, c = {"crossattn": torch.zeros(2, 1), "n": 3}, {"crossattn": torch.ones(2, 1), "n": 3}
    both = doubled(uc, c)
    assert both["crossattn"].flatten().tolist() == [0, 0, 1, 1] and both["n"] == 3
    with pytest.raises(AssertionError):
        doubled({}, c)
