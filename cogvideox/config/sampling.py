"""Flags and YAML → the checked settings of a sampling run. Nothing is loaded, and torch is not imported.

`get_sampling_arguments` reads, merges and checks; every problem that it finds is told in one UserError.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.checkpoint.choosing import Checkpoint
from cogvideox.config.command_line import CommandLine
from cogvideox.config.launchers import ranks_from
from cogvideox.config.load import load_settings, resolve_interpolations
from cogvideox.config.preflight import check_paths, check_world
from cogvideox.config.report import Problem, raise_if_any
from cogvideox.config.sampling_checks import (
    check_arguments,
    check_clip,
    check_output_dir,
    check_sampler,
    check_weights,
    chosen_prompts,
)
from cogvideox.config.sampling_flags import INERT_SAMPLING_KEYS, SAMPLERS, SAMPLING_FLAGS, SAMPLING_KEYS
from cogvideox.config.sampling_line import parse_sampling_line
from cogvideox.config.sampling_values import Clip, SamplingValues
from cogvideox.config.settings import MISSING, Settings
from cogvideox.config.targets import allowed_modules
from cogvideox.config.validate import Validator
from cogvideox.data.prompts import Prompt

TRAINING_CONFIG = "training_config.yaml"
# What sampling takes of the `args:` of a training run.
KEPT_OF_A_RUN = ("fp16", "bf16")


@dataclass(frozen=True)
class SamplingArguments:
    """All that decides what is drawn and where it goes."""

    model_config: dict[str, Any]
    config_files: tuple[str, ...]
    checkpoint: Checkpoint
    base_weights: Path | None
    use_ema: bool
    lora_scale: float
    precision: str
    prompts: tuple[Prompt, ...]
    is_interactive: bool
    negative_prompt: str | None
    takes_image: bool
    clip: Clip
    seed: int
    num_samples: int
    batch_size: int
    num_steps: int
    asked_scale: float | None  # None: as the guider has it
    guidance_scale: float | None  # the one in force
    guider: str | None
    sampler: str
    latents_per_chunk: int | None
    output_dir: Path
    overwrite: bool
    latents_only: bool
    model_parallel_size: int
    rank: int
    world_size: int
    local_rank: int
    notes: tuple[str, ...] = ()


def get_sampling_arguments(words: Sequence[str]) -> SamplingArguments:
    """The settings that a command line and the files it names give. `--help` prints and exits with 0.

    Raises UserError that names every problem found.
    """
    problems: list[Problem] = []
    line = parse_sampling_line(words, problems)
    settings = _merged(line, problems)
    problems += check_arguments(settings)
    values = SamplingValues(settings)
    if values.sampler is not None and settings.get("model.sampler_config") is not None:
        settings.set("model.sampler_config.target", SAMPLERS[values.sampler], settings.source("args.sampler"))
    prompts, is_interactive = chosen_prompts(settings, line, problems)
    checkpoint = check_weights(settings, line.values.get("run"), line.sources.get("run", ""), problems)
    clip = values.clip
    output_dir = _output_dir(values, line, checkpoint)
    problems += [*check_sampler(settings), *check_clip(settings, clip), *check_output_dir(settings, output_dir)]
    ranks = ranks_from(os.environ, line.values.get("local_rank"), problems)
    known = _reduced(settings, has_run="run" in line.values)
    validator = Validator(known)
    validator.run()
    found = [*validator.problems, *_missing_files(known), *check_world(known, ranks["world_size"])]
    told = {problem.key for problem in problems if problem.key}
    raise_if_any([*problems, *(problem for problem in found if problem.key not in told)])
    assert checkpoint is not None and clip is not None
    has_no_effect = [f"{key} has no effect ({why}); ignored" for key, why in validator.notes.items()]
    return SamplingArguments(
        model_config=known.tree["model"],
        config_files=_files(line),
        checkpoint=checkpoint,
        prompts=tuple(prompts),
        is_interactive=is_interactive,
        clip=clip,
        output_dir=output_dir,
        notes=(*_notes(settings, values), *has_no_effect),
        **{**_plain_values(values), **ranks},
    )


def _plain_values(values: SamplingValues) -> dict[str, Any]:
    """The settings that are flags' values, or follow from them alone."""
    return {
        "base_weights": Path(values.base_weights) if values.base_weights else None,
        "use_ema": values.of("ema"),
        "lora_scale": 1.0 if values.of("lora_scale") is None else values.of("lora_scale"),
        "precision": values.precision,
        "negative_prompt": values.of("negative_prompt") or None,
        "takes_image": values.takes_image,
        "seed": values.of("seed"),
        "num_samples": values.num_samples,
        "batch_size": values.of("batch_size"),
        "num_steps": values.num_steps,
        "asked_scale": values.of("guidance_scale"),
        "guidance_scale": values.guidance_scale,
        "guider": values.guider,
        "sampler": values.sampler_name,
        "latents_per_chunk": values.of("latents_per_chunk"),
        "overwrite": values.of("overwrite"),
        "latents_only": values.of("latents_only") or values.of("only_save_latents"),
        "model_parallel_size": values.of("model_parallel_size"),
    }


