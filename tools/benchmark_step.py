# F frames, H W pixels
"""Time whole steps of train_video.py, phase by phase. A part of tools/benchmark.py."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from cogvideox.data.writing import write_video
from cogvideox.errors import UserError
from cogvideox.telemetry.metrics_file import read_metrics
from tools.benchmark_sizes import SIZES, Size, network_params

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("vae", "text_encoder", "forward", "backward", "optimizer")
WARM_UP_STEPS = 2


def write_clip(folder: Path, size: Size) -> None:
    """A data folder with one captioned clip: squares of noise, a little longer than is trained on."""
    (folder / "labels").mkdir(parents=True)
    (folder / "labels" / "noise.txt").write_text("squares of changing colours", encoding="utf-8")
    small = torch.rand(size.frames + 8, 3, size.height // 8, size.width // 8)
    frames = small.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    write_video(folder / "videos" / "noise.mp4", frames * 2 - 1, fps=8)


def step_config(folder: Path, size: Size, dtype: str, steps: int) -> dict[str, Any]:
    """The quickstart's config with this model, a VAE without weights, ZeRO 2, and nothing but steps."""
    encoder = ROOT / "assets" / "quickstart" / "t5"
    text_width = json.loads((encoder / "config.json").read_text(encoding="utf-8"))["d_model"]
    embedder = {
        "target": "cogvideox.conditioning.t5.FrozenT5Embedder",
        "input_key": "txt",
        "ucg_rate": 0.1,
        "params": {"model_dir": str(encoder), "max_length": size.text_tokens},
    }
    coder = {"params": {"ch": 32, "ch_mult": [1, 2, 2, 4], "num_res_blocks": 1}}
    vae = {"ckpt_path": None, "encoder_config": coder, "decoder_config": coder}
    never = 10**6
    return {
        "extends": str(ROOT / "configs" / "quickstart.yaml"),
        "args": {
            "train_data": [str(folder / "data")],
            "save": str(folder / "runs"),
            "train_iters": steps,
            "log_interval": 1,
            "save_interval": never,
            "eval_interval": never,
            "profile_phases": True,
        },
        "model": {
            "network_config": {"params": network_params(size, size.rotary, checkpointing=True, text_width=text_width)},
            "conditioner_config": {"params": {"emb_models": [embedder]}},
            "first_stage_config": {"params": vae},
        },
        "data": {"params": {"video_size": [size.height, size.width], "max_num_frames": size.frames}},
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 2},
            "bf16": {"enabled": dtype == "bf16"},
            "fp16": {"enabled": dtype == "fp16"},
        },
    }


def summarize_steps(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the lines of metrics.jsonl after the warm-up, and the share of a step outside of the phases."""
    steps = [line for line in lines if "seconds_per_iteration" in line][WARM_UP_STEPS:]
    if not steps:
        raise UserError("the run logged no iteration after its warm-up: see its output above")
    phases = {name: statistics.median(step.get(f"seconds_{name}", 0.0) for step in steps) for name in PHASES}
    outside = [
        1 - sum(step.get(f"seconds_{name}", 0.0) for name in PHASES) / step["seconds_per_iteration"] for step in steps
    ]
    return {
        "median_s": statistics.median(step["seconds_per_iteration"] for step in steps),
        "phases_s": phases,
        "outside_share": statistics.median(outside),
        "peak_memory_gib": max(step["peak_memory_gib"] for step in steps),
        "steps": len(steps),
    }


def run(command: list[str], args: argparse.Namespace) -> None:
    """Run one of our scripts, on the CPU where `args.device` says so; shown if `args.verbose`. UserError: it failed."""
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {})
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=not args.verbose, text=True, check=False
    )
    if ended.returncode:
        raise UserError(f"{' '.join(command)} ended with status {ended.returncode}:\n{ended.stderr or ''}")


def train(folder: Path, config: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run of train_video.py with `config`, which is written to `folder`."""
    (folder / "step.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    before = set(folder.glob("runs/**/metrics.jsonl"))
    run(["train_video.py", "--base", str(folder / "step.yaml")], args)
    (metrics,) = set(folder.glob("runs/**/metrics.jsonl")) - before
    return read_metrics(metrics)


def benchmark_step(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One result for each dtype, each from a run of its own."""
    size, results = SIZES[args.model], []
    for dtype in args.dtype:
        with tempfile.TemporaryDirectory(prefix="benchmark-step-") as name:
            folder = Path(name)
            torch.manual_seed(0)
            write_clip(folder / "data", size)
            config = step_config(folder, size, dtype, args.runs + WARM_UP_STEPS)
            result = {"model": args.model, "dtype": dtype, **summarize_steps(train(folder, config, args))}
        results.append(result)
        parts = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in result["phases_s"].items())
        peak = f"peak {result['peak_memory_gib']:.2f} GiB"
        print(f"{args.model} {dtype}: {result['median_s']:.3f} s a step ({parts}), {peak}")
        print(f"  outside of these phases: {result['outside_share']:.1%}")
    return results
