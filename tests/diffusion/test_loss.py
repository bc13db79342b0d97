"""The v-space loss against the weighted-x₀ form of the reference, and what passes through it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cogvideox.config import instantiate
from cogvideox.diffusion.denoiser import DiscreteDenoiser, over_dims
from cogvideox.diffusion.loss import VideoDiffusionLoss, diffuse
from cogvideox.errors import UserError
from tests.diffusion.nodes import SCALING, discretization, timesteps
from tests.diffusion.ranks import on_both_ranks

SHAPE = (4, 3, 2, 4, 5)


def make_loss(**params: Any) -> VideoDiffusionLoss:
    return VideoDiffusionLoss(sigma_sampler_config=timesteps(), **params)


def make_denoiser(**params: Any) -> DiscreteDenoiser:
    return DiscreteDenoiser(num_idx=1000, scaling_config=SCALING, discretization_config=discretization(), **params)


def conditioner(batch: dict[str, Any]) -> dict[str, Any]:
    return {"crossattn": torch.zeros(SHAPE[0], 2, 3)}


def network(x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
    """Any nonlinear function of x and t will do."""
    return torch.sin(3 * x) + over_dims(torch.cos(t.float()), x)


def inputs(*t: int) -> tuple[torch.Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, *SHAPE, generator=generator)
    return x0, {"idx": torch.tensor(t), "noise": noise}


def weighted_x0_loss(x0: torch.Tensor, batch: dict[str, Any], cap: float | None = None) -> torch.Tensor:
    """The reference's form, in float64: w·(x̂₀ − x₀)², w = 1/(1 − ᾱ) at most `cap`, mean per sample."""
    a = make_loss().sigma_sampler.sqrt_alpha_bar(batch["idx"]).double()
    x0, noise = x0.double(), batch["noise"].double()
    x_t = over_dims(a, x0) * x0 + over_dims((1 - a**2) ** 0.5, x0) * noise
    v = network(x_t, batch["idx"], {})
    x0_hat = over_dims(a, x0) * x_t - over_dims((1 - a**2) ** 0.5, x0) * v
    weight = 1 / (1 - a**2)
    if cap is not None:
        weight = weight.clamp(max=cap)
    return (over_dims(weight, x0) * (x0_hat - x0) ** 2).flatten(1).mean(1)


@pytest.mark.parametrize("t", [(0, 1, 2, 3), (10, 250, 500, 750), (900, 997, 998, 999)])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_equals_the_weighted_x0_form(t, cap):
    """Truth: reference formula in float64, with and without a cap on the weight, a batch of four."""
    x0, batch = inputs(*t)
    loss = make_loss(min_snr_value=cap)(network, make_denoiser(), conditioner, x0, batch)
    assert loss.shape == (4,) and loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), weighted_x0_loss(x0, batch, cap), rtol=2e-5, atol=0)


