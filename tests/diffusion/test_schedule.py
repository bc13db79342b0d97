"""√ᾱ tables against diffusers' schedulers, the reference's formula, and golden values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from cogvideox.diffusion.schedule import ScheduleTable, ZeroSNRDDPMDiscretization, pick_timesteps
from cogvideox.errors import UserError
from tests.diffusion.nodes import discretization

GOLDEN = {
    1.0: [0.99957491, 0.999116333, 0.807748114, 0.490936638, 0.181105268, 0.000443609],
    3.0: [0.998726353, 0.997396925, 0.623741701, 0.308752491, 0.104110047, 0.000249615],
}


def diffusers_scheduler(kind: type, shift: float):
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        snr_shift_scale=shift,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
    )


def picked_by_formula(n: int, shift: float) -> np.ndarray:
    """FACTS.md section 1 in plain numpy: betas, shift, pick, rescale."""
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - beta)
    alpha_bar = alpha_bar / (shift + (1 - shift) * alpha_bar)
    root = np.sqrt(alpha_bar[np.linspace(999, 0, n, endpoint=False).astype(int)[::-1]] if n < 1000 else alpha_bar)
    return (root - root[-1]) * root[0] / (root[0] - root[-1])


@pytest.mark.parametrize("kind", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_full_table_equals_diffusers(kind, shift):
    """Truth: reference (diffusers' alphas_cumprod, float64)."""
    ours, t = ZeroSNRDDPMDiscretization(shift_scale=shift).steps(1000)
    theirs = diffusers_scheduler(kind, shift).alphas_cumprod
    assert ours.dtype == torch.float64 and torch.equal(t, torch.arange(1000))
    torch.testing.assert_close(ours**2, theirs.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_picking_from_the_rescaled_table_equals_diffusers(n, shift):
    """Truth: reference (diffusers' trailing timesteps and their levels)."""
    scheduler = diffusers_scheduler(CogVideoXDPMScheduler, shift)
    scheduler.set_timesteps(n)
    ours, t = ZeroSNRDDPMDiscretization(shift_scale=shift, rescale_before_picking=True).steps(n)
    assert torch.equal(t.flip(0), scheduler.timesteps)
    torch.testing.assert_close(ours**2, scheduler.alphas_cumprod[t].double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 10, 50, 99, 999, 1000])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_fewer_steps_are_picked_and_then_rescaled(n, shift):
    """Truth: reference (the formula of the published sampler)."""
    ours, _ = ZeroSNRDDPMDiscretization(shift_scale=shift).steps(n)
    np.testing.assert_allclose(ours.numpy(), picked_by_formula(n, shift), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 10, 50, 1000])
@pytest.mark.parametrize("params", [{}, {"shift_scale": 3.0}, {"shift_scale": 3.0, "post_shift": True}])
def test_terminal_snr_is_zero_and_levels_fall(n, params):
    """Truth: identity. Exactly 0 at the noisiest level, strictly falling, below 1."""
    levels, t = ZeroSNRDDPMDiscretization(**params).steps(n)
    assert levels[-1] == 0 and t[-1] == 999
    assert (levels.diff() < 0).all() and levels[0] < 1


def test_golden_values():
    """Truth: golden values of √ᾱ, from the formula in float64."""
    for shift, expected in GOLDEN.items():
        table = ZeroSNRDDPMDiscretization(shift_scale=shift)(1000, do_append_zero=False, flip=True)
        got = [float(table[t]) for t in (0, 1, 250, 500, 750, 998)]
        assert got == pytest.approx(expected, abs=2e-7)


def test_keep_start_moves_the_first_beta():
    """Truth: reference formula β₀ ← β₀ / (s + (1 − s)·β₀), only without post_shift."""
    moved = ZeroSNRDDPMDiscretization(shift_scale=3.0, keep_start=True).alpha_bar[0]
    beta = 0.00085 / (3.0 - 2.0 * 0.00085)
    assert float(moved) == pytest.approx((1 - beta) / (3.0 - 2.0 * (1 - beta)), abs=1e-12)
    both = ZeroSNRDDPMDiscretization(shift_scale=3.0, keep_start=True, post_shift=True).alpha_bar[0]
    assert float(both) == pytest.approx(1 - 0.00085, abs=1e-12)


def test_post_shift_shifts_the_rescaled_table():
    """Truth: identity. ᾱ' = ᾱ/(s + (1 − s)ᾱ) of the table without a shift."""
    plain = ZeroSNRDDPMDiscretization().steps(50)[0] ** 2
    shifted = ZeroSNRDDPMDiscretization(shift_scale=3.0, post_shift=True).steps(50)[0] ** 2
    torch.testing.assert_close(shifted, plain / (3 - 2 * plain), rtol=0, atol=1e-14)


def test_call_orders_tables_like_the_reference():
    """Truth: reference (noise first; `flip` reverses after the zero is appended; timesteps always ascend)."""
    schedule = ZeroSNRDDPMDiscretization()
    noise_first = schedule(50, do_append_zero=False)
    assert noise_first.dtype == torch.float32 and noise_first[0] == 0 and noise_first[-1] > 0.9
    assert torch.equal(schedule(50), torch.cat([noise_first, torch.zeros(1)]))
    assert torch.equal(schedule(50, flip=True), schedule(50).flip(0))
    table, t = schedule(50, do_append_zero=False, flip=True, return_idx=True)
    assert torch.equal(table, noise_first.flip(0)) and torch.equal(t, pick_timesteps(50, 1000))
    assert (t[0], t[-1]) == (19, 999)


@pytest.mark.parametrize("n", [-1, 0, 1, 1001])
def test_impossible_step_counts_are_named(n):
    """Truth: the message gives the value and the limit."""
    with pytest.raises(UserError, match=rf"{n} steps .* 1000"):
        ZeroSNRDDPMDiscretization()(n)


def test_table_stays_float32_and_out_of_checkpoints():
    """Truth: round trip. Casting the module leaves the values bit-equal; the state dict has no entry."""
    table = ScheduleTable(discretization(), 1000, do_append_zero=False, flip=True)
    before = table.sqrt_alpha_bar.clone()
    for cast in (table.half(), table.bfloat16(), table.double()):
        assert cast.sqrt_alpha_bar.dtype == torch.float32 and torch.equal(cast.sqrt_alpha_bar, before)
    assert table.to("meta").sqrt_alpha_bar.device.type == "meta"
    assert table.state_dict() == {}


def test_nearest_finds_every_level_of_its_own():
    """Truth: round trip t → √ᾱ → t for all timesteps."""
    table = ScheduleTable(discretization(shift_scale=3.0), 1000, do_append_zero=False, flip=True)
    t = torch.arange(1000)
    assert torch.equal(table.nearest(table(t)), t)
