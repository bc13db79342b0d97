"""Runs of any model's config files at the smallest size, without a change to the files."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.end_to_end.runs import ROOT, Run, environment
from tests.end_to_end.warm_start import run_warm

ASSETS = ROOT / "assets" / "quickstart"
CLIPS = ASSETS / "clips"
VAE = {"ch": 32, "ch_mult": [1, 1, 1, 2], "num_res_blocks": 1}

# Laid over a model's file: its sizes, and the quickstart's VAE and text encoder in place of the published ones.
# 9 frames are 3 latent frames: odd, so that 1.5 has to fill up its patches of 2.
TINY_MODEL = {
    "model": {
        "network_config": {
            "params": {
                "num_layers": 2,
                "hidden_size": 128,
                "num_attention_heads": 2,
                "num_frames": 9,
                "latent_width": 4,
                "latent_height": 2,
                "modules": {"patch_embed_config": {"params": {"text_hidden_size": 64}}},
            }
        },
        "first_stage_config": {
            "params": {
                "ckpt_path": str(ASSETS / "vae" / "3d-vae.pt"),
                "encoder_config": {"params": VAE},
                "decoder_config": {"params": VAE},
            }
        },
    }
}
TINY_DATA = {"data": {"params": {"video_size": [16, 32], "max_num_frames": 9, "skip_frms_num": 0}}}
T5 = f"model.conditioner_config.params.emb_models.0.params.model_dir={ASSETS / 't5'}"


def write(folder: Path, name: str, tree: dict) -> str:
    """`tree` as a YAML file in `folder`; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def arguments(folder: Path, *files: str, words: tuple[str, ...] = ()) -> list[str]:
    """The command line for config `files` at tiny size: TINY_MODEL and TINY_DATA over them, `words` over all."""
    tiny = write(folder, "tiny", TINY_MODEL | TINY_DATA)
    data = ["--train-data", str(CLIPS), "--valid-data", str(CLIPS), "--num-workers", "0"]
    return ["--base", *files, tiny, T5, *data, "--save", str(folder / "runs"), *words]


def train_tiny(folder: Path, *files: str, words: tuple[str, ...] = (), timeout_s: float = 240) -> Run:
    """Train on config `files` at tiny size in `folder`, on one rank. Asserts nothing about the outcome."""
    line = arguments(folder, *files, words=words)
    status, output = run_warm(line, environment(1), 1, folder / "output.log", timeout_s)
    return Run(status, output, folder / "runs")
