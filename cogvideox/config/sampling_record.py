"""A clip that is to be drawn, and the settings that decide it, as they are written beside it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cogvideox.config.sampling import SamplingArguments
from cogvideox.data.prompts import Prompt
from cogvideox.data.sample_files import is_complete, sample_path

PACKAGES = ("torch", "SwissArmyTransformer", "transformers")


@dataclass(frozen=True)
class Job:
    """One clip to draw: which sample of which prompt, both counted from 0, and the file that it goes to."""

    prompt: Prompt
    prompt_number: int
    sample_number: int
    path: Path


def jobs_of(arguments: SamplingArguments, prompts: Sequence[Prompt], first_number: int = 0) -> list[Job]:
    """Every clip that is asked for, prompt by prompt."""
    suffix = ".latents.pt" if arguments.latents_only else ".mp4"
    return [
        Job(prompt, number, sample, sample_path(arguments.output_dir, number, prompt.text, sample, suffix))
        for number, prompt in enumerate(prompts, first_number)
        for sample in range(arguments.num_samples)
    ]


def images_of(jobs: Sequence[Job]) -> list[Path]:
    """The pictures that the clips start with."""
    return [job.prompt.image for job in jobs if job.prompt.image is not None]


def unfinished(arguments: SamplingArguments, jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose clips are not there yet. Raises UserError where one is there that other settings made."""
    if arguments.overwrite:
        return list(jobs)
    return [job for job in jobs if not is_complete(job.path, record_of(arguments, job))]


def record_of(arguments: SamplingArguments, job: Job) -> dict[str, Any]:
    """Every setting that decides a clip."""
    checkpoint, image, clip = arguments.checkpoint, job.prompt.image, arguments.clip
    weights = checkpoint.ema_file if arguments.use_ema else checkpoint.file
    model = json.dumps(arguments.model_config, sort_keys=True, default=str)
    return {
        "prompt": job.prompt.text,
        "negative_prompt": arguments.negative_prompt,
        "image": None if image is None else str(image),
        "image_sha256": None if image is None else hashlib.sha256(image.read_bytes()).hexdigest(),
        "prompt_number": job.prompt_number,
        "sample_number": job.sample_number,
        "seed": arguments.seed,
        "num_steps": arguments.num_steps,
        "guidance_scale": arguments.guidance_scale,
        "guider": arguments.guider,
        "sampler": arguments.sampler,
        "frames": clip.frames,
        "height": clip.height,
        "width": clip.width,
        "fps": clip.fps,
        "precision": arguments.precision,
        "checkpoint": str(weights.resolve()),
        "checkpoint_changed": datetime.fromtimestamp(weights.stat().st_mtime, timezone.utc).isoformat(),
        "iteration": checkpoint.iteration,
        "base_weights": None if arguments.base_weights is None else str(arguments.base_weights.resolve()),
        "ema": arguments.use_ema,
        "lora_scale": arguments.lora_scale,
        "latents_only": arguments.latents_only,
        "model_config_sha256": hashlib.sha256(model.encode()).hexdigest(),
        "config_files": list(arguments.config_files),
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in PACKAGES}},
    }