def test_perfect_v_gives_zero_loss_and_perfect_x0():
    """Truth: identity at every timestep: the right v gives loss 0, and the denoiser returns x₀."""
    x0, batch = inputs(0, 333, 800, 999)
    denoiser, loss = make_denoiser(), make_loss()
    level = loss.sigma_sampler.sqrt_alpha_bar(batch["idx"])
    x_t, v = diffuse(x0, batch["noise"], level)
    assert loss(lambda *_: v, denoiser, conditioner, x0, batch).max() < 1e-12
    x0_hat = denoiser(lambda *_: v, x_t, level, {}, idx=batch["idx"])
    torch.testing.assert_close(x0_hat, x0, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_in_half_precision_at_both_ends(dtype):
    """Truth: identity. Half-precision latents and network: float32 result, near the float32 one, finite gradients."""
    x0, batch = inputs(0, 1, 998, 999)
    loss, denoiser = make_loss().to(dtype), make_denoiser().to(dtype)
    scale = torch.ones((), dtype=dtype, requires_grad=True)

    def half_network(x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        return (network(x, t, cond).to(dtype) * scale).clone()

    half = loss(half_network, denoiser, conditioner, x0.to(dtype), batch)
    half.mean().backward()
    assert half.dtype == torch.float32 and half.isfinite().all() and scale.grad.isfinite()
    full = make_loss()(network, make_denoiser(), conditioner, x0.to(dtype).float(), batch)
    torch.testing.assert_close(half, full, rtol=2e-2, atol=0)


def test_draws_t_first_and_then_noise():
    """Truth: golden order: the same seed and the documented order give the same loss."""
    x0, _ = inputs()
    torch.manual_seed(7)
    drawn = make_loss()(network, make_denoiser(), conditioner, x0, {})
    torch.manual_seed(7)
    batch = {"idx": torch.randint(1000, (SHAPE[0],)), "noise": torch.randn(SHAPE)}
    assert torch.equal(drawn, make_loss()(network, make_denoiser(), conditioner, x0, batch))


def test_offset_noise_is_constant_over_a_sample():
    """Truth: identity. ε' = ε + level·randn per sample, drawn after ε."""
    x0, _ = inputs()
    torch.manual_seed(7)
    drawn = make_loss(offset_noise_level=0.3)(network, make_denoiser(), conditioner, x0, {})
    torch.manual_seed(7)
    idx, noise = torch.randint(1000, (SHAPE[0],)), torch.randn(SHAPE)
    noise = noise + 0.3 * over_dims(torch.randn(SHAPE[0]), noise)
    given = make_loss()(network, make_denoiser(), conditioner, x0, {"idx": idx, "noise": noise})
    torch.testing.assert_close(drawn, given, rtol=1e-6, atol=0)


def test_fixed_frames_are_clean_and_not_counted():
    """Truth: identity. The network sees x₀ there; changing its answer there changes nothing."""
    x0, batch = inputs(100, 500, 800, 999)
    seen = []

    def spy(x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        seen.append(x)
        v = network(x, t, cond)
        v[:, :1] += len(seen)
        return v

    loss = make_loss(fixed_frames=1)
    first, second = (loss(spy, make_denoiser(), conditioner, x0, batch) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(seen[0][:, :1], x0[:, :1])
    with pytest.raises(UserError, match="fixed_frames is 3, but a clip has 3"):
        make_loss(fixed_frames=3)(network, make_denoiser(), conditioner, x0, batch)


class ShrinkingDenoiser(DiscreteDenoiser):
    """A user's own: what it gives is nearer to 0."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 0.5 * super().forward(*args, **kwargs)


def test_any_denoiser_of_the_references_signature_will_do():
    """Truth: identity. A plain function that gives our x̂₀ has our loss; of a subclass, its own forward counts."""
    x0, batch = inputs(0, 100, 500, 999)
    ours = make_denoiser()
    expected = make_loss()(network, ours, conditioner, x0, batch)
    found = make_loss()(network, lambda *args, **kwargs: ours(*args, **kwargs), conditioner, x0, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    own = ShrinkingDenoiser(num_idx=1000, scaling_config=SCALING, discretization_config=discretization())
    level = own.schedule(batch["idx"])
    x_t, _ = diffuse(x0, batch["noise"], level)
    error = (own(network, x_t, level, {}, idx=batch["idx"]) - x0) ** 2 / over_dims(1 - level**2, x0)
    shrunk = make_loss()(network, own, conditioner, x0, batch)
    torch.testing.assert_close(shrunk, error.flatten(1).mean(1), rtol=1e-3, atol=0)


DRAWS_BOTH_ENDS = 0  # a seed
OPTIONS = [
    {},
    {"min_snr_value": 5.0},
    {"fixed_frames": 1},
    {"fixed_frames": 2},
    {"offset_noise_level": 0.5},
    {"min_snr_value": 5.0, "fixed_frames": 1, "offset_noise_level": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_is_its_samples(options):
    """Truth: identity. Each of four samples has the loss that it has alone, with the t, ε and offset that it drew."""
    x0, _ = inputs()
    loss = make_loss(**options)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        seen.append((x, t))
        return network(x, t, cond)

    torch.manual_seed(DRAWS_BOTH_ENDS)
    together = loss(spy, make_denoiser(), conditioner, x0, {})
    torch.manual_seed(DRAWS_BOTH_ENDS)
    idx, noise, offset = torch.randint(1000, (SHAPE[0],)), torch.randn(SHAPE), torch.randn(SHAPE[0])
    noise = noise + options.get("offset_noise_level", 0.0) * over_dims(offset, noise)
    for i in range(SHAPE[0]):
        one = slice(i, i + 1)
        alone = loss(spy, make_denoiser(), conditioner, x0[one], {"idx": idx[one], "noise": noise[one]})
        torch.testing.assert_close(together[one], alone, rtol=1e-6, atol=0)
    assert idx.min() < 100 and idx.max() > 500, "the cap on the weight counts for one and not for another"
    assert torch.equal(seen[0][1], idx) and len(seen) == 1 + SHAPE[0]
    for i in range(SHAPE[0]):
        torch.testing.assert_close(seen[0][0][i : i + 1], seen[1 + i][0], rtol=0, atol=1e-6)
    assert len(set(together.tolist())) == SHAPE[0], "samples that are alike would show nothing"


def test_min_snr_weights_each_sample_by_its_own_level():
    """Truth: golden values. γ = 5 caps the x₀ weight 1/(1 − ᾱ), so a v error counts min(1, 5·(1 − ᾱ))."""
    x0, batch = inputs(0, 100, 400, 999)
    plain = make_loss()(network, make_denoiser(), conditioner, x0, batch)
    capped = make_loss(min_snr_value=5.0)(network, make_denoiser(), conditioner, x0, batch)
    one_minus = 1 - make_loss().sigma_sampler.sqrt_alpha_bar(batch["idx"]).double() ** 2
    assert one_minus[0] == pytest.approx(0.00085, rel=1e-3) and one_minus[3] == 1
    torch.testing.assert_close((capped / plain).double(), (5 * one_minus).clamp(max=1), rtol=2e-4, atol=0)
    assert capped[0] < 0.005 * plain[0] and capped[1] < plain[1] and torch.equal(capped[2:], plain[2:])


def test_fixed_frames_count_the_mean_over_the_others():
    """Truth: reference formula. The mean of (v − v*)² over the frames that are noised, sample by sample."""
    x0, batch = inputs(100, 500, 800, 999)
    level = over_dims(make_loss().sigma_sampler.sqrt_alpha_bar(batch["idx"]), x0)
    x_t, v_target = diffuse(x0, batch["noise"], level.flatten())
    x_t[:, :2] = x0[:, :2]
    expected = ((network(x_t, batch["idx"], {}) - v_target)[:, 2:] ** 2).mean((1, 2, 3, 4))
    found = make_loss(fixed_frames=2)(network, make_denoiser(), conditioner, x0, batch)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_batch_entries_reach_the_network():
    """Truth: identity. `concat_images` becomes cond["concat"]; `lr_input` and the named keys become keywords."""
    x0, batch = inputs(1, 2, 3, 4)
    images, low, scale = torch.rand(3, *SHAPE)
    batch |= {"concat_images": images, "lr_input": low, "scale": scale, "unnamed": 1}
    calls = []

    def spy(x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        calls.append((t, cond, kwargs))
        return x

    make_loss(batch2model_keys="scale")(spy, make_denoiser(), conditioner, x0, batch)
    ((t, cond, kwargs),) = calls
    assert torch.equal(t, batch["idx"]) and cond["concat"] is images and set(cond) == {"concat", "crossattn"}
    assert kwargs.keys() == {"lr_input", "scale"} and kwargs["lr_input"] is low and kwargs["scale"] is scale


def test_old_config_binds():
    """Truth: reference config (its dotted paths and keys)."""
    path = "sgm.modules.diffusionmodules"
    schedule = {"target": f"{path}.discretizer.ZeroSNRDDPMDiscretization", "params": {"shift_scale": 3.0}}
    draw = {"uniform_sampling": True, "num_idx": 1000, "discretization_config": schedule}
    loss = instantiate(
        {
            "target": f"{path}.loss.VideoDiffusionLoss",
            "params": {
                "offset_noise_level": 0,
                "sigma_sampler_config": {"target": f"{path}.sigma_sampling.DiscreteSampling", "params": draw},
            },
        }
    )
    denoiser = instantiate(
        {
            "target": f"{path}.denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": 1000,
                "quantize_c_noise": False,
                "weighting_config": {"target": f"{path}.denoiser_weighting.EpsWeighting"},
                "scaling_config": {"target": f"{path}.denoiser_scaling.VideoScaling"},
                "discretization_config": schedule,
            },
        }
    )
    x0, batch = inputs(0, 10, 500, 999)
    assert loss(network, denoiser, conditioner, x0, batch).isfinite().all()
    assert instantiate({"target": f"{path}.denoiser_weighting.EpsWeighting"})(torch.tensor(2.0)) == 0.25


def test_model_parallel_ranks_draw_the_same():
    """Truth: identity. t, noise and offset of rank 0 hold on every rank of its model-parallel group."""
    x0, _ = inputs()
    loss, denoiser = make_loss(offset_noise_level=0.3), make_denoiser()
    assert torch.equal(*on_both_ranks(lambda: loss(network, denoiser, conditioner, x0, {})))
