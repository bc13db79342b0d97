"""The wrapper: what it refuses, what it loads, what it draws, what it leaves alone.

Truths checked: golden values (published parameter count, names), round trips, identities.
"""

from __future__ import annotations

import pytest
import torch

from cogvideox.checkpoint.vae_names import diffusers_from_sat, sat_from_diffusers
from cogvideox.errors import UserError
from cogvideox.vae.autoencoder import VideoAutoencoderInferenceWrapper
from cogvideox.vae.decoder import ContextParallelDecoder3D
from cogvideox.vae.encoder import ContextParallelEncoder3D
from cogvideox.vae.posterior import DiagonalGaussianRegularizer, Posterior
from tests.vae.small import CH_MULT, build, build_diffusers, clip, pair


def node(target: str, **params) -> dict:
    return {"target": target, "params": params}


def coders() -> dict:
    """The two coders' nodes as the reference's configs have them, at our test's size."""
    keys = {
        "double_z": True,
        "z_channels": 16,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": list(CH_MULT),
        "attn_resolutions": [],
        "num_res_blocks": 1,
        "dropout": 0.0,
    }
    return {
        "encoder_config": node("vae_modules.cp_enc_dec.ContextParallelEncoder3D", **keys, gather_norm=True),
        "decoder_config": node("vae_modules.cp_enc_dec.ContextParallelDecoder3D", **keys, gather_norm=False),
        "regularizer_config": node("vae_modules.regularizers.DiagonalGaussianRegularizer"),
        "loss_config": {"target": "torch.nn.Identity"},
    }


def test_reference_config_builds_it_and_loads_either_naming(tmp_path):
    from cogvideox.config import instantiate

    source = build(seed=7)
    x = clip(5, 16, 16)
    sat = {"state_dict": source.state_dict() | {"loss.logvar": torch.zeros(1)}}
    for name, content in {"sat.pt": sat, "diffusers.bin": diffusers_from_sat(source.state_dict())}.items():
        torch.save(content, tmp_path / name)
        config = node(
            "vae_modules.autoencoder.VideoAutoencoderInferenceWrapper",
            **coders(),
            cp_size=1,
            ckpt_path=str(tmp_path / name),
            ignore_keys=["loss"],
        )
        assert torch.equal(instantiate(config).posterior(x).mean, source.posterior(x).mean)


def test_diffusers_folder_is_loaded(tmp_path):
    theirs = build_diffusers()
    theirs.save_pretrained(tmp_path)
    ours = build()
    ours.load_weights(tmp_path)
    x = clip(5, 16, 16)
    assert (ours.posterior(x).mean - theirs.encode(x).latent_dist.mean).abs().max() <= 1e-4


def test_published_size_and_names():
    with torch.device("meta"):
        ours = build((1, 2, 2, 4), blocks=3, ch=128)
    state = ours.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 215_583_907
    shapes = {
        "encoder.conv_in.conv.weight": (128, 3, 3, 3, 3),
        "encoder.down.0.block.0.norm1.weight": (128,),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1, 1),
        "encoder.down.2.downsample.conv.weight": (256, 256, 3, 3),
        "encoder.mid.block_2.conv2.conv.bias": (512,),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.conv.weight": (32, 512, 3, 3, 3),
        "decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
        "decoder.up.3.block.3.norm2.norm_layer.bias": (512,),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.0.block.0.norm1.conv_y.conv.weight": (256, 16, 1, 1, 1),
        "decoder.norm_out.conv_b.conv.bias": (128,),
        "decoder.conv_out.conv.weight": (3, 128, 3, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert not any(name.startswith(("encoder.down.3.downsample", "decoder.up.0.upsample")) for name in state)


def test_published_names_are_those_of_diffusers():
    """Reference: at the real size, every name and shape of diffusers' class has its place in ours, and none is left."""
    with torch.device("meta"):
        ours = build((1, 2, 2, 4), blocks=3, ch=128)
        theirs = build_diffusers((1, 2, 2, 4), blocks=3, ch=128)
    assert theirs.config.block_out_channels == (128, 256, 256, 512) and theirs.config.layers_per_block == 3
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 215_583_907
    renamed = sat_from_diffusers(theirs.state_dict())
    assert {n: t.shape for n, t in renamed.items()} == {n: t.shape for n, t in ours.state_dict().items()}
    assert diffusers_from_sat(ours.state_dict()).keys() == theirs.state_dict().keys()


def test_weights_of_another_size_are_refused_in_one_message(tmp_path):
    torch.save({"state_dict": build((1, 1, 1, 1)).state_dict() | {"extra": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(UserError) as caught:
        build().load_weights(tmp_path / "other.pt")
    text = str(caught.value)
    assert "other.pt" in text and "extra" in text and "nin_shortcut" in text and "wanted" in text
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 8, 16, 16), "8 frames.*use 9 frames"),
        ((1, 3, 6, 16, 16), "6 frames.*use 5 frames"),
        ((1, 3, 9, 60, 16), "height 60.*use 64"),
        ((1, 3, 9, 16, 100), "width 100.*use 96"),
        ((1, 3, 9, 4, 16), "height 4.*use 8"),
        ((3, 9, 16, 16), "5 dimensions.*not 4"),
        ((1, 4, 9, 16, 16), "4 channels.*3"),
    ],
)
def test_clips_that_do_not_fit(shape, words):
    ours, _ = pair()
    with pytest.raises(UserError, match=words):
        ours.encode(torch.zeros(shape))