def _merged(line: CommandLine, problems: list[Problem]) -> Settings:
    """A run's config, then files, then overrides and flags. Of a run's `args:` only the precision counts."""
    for module in line.values.get("allow_target", []):
        allowed_modules.allow(module)
    files = list(_files(line))
    if "run" in line.values and not Path(files[0]).is_file():
        what, remedy = f"there is no {files[0]}", "give the folder of a run, SAVE/NAME-MM-DD-HH-MM"
        raise_if_any([*problems, Problem(line.sources["run"], "", what, remedy)])
    if not files:
        what, remedy = "no model is named", "give `--run RUN` or `--base MODEL.yaml`"
        problems.append(Problem("--run, --base", "model", what, remedy))
    unread: list[Problem] = []
    settings = load_settings(files, line.overrides, unread)
    if unread:
        raise_if_any(problems + unread)
    if "run" in line.values:
        _forget_arguments(settings, files[0])
    for key, value in line.values.items():
        if key in SAMPLING_KEYS:
            settings.set(f"args.{key}", value, line.sources[key])
    resolve_interpolations(settings, problems)
    return settings


def _files(line: CommandLine) -> tuple[str, ...]:
    run = [str(Path(line.values["run"]) / TRAINING_CONFIG)] if "run" in line.values else []
    return (*run, *line.values.get("base", []))


def _forget_arguments(settings: Settings, file: str) -> None:
    """Take out what `file`'s `args:` says of training: its batch size, seed and weights to start from are not ours."""
    alone = load_settings([file], [], [])
    section = settings.get("args") or {}
    for name in [each for each in section if each not in KEPT_OF_A_RUN]:
        key = f"args.{name}"
        if alone.get(key, MISSING) is not MISSING and settings.source(key) == alone.source(key):
            del section[name]
            for leaf in [each for each in settings.history if each == key or each.startswith(key + ".")]:
                del settings.history[leaf]


def _reduced(settings: Settings, has_run: bool) -> Settings:
    """The settings that the validator is to see: the model, and the arguments that it has in common with training."""
    shared = {"mode": "inference", "model_parallel_size": settings.get("args.model_parallel_size", 1)}
    if not has_run:
        shared["load"] = settings.get("args.load")
    return Settings({"args": shared, "model": settings.get("model") or {}}, settings.history)


def _missing_files(known: Settings) -> list[Problem]:
    """As for training, but nobody samples from a model that starts from scratch."""
    unfit = "; or start from scratch"
    return [dataclasses.replace(each, remedy=each.remedy.partition(unfit)[0]) for each in check_paths(known)]


def _output_dir(values: SamplingValues, line: CommandLine, checkpoint: Checkpoint | None) -> Path:
    if values.of("output_dir") is not None:
        return Path(values.of("output_dir"))
    if "run" in line.values:
        samples = Path(line.values["run"]) / "samples"
        return samples / checkpoint.path.name if checkpoint is not None else samples
    return Path("samples")


def _notes(settings: Settings, values: SamplingValues) -> list[str]:
    notes = []
    for name in INERT_SAMPLING_KEYS:
        if settings.get(f"args.{name}") is not None:
            notes.append(f"args.{name} ({settings.source(f'args.{name}')}) has no effect: {SAMPLING_FLAGS[name].help}")
    if values.counts_as_the_reference:
        where = settings.source("args.batch_size")
        notes.append(f"batch_size ({where}) is taken as the reference does: {values.num_samples} clips a prompt")
    return notes
