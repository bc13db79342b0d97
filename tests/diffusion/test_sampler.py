"""The samplers against diffusers' schedulers, step by step with the same noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from cogvideox.config import instantiate
from cogvideox.diffusion.denoiser import DiscreteDenoiser, over_dims
from cogvideox.diffusion.sampler import VideoDDIMSampler
from cogvideox.errors import UserError
from tests.diffusion.nodes import SCALING, discretization
from tests.diffusion.ranks import on_both_ranks
from tests.diffusion.test_schedule import diffusers_scheduler

SHAPE = (2, 3, 4, 5, 6)
KINDS = {"VPSDEDPMPP2MSampler": CogVideoXDPMScheduler, "VideoDDIMSampler": CogVideoXDDIMScheduler}
COND = {"crossattn": torch.linspace(-1, 1, 2 * 3 * 4).reshape(2, 3, 4)}
UC = {"crossattn": torch.zeros(2, 3, 4)}
DYNAMIC = {"target": "cogvideox.diffusion.guidance.DynamicCFG", "params": {"scale": 6, "exp": 5, "num_steps": 50}}
VANILLA = {"target": "cogvideox.diffusion.guidance.VanillaCFG", "params": {"scale": 6}}


def network(x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any], **kwargs: Any) -> torch.Tensor:
    """A bounded v that depends on everything a real network sees."""
    text = over_dims(cond["crossattn"].to(x.dtype).mean((1, 2)), x)
    return 0.9 * torch.sin(x + text) + 0.1 * over_dims(torch.cos(t / 100).to(x.dtype), x)


def make_sampler(kind: str = "VPSDEDPMPP2MSampler", schedule: dict[str, Any] | None = None, **params: Any):
    params = {"num_steps": 50, "discretization_config": schedule or discretization(), **params}
    return instantiate({"target": f"cogvideox.diffusion.sampler.{kind}", "params": params})


def bound_denoiser(schedule: dict[str, Any], seen: list[torch.Tensor] | None = None):
    """Our denoiser with the network bound; the x of every call goes to `seen`."""
    denoiser = DiscreteDenoiser(num_idx=1000, scaling_config=SCALING, discretization_config=schedule)

    def denoise(x: torch.Tensor, level: torch.Tensor, cond: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        if seen is not None:
            seen.append(x)
        return denoiser(network, x, level, cond, **kwargs)

    return denoise


def exact_denoiser(seen: list[torch.Tensor]):
    """x̂₀ at the very level of the sampler, which the reference's picked levels need (they are not training levels)."""

    def denoise(x: torch.Tensor, level: torch.Tensor, cond: dict[str, Any], idx: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        a = over_dims(level, x)
        return a * x - (1 - a**2) ** 0.5 * network(x, idx, cond)

    return denoise


def diffusers_run(scheduler: Any, noise: torch.Tensor, n: int, guide: str | None) -> list[torch.Tensor]:
    """The loop of diffusers' CogVideoX pipeline with the network above: x before every step, and the result."""
    scheduler.set_timesteps(n)
    generator = torch.Generator().manual_seed(3)
    x, x0_old, xs = noise.clone(), None, [noise.clone()]
    for i, t in enumerate(scheduler.timesteps):
        scale = 6.0
        if guide == "dynamic":
            scale = 1 + 6 * ((1 - math.cos(math.pi * ((n - t.item()) / n) ** 5.0)) / 2)
        v = network(x, t.expand(2), COND)
        if guide is not None:
            v_uncond = network(x, t.expand(2), UC)
            v = v_uncond + scale * (v - v_uncond)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            back = scheduler.timesteps[i - 1] if i > 0 else None
            x, x0_old = scheduler.step(v, x0_old, t, back, x, generator=generator, return_dict=False)
        else:
            x = scheduler.step(v, t, x, return_dict=False)[0]
        xs.append(x)
    return xs


class DiffusersNoise:
    """diffusers draws twice at every step but the first, and uses the second draw."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        draws = 1 if self.calls == 1 else 2
        return [torch.randn(x.shape, generator=self.generator, dtype=x.dtype) for _ in range(draws)][-1]


def assert_same_path(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        difference = (mine.double() - reference.double()).abs().max() / reference.double().abs().max()
        assert difference <= tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("guide", [None, "vanilla", "dynamic"])
@pytest.mark.parametrize(("shift", "dtype"), [(1.0, torch.float64), (3.0, torch.float32)])
def test_equals_diffusers_step_by_step(kind, n, guide, shift, dtype):
    """Truth: reference. Every x of the run within 1e-5 of diffusers' scheduler and pipeline loop, same noise."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=dtype)
    theirs = diffusers_run(diffusers_scheduler(KINDS[kind], shift), noise, n, guide)
    schedule = discretization(shift_scale=shift, rescale_before_picking=True)
    guider = {"vanilla": VANILLA, "dynamic": DYNAMIC, None: None}[guide]
    seen: list[torch.Tensor] = []
    sampler = make_sampler(kind, schedule, guider_config=guider)
    result = sampler(exact_denoiser(seen), noise, COND, uc=UC, num_steps=n, draw_noise=DiffusersNoise())
    ours = [x[: SHAPE[0]] for x in seen] + [result]
    assert result.dtype == dtype
    assert_same_path(ours, theirs, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_equals_diffusers_on_the_levels_of_the_reference(kind, shift):
    """Truth: reference. The default table (picked, then rescaled) put into diffusers' scheduler gives the same run."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    sampler = make_sampler(kind, discretization(shift_scale=shift), guider_config=DYNAMIC)
    levels, t = sampler.discretization.steps(50)
    scheduler = diffusers_scheduler(KINDS[kind], shift)
    scheduler.alphas_cumprod[t] = levels**2
    seen: list[torch.Tensor] = []
    result = sampler(exact_denoiser(seen), noise, COND, uc=UC, draw_noise=DiffusersNoise())
    assert_same_path([x[:2] for x in seen] + [result], diffusers_run(scheduler, noise, 50, "dynamic"), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_diffusers_through_our_denoiser(kind):
    """Truth: reference. With levels of training, the product's denoiser gives diffusers' run too."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    schedule = discretization(shift_scale=3.0, rescale_before_picking=True)
    seen: list[torch.Tensor] = []
    sampler = make_sampler(kind, schedule, guider_config=DYNAMIC)
    result = sampler(bound_denoiser(schedule, seen), noise, COND, uc=UC, draw_noise=DiffusersNoise())
    theirs = diffusers_run(diffusers_scheduler(KINDS[kind], 3.0), noise, 50, "dynamic")
    assert_same_path([x[:2] for x in seen] + [result], theirs, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_denoiser_that_knows_x0_is_followed_to_it(kind):
    """Truth: identity. The last step returns x̂₀ itself."""
    x0 = torch.randn(SHAPE)
    result = make_sampler(kind)(lambda x, level, cond, idx: x0, torch.randn(SHAPE), {})
    assert torch.equal(result, x0)


def test_ddim_keeps_the_noise_of_a_perfect_denoiser():
    """Truth: identity. With the true x₀, every x on the way is √ᾱ·x₀ + √(1 − ᾱ)·ε with the ε of the start."""
    x0, noise = torch.randn(2, *SHAPE, dtype=torch.float64)

    def denoise(x: torch.Tensor, level: torch.Tensor, cond: dict[str, Any], idx: torch.Tensor) -> torch.Tensor:
        a = over_dims(level, x)
        torch.testing.assert_close(x, a * x0 + (1 - a**2) ** 0.5 * noise, rtol=0, atol=1e-12)
        return x0

    make_sampler("VideoDDIMSampler")(denoise, noise, {})


def test_dpm_keeps_the_variance_of_a_perfect_denoiser():
    """Truth: identity. With the true x₀, x − √ᾱ·x₀ has variance 1 − ᾱ at every step (2nd order changes nothing)."""
    x0, noise = torch.zeros(1, 1, 1, 1, 1), torch.randn(1, 1, 1, 200, 200)

    def denoise(x: torch.Tensor, level: torch.Tensor, cond: dict[str, Any], idx: torch.Tensor) -> torch.Tensor:
        assert float(x.var()) == pytest.approx(1 - float(level) ** 2, rel=0.05)
        return x0.expand_as(x)

    make_sampler()(denoise, noise, {}, generator=torch.Generator().manual_seed(0))


def test_half_precision_network_leaves_the_latents_float32():
    """Truth: identity. x goes in and comes out as float32, with a bfloat16 start and a bfloat16 denoiser."""

    def denoise(x: torch.Tensor, level: torch.Tensor, cond: dict[str, Any], idx: torch.Tensor) -> torch.Tensor:
        assert x.dtype == level.dtype == torch.float32 and idx.dtype == torch.int64
        return (0.5 * x).bfloat16()

    result = make_sampler()(denoise, torch.randn(SHAPE).bfloat16(), {}, num_steps=5)
    assert result.dtype == torch.float32 and result.isfinite().all()


def test_a_generator_decides_the_noise():
    """Truth: round trip. The same generator state gives the same latents, another one others."""
    schedule = discretization()
    run = lambda seed: make_sampler(num_steps=4)(  # noqa: E731
        bound_denoiser(schedule), torch.ones(SHAPE), COND, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_guidance_runs_as_one_doubled_batch():
    """Truth: identity. One call a step with 2B samples; B samples without guidance; extras are doubled with it."""
    calls = []

    def denoise(x: torch.Tensor, level: torch.Tensor, cond: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        calls.append((x.shape[0], level.shape[0], cond["crossattn"].shape[0], kwargs))
        return x

    sampler = make_sampler(guider_config=VANILLA, num_steps=3)
    sampler(denoise, torch.randn(SHAPE), COND, uc=UC, ofs=torch.tensor([2.0, 3.0]))
    assert [call[:3] for call in calls] == [(4, 4, 4)] * 3
    assert calls[0][3]["ofs"].tolist() == [2.0, 3.0, 2.0, 3.0] and calls[0][3]["idx"].tolist() == [999] * 4
    calls.clear()
    sampler(denoise, torch.randn(SHAPE), COND, uc=UC, ofs=torch.tensor([2.0]))
    assert calls[0][3]["ofs"].tolist() == [2.0] * 4, "one value is every sample's"
    for without in ({"uc": None}, {"uc": UC, "scale": 1}):
        calls.clear()
        sampler(denoise, torch.randn(SHAPE), COND, **without)
        assert [call[:3] for call in calls] == [(2, 2, 2)] * 3 and calls[0][3].keys() == {"idx"}


@pytest.mark.parametrize("sdedit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_frames_stay(kind, sdedit):
    """Truth: identity. The prefix comes back bit-equal; the network sees it clean, or noised with `sdedit`."""
    noise = torch.randn(SHAPE)
    seen: list[torch.Tensor] = []

    def denoise(x: torch.Tensor, level: torch.Tensor, cond: dict[str, Any], idx: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    result = make_sampler(kind, num_steps=4, fixed_frames=1, sdedit=sdedit)(denoise, noise.clone(), {})
    assert torch.equal(result[:, :1], noise[:, :1]) and result[:, 1:].abs().max() == 0
    assert torch.equal(seen[0][:, :1], noise[:, :1]) != sdedit


def test_number_of_steps_is_needed():
    """Truth: the message names the key."""
    sampler = VideoDDIMSampler(discretization_config=discretization())
    with pytest.raises(UserError, match=r"sampler_config\.params\.num_steps"):
        sampler(lambda *args, **kwargs: args[0], torch.randn(SHAPE), {})


def test_progress_bar_is_on_rank_0_only(capsys):
    """Truth: identity."""
    from cogvideox.parallel import Group, Groups, install

    run = lambda: make_sampler(verbose=True, num_steps=2)(lambda x, *a, **k: x, torch.ones(SHAPE), {})  # noqa: E731
    run()
    assert "VPSDEDPMPP2MSampler, 2 steps" in capsys.readouterr().err
    before = install(Groups(world=Group(rank=1, size=2)))
    try:
        run()
    finally:
        install(before)
    assert capsys.readouterr().err == ""


def test_old_config_binds():
    """Truth: reference config (its dotted paths and keys)."""
    path = "sgm.modules.diffusionmodules"
    sampler = instantiate(
        {
            "target": f"{path}.sampling.VPSDEDPMPP2MSampler",
            "params": {
                "fixed_frames": 0,
                "num_steps": 50,
                "verbose": True,
                "discretization_config": {"target": f"{path}.discretizer.ZeroSNRDDPMDiscretization"},
                "guider_config": {
                    "target": f"{path}.guiders.DynamicCFG",
                    "params": {"scale": 6, "exp": 5, "num_steps": 50},
                },
            },
        }
    )
    assert len(sampler.plan()) == 50


def test_model_parallel_ranks_sample_the_same():
    """Truth: identity. The noise of rank 0 holds on every rank of its model-parallel group."""
    sampler, denoise = make_sampler(num_steps=4), bound_denoiser(discretization())
    assert torch.equal(*on_both_ranks(lambda: sampler(denoise, torch.ones(SHAPE), COND)))
