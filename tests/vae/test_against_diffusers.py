"""The VAE against `diffusers.AutoencoderKLCogVideoX` with the same weights, float32.

Truth checked: reference (diffusers); the tolerance is the project's, 1e-4.
"""

from __future__ import annotations

import pytest
import torch

from cogvideox.checkpoint.vae_names import sat_from_diffusers
from tests.vae.small import clip, pair

TOLERANCE = 1e-4


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() <= tolerance


def clip_of(frames: int) -> torch.Tensor:
    """Small pictures where there are many."""
    return clip(frames, 16, 24, batch=1) if frames == 49 else clip(frames)


@pytest.mark.parametrize("frames", [1, 9, 17, 49])
@pytest.mark.parametrize("blocks", [1, 2])
def test_whole_clips_are_encoded_and_decoded_alike(frames, blocks):
    ours, theirs = pair(blocks)
    x = clip_of(frames)
    posterior = ours.posterior(x)
    mean, logvar = theirs.encoder(x)[0].chunk(2, dim=1)
    close(posterior.mean, mean)
    close(posterior.logvar, logvar)
    close(ours.decode(mean), theirs.decoder(mean)[0])


@pytest.mark.parametrize("frames", [9, 17, 21, 49])
def test_chunks_with_statistics_of_their_own_are_diffusers_frame_batches(frames):
    ours, theirs = pair()
    x = clip_of(frames)
    mean = theirs.encode(x).latent_dist.mean
    close(ours.posterior(x, frames_per_chunk=8, statistics="chunk").mean, mean)
    if mean.shape[2] % 2:  # an even number of latents makes diffusers double the first frame
        close(ours.decode(mean, latents_per_chunk=2, statistics="chunk"), theirs.decode(mean).sample)


@pytest.mark.parametrize("frames", [9, 17, 49])
def test_chunks_are_diffusers_whole_clips(frames):
    """Ours cut in time, theirs in one piece."""
    ours, theirs = pair()
    x = clip_of(frames)
    mean, logvar = theirs.encoder(x)[0].chunk(2, dim=1)
    posterior = ours.posterior(x, frames_per_chunk=4)
    close(posterior.mean, mean)
    close(posterior.logvar, logvar)
    close(ours.decode(mean, latents_per_chunk=2), theirs.decoder(mean)[0])


def test_posterior_is_sampled_alike():
    ours, theirs = pair()
    x = clip(9)
    z = ours.encode(x, generator=torch.Generator().manual_seed(5), frames_per_chunk=8)
    close(z, theirs.encode(x).latent_dist.sample(torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("frames", [1, 9])
def test_gradients_are_alike(frames):
    ours, theirs = pair()
    x = clip(frames, 16, 24, batch=1)
    names = {}
    for model in (ours, theirs):
        model.requires_grad_(True)
        given = x.clone().requires_grad_(True)
        parameters = ours.posterior(given) if model is ours else theirs.encode(given).latent_dist
        z = parameters.mean + parameters.std.clamp(max=1.0)
        shown = ours.decode(z) if model is ours else theirs.decoder(z)[0]
        leaves = [given, *model.parameters()]
        gradients = torch.autograd.grad(shown.square().mean() + z.square().mean(), leaves)
        names[model is ours] = dict(zip(["x", *(name for name, _ in model.named_parameters())], gradients, strict=True))
        model.requires_grad_(False)
    given_gradients = names[True].pop("x"), names[False].pop("x")
    close(*given_gradients)
    renamed = sat_from_diffusers(names[False])
    assert renamed.keys() == names[True].keys()
    for name, gradient in names[True].items():
        close(gradient, renamed[name])


def test_no_error_beyond_rounding():
    """Ours in float32 against diffusers' in float64, on a clip so large that careless sums show."""
    ours, theirs = pair()
    x = clip(9, 48, 64, batch=1)
    theirs.double()
    try:
        mean = theirs.encoder(x.double())[0].chunk(2, dim=1)[0]
        shown = theirs.decoder(mean)[0]
    finally:
        theirs.float()
    close(ours.posterior(x).mean, mean.float(), 2e-5)
    close(ours.decode(mean.float()), shown.float(), 2e-5)
