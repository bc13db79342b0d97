"""A tiny engine with random weights, built as `training_main` builds it."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import yaml

from diffusion_video import SATVideoDiffusionEngine
from tests.conftest import ROOT

FRAMES, HEIGHT, WIDTH = 5, 32, 48


def model_config(**changes: Any) -> dict[str, Any]:
    """The quickstart's model at the smallest size, its VAE untrained; `changes` replace keys of `model:`."""
    text = (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
    text = text.replace("${repo:", f"{ROOT}/").replace("${repo}", str(ROOT))
    config = yaml.safe_load(text)["model"]
    network = config["network_config"]["params"]
    network |= {"num_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "time_embed_dim": 64, "num_frames": 5}
    network |= {"latent_width": WIDTH // 8, "latent_height": HEIGHT // 8}
    discretization = config["denoiser_config"]["params"]["discretization_config"]
    config["loss_fn_config"]["params"]["sigma_sampler_config"]["params"]["discretization_config"] = discretization
    config["sampler_config"]["params"] |= {"num_steps": 2, "discretization_config": discretization}
    embedder = config["conditioner_config"]["params"]["emb_models"][0]["params"]
    embedder |= {"model_dir": str(ROOT / "assets/quickstart/t5"), "max_length": network_text_length(network)}
    config["first_stage_config"]["params"].pop("ckpt_path")
    return config | changes


def network_text_length(network: dict[str, Any]) -> int:
    return network["modules"]["pos_embed_config"]["params"]["text_length"]


def build_engine(dtype: torch.dtype = torch.float32, **changes: Any) -> SATVideoDiffusionEngine:
    torch.manual_seed(0)
    return SATVideoDiffusionEngine(argparse.Namespace(model_config=model_config(**changes)), params_dtype=dtype).to(
        dtype
    )


def make_batch(size: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "mp4": torch.rand(size, FRAMES, 3, HEIGHT, WIDTH, generator=generator) * 2 - 1,
        "txt": [f"clip number {place}" for place in range(size)],
        "num_frames": torch.full((size,), FRAMES),
        "fps": torch.full((size,), 8),
    }
