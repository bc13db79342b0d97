"""Truth: reference. What a run left, exported, draws in diffusers' pipelines what sample_video.py draws with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from PIL import Image
from transformers import AutoTokenizer, T5EncoderModel

from cogvideox.diffusion.noise import NoiseOfSamples, generator_of
from tests.diffusion.test_schedule import diffusers_scheduler
from tests.end_to_end.runs import LORA, OPEN_GATES, ROOT, Run, train
from tests.end_to_end.sampling_runs import sample
from tools import convert_checkpoint

SEED, STEPS, GUIDANCE, PROMPT = 3, 10, 2.0, "a red car"
FRAMES, HEIGHT, WIDTH = 5, 16, 32
OPEN = ("--allow-target", "tests")
IMAGE_MODEL = {"model": {"noised_image_input": True, "network_config": {"params": {"in_channels": 32}}}}
LEVELS = "model.sampler_config.params.discretization_config.params.rescale_before_picking=true"  # as diffusers does


@pytest.fixture(scope="module", params=[False, True], ids=["text", "image"])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, bool]:
    """A run of all weights, and one of adapters on them that were trained fast enough to be seen."""
    folder = tmp_path_factory.mktemp("runs")
    kind = IMAGE_MODEL if request.param else {}
    base = train(folder / "base", kind, OPEN_GATES, {"args": {"train_iters": 2}}, flags=OPEN)
    assert base.status == 0, base.output[-3000:]
    load = {"args": {"load": str(base.folder), "mode": "finetune", "train_iters": 4}}
    fast = {"deepspeed": {"optimizer": {"params": {"lr": 0.05}}}}
    run = train(folder / "lora", kind, OPEN_GATES, LORA, load, fast, flags=OPEN)
    assert run.status == 0, run.output[-3000:]
    return base, run, request.param


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def drawn(run: Run, out: Path, prompt: str) -> torch.Tensor:
    """sample_video.py's latents, scaled. (1,T,C,h,w)"""
    words = ["--run", str(run.folder), "--prompt", prompt, "--output-dir", str(out), "--seed", str(SEED), *OPEN]
    words += ["--sampler", "ddim", "--num-steps", str(STEPS), "--guidance-scale", str(GUIDANCE), "--latents-only"]
    status, output = sample(out.with_suffix(".log"), *words, LEVELS)
    assert status == 0, output[-3000:]
    (file,) = out.glob("*/*.latents.pt")
    scale = yaml.safe_load((run.folder / "training_config.yaml").read_text())["model"]["scale_factor"]
    return torch.load(file, weights_only=True)[None] * scale


def exported_pipeline(base: Run, run: Run, out: Path, takes_image: bool):  # noqa: ANN201
    config = str(base.folder / "training_config.yaml")
    vae = str(ROOT / "assets/quickstart/vae/3d-vae.pt")
    for line in (
        [str(base.folder), str(out / "transformer")],
        [vae, str(out / "vae"), "--base", config],
        [str(run.folder), str(out / "lora"), "--lora", "export"],
    ):
        assert convert_checkpoint.main(line) == 0
    make = CogVideoXImageToVideoPipeline if takes_image else CogVideoXPipeline
    pipeline = make(
        tokenizer=AutoTokenizer.from_pretrained(ROOT / "assets/quickstart/t5"),
        text_encoder=T5EncoderModel.from_pretrained(ROOT / "assets/quickstart/t5"),
        vae=AutoencoderKLCogVideoX.from_pretrained(out / "vae"),
        transformer=CogVideoXTransformer3DModel.from_pretrained(out / "transformer"),
        scheduler=diffusers_scheduler(CogVideoXDDIMScheduler, 1.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipeline_draws_the_same_latents(tmp_path: Path, adapted: tuple[Run, Run, bool], image: Path) -> None:
    base, run, takes_image = adapted
    prompt = f"{PROMPT}@@{image}" if takes_image else PROMPT
    ours = drawn(run, tmp_path / "ours", prompt)
    pipeline = exported_pipeline(base, run, tmp_path / "exported", takes_image)
    noise = NoiseOfSamples([(SEED, 0, 0)])(torch.empty_like(ours))
    text = pipeline._get_t5_prompt_embeds(PROMPT, 1, 48)

    def theirs() -> torch.Tensor:
        return pipeline(
            **({"image": Image.open(image)} if takes_image else {}),
            prompt_embeds=text,
            negative_prompt_embeds=torch.zeros_like(text),
            max_sequence_length=48,
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=noise,
            generator=generator_of(SEED, 0, 0, 1),
            output_type="latent",
        ).frames

    without = theirs()
    pipeline.load_lora_weights(tmp_path / "exported" / "lora")
    assert (theirs() - ours).abs().max() <= 1e-3
    assert (without - ours).abs().max() > 1e-2, "adapters that change nothing would prove nothing"
