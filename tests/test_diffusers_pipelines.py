"""Truth: reference. diffusers' pipelines, given our weights under diffusers' names, draw the same latents as we do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from cogvideox.checkpoint.transformer_names import to_diffusers
from cogvideox.checkpoint.vae_names import diffusers_from_sat
from cogvideox.diffusion.sampler import VideoDDIMSampler
from diffusion_video import SATVideoDiffusionEngine
from tests.diffusion.test_sampler import DiffusersNoise
from tests.diffusion.test_schedule import diffusers_scheduler
from tests.engine import build_engine, model_config
from tests.transformer import tiny
from tests.transformer.five import KINDS, Kind, Size, diffusers_options, params_of

FRAMES, HEIGHT, WIDTH, STEPS, GUIDANCE, SCALE_FACTOR = 9, 32, 48, 10, 6.0, 0.7
SIZE = Size(2, 2, 48, FRAMES, HEIGHT // 8, WIDTH // 8, text_width=64, time_embed_dim=64)
SCHEDULERS = {"VPSDEDPMPP2MSampler": CogVideoXDPMScheduler, "VideoDDIMSampler": CogVideoXDDIMScheduler}
DYNAMIC = {
    "target": "sgm.modules.diffusionmodules.guiders.DynamicCFG",
    "params": {"scale": 6, "exp": 5, "num_steps": STEPS},
}


def make_engine(kind: Kind, sampler: str) -> SATVideoDiffusionEngine:
    """Ours, tiny, at diffusers' levels, with weights in which nothing is zero."""
    config = model_config()
    levels = {
        "target": "sgm.modules.diffusionmodules.discretizer.ZeroSNRDDPMDiscretization",
        "params": {"shift_scale": 1.0, "rescale_before_picking": True},
    }
    config["denoiser_config"]["params"]["discretization_config"] = levels
    config["sampler_config"] = {
        "target": f"sgm.modules.diffusionmodules.sampling.{sampler}",
        "params": {"num_steps": STEPS, "discretization_config": levels, "guider_config": DYNAMIC},
    }
    config["network_config"] = {"target": "dit_video_concat.DiffusionTransformer", "params": params_of(kind, SIZE)}
    inverted = kind.image and kind.patch_t == 2  # diffusers divides the image's latents there: `invert_scale_latents`
    config |= {
        "scale_factor": SCALE_FACTOR,
        "noised_image_input": kind.image,
        "image_scale_factor": 1 / SCALE_FACTOR if inverted else None,
    }
    engine = build_engine(**config).eval()
    tiny.fill_randomly(engine.network)
    return engine


def make_pipeline(engine: SATVideoDiffusionEngine, kind: Kind, sampler: str) -> Any:
    """diffusers' pipeline of the kind around the engine's weights."""
    transformer = CogVideoXTransformer3DModel(**diffusers_options(kind, SIZE))
    transformer.load_state_dict(to_diffusers(engine.network.state_dict(), engine.network.patch, kind.learned))
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(32, 32, 32, 64),
        layers_per_block=1,
        scaling_factor=SCALE_FACTOR,
        invert_scale_latents=kind.image and kind.patch_t == 2,
    )
    vae.load_state_dict(diffusers_from_sat(engine.first_stage_model.state_dict()))
    parts = {"tokenizer": None, "text_encoder": None, "vae": vae.eval(), "transformer": transformer.eval()}
    make = CogVideoXImageToVideoPipeline if kind.image else CogVideoXPipeline
    pipeline = make(**parts, scheduler=diffusers_scheduler(SCHEDULERS[sampler], 1.0))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("name", KINDS)
def test_the_same_latents_from_the_same_noise(name: str, sampler: str) -> None:
    kind = KINDS[name]
    engine = make_engine(kind, sampler)
    shape = engine.latent_shape(FRAMES, HEIGHT, WIDTH)
    extra = -shape[0] % kind.patch_t
    noise = torch.randn(1, shape[0] + extra, *shape[1:], generator=torch.Generator().manual_seed(1))
    text = torch.randn(1, SIZE.text_tokens, SIZE.text_width, generator=torch.Generator().manual_seed(2))
    image = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))

    torch.manual_seed(3)  # the posterior of the image is drawn first, from the same stream as the pipeline's
    image_latents = engine.encode_images(image * 2 - 1) if kind.image else None
    draw = DiffusersNoise()
    if kind.image:
        torch.randn(1, 16, 1, *shape[2:], generator=draw.generator)
    ours = engine.sample(
        {"crossattn": text},
        {"crossattn": torch.zeros_like(text)},
        batch_size=1,
        shape=shape,
        noise=noise,
        image_latents=image_latents,
        draw_noise=draw,
    )
    theirs = make_pipeline(engine, kind, sampler)(
        **({"image": image} if kind.image else {}),
        prompt_embeds=text,
        negative_prompt_embeds=torch.zeros_like(text),
        max_sequence_length=SIZE.text_tokens,
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        use_dynamic_cfg=True,
        latents=noise,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    assert isinstance(engine.sampler, VideoDDIMSampler) and ours.std() > 0.1
    assert (ours - theirs[:, extra:]).abs().max() <= 1e-3