def test_other_values_that_do_not_fit():
    ours, _ = pair()
    with pytest.raises(UserError, match="frames_per_chunk 6 .*multiple of 4"):
        ours.encode(clip(9), frames_per_chunk=6)
    with pytest.raises(UserError, match="latents_per_chunk 0"):
        ours.decode(torch.zeros(1, 16, 2, 2, 2), latents_per_chunk=0)
    with pytest.raises(UserError, match=r"\(B, 16, T, h, w\).*\(1, 8, 2, 2, 2\)"):
        ours.decode(torch.zeros(1, 8, 2, 2, 2))
    with pytest.raises(UserError, match="cp_size 2.*cp_size: 1"):
        VideoAutoencoderInferenceWrapper(ours.encoder, ours.decoder, ours.regularization, cp_size=2)
    with pytest.raises(UserError, match="temporal_compress_times 3.*power of two"):
        ContextParallelEncoder3D(32, 3, 16, 1, temporal_compress_times=3)
    with pytest.raises(UserError, match="temporal_compress_times 16.*at most 8"):
        ContextParallelDecoder3D(32, 3, 16, 1, temporal_compress_times=16)
    with pytest.raises(UserError, match="encoder compresses time by 2.*decoder by 4"):
        VideoAutoencoderInferenceWrapper(
            ContextParallelEncoder3D(32, 3, 16, 1, CH_MULT, temporal_compress_times=2),
            ours.decoder,
            ours.regularization,
        )


def test_posterior():
    parameters = torch.randn(2, 32, 3, 4, 6)
    parameters[:, 16:, 0] = 50.0
    posterior = Posterior(parameters)
    assert torch.equal(posterior.mode(), parameters[:, :16])
    assert posterior.logvar.max() == 20.0
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    normal = torch.distributions.Normal(posterior.mean.double(), posterior.std.double())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(posterior.kl().double(), expected, rtol=1e-4)


def test_regularizer_may_take_the_mode():
    ours, _ = pair()
    certain = VideoAutoencoderInferenceWrapper(ours.encoder, ours.decoder, DiagonalGaussianRegularizer(sample=False))
    x = clip(5, 16, 16)
    assert torch.equal(certain.encode(x), ours.posterior(x).mean)


def test_frozen_and_always_in_evaluation_mode():
    ours = build().train()
    assert not any(module.training for module in ours.modules())
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    x = clip(5, 16, 16)
    before = x.clone()
    z = ours.encode(x)
    assert z.grad_fn is None and ours.decode(z).grad_fn is None
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Half-precision weights and clips, and autocast over float32 ones, give about what float32 gives."""
    ours, _ = pair()
    x = clip(5, 16, 24)
    mean = ours.posterior(x).mean
    shown = ours.decode(mean)
    with torch.autocast("cpu", dtype=dtype):
        assert (ours.posterior(x).mean - mean).abs().max() <= 0.05 * mean.abs().max()
    half = build()
    half.load_state_dict(ours.state_dict())
    half.to(dtype)
    z = half.posterior(x.to(dtype)).mean
    assert z.dtype == dtype and (z.float() - mean).abs().max() <= 0.05 * mean.abs().max()
    assert (half.decode(mean.to(dtype)).float() - shown).abs().max() <= 0.05 * shown.abs().max()
