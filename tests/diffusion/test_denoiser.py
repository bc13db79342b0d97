"""The v-prediction factors and the levels that the denoiser uses."""

from __future__ import annotations

from typing import Any

import torch

from cogvideox.diffusion.denoiser import DiscreteDenoiser, VideoScaling
from tests.diffusion.nodes import SCALING, discretization


def make_denoiser(**params: Any) -> DiscreteDenoiser:
    return DiscreteDenoiser(num_idx=1000, scaling_config=SCALING, discretization_config=discretization(), **params)


def test_factors_are_those_of_v_prediction():
    """Truth: identity. c_skip = √ᾱ, c_out = −√(1 − ᾱ), c_in = 1, c_noise = t."""
    a, t = torch.linspace(0, 1, 11), torch.arange(11)
    c_skip, c_out, c_in, c_noise = VideoScaling()(a, t)
    assert torch.equal(c_skip, a) and torch.equal(c_in, torch.ones(11)) and torch.equal(c_noise, t)
    torch.testing.assert_close(c_skip**2 + c_out**2, torch.ones(11))
    assert (c_out <= 0).all()


def test_the_level_is_the_nearest_of_training():
    """Truth: reference (it quantises every level to the training table), and the timestep given goes to the network."""
    denoiser = make_denoiser()
    level = denoiser.schedule(torch.tensor([400]))
    told = []

    def network(x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        told.append(t)
        return torch.ones_like(x)

    x = torch.ones(1, 1, 1, 1, 1)
    near = denoiser(network, x, level + 1e-5, {}, idx=torch.tensor([399]))
    exact = denoiser(network, x, level, {})
    assert torch.equal(near, exact) and [int(t) for t in told] == [399, 400]


def test_half_precision_network_gives_a_float32_x0():
    """Truth: identity. At t = 999 x̂₀ = −v and at t = 0 it is nearly x; both exact to float32 in x."""
    denoiser = make_denoiser().half()
    x = torch.randn(2, 3, 2, 4, 4)
    t = torch.tensor([0, 999])
    level = denoiser.schedule(t)
    x0 = denoiser(lambda x, t, cond: torch.full_like(x, 0.5).half(), x, level, {}, idx=t)
    expected = torch.stack([level[0] * x[0] - (1 - level[0] ** 2) ** 0.5 * 0.5, torch.full_like(x[1], -0.5)])
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0, expected)


def test_quantize_c_noise_rounds_the_timestep():
    """Truth: identity."""
    told = []
    make_denoiser(quantize_c_noise=True).predict_v(
        lambda x, t, cond: told.append(t) or x, torch.ones(1, 1), torch.ones(1), {}, torch.tensor([18.6])
    )
    assert told[0].dtype == torch.int64 and int(told[0]) == 19
