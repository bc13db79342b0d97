"""What can be wrong with a sampling run's settings: keys, prompts, weights, sizes and steps."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cogvideox.checkpoint.choosing import Checkpoint, choose_checkpoint, ema_file_of
from cogvideox.config.command_line import CommandLine
from cogvideox.config.fitting import Misfit, fit
from cogvideox.config.flags import YAML_KEYS
from cogvideox.config.nearest import did_you_mean
from cogvideox.config.report import Problem
from cogvideox.config.sampling_flags import SAMPLING_KEYS
from cogvideox.config.sampling_values import NETWORK, SAMPLER, Clip, SamplingValues
from cogvideox.config.settings import Settings
from cogvideox.config.sizes import check_sizes
from cogvideox.data.prompts import Prompt, fault_of_prompt, parse_prompt, read_prompts
from cogvideox.errors import UserError

NUM_TIMESTEPS = 1000
PROMPT_KEYS = ("prompts", "interactive", "input_type", "input_file")


def check_arguments(settings: Settings) -> list[Problem]:
    """Every key of `args:` is one of ours with its type, or one of training's, which is passed over."""
    section = settings.get("args") or {}
    if not isinstance(section, Mapping):
        return [Problem(settings.source("args"), "args", f"is {section!r}", "give a mapping of keys")]
    problems = []
    for name, value in section.items():
        key, flag = f"args.{name}", SAMPLING_KEYS.get(name)
        if flag is None:
            if name not in YAML_KEYS:
                remedy = did_you_mean(str(name), {*SAMPLING_KEYS, *YAML_KEYS})
                problems.append(Problem(settings.source(key), key, "unknown key", remedy))
            continue
        try:
            fitted = flag.default if value is None else fit(value, flag.annotation)
        except Misfit as wanted:
            problems.append(Problem(settings.source(key), key, f"is {value!r}", f"give {wanted}"))
            continue
        if isinstance(fitted, (int, float)) and (remedy := flag.remedy_of(fitted)):
            problems.append(Problem(settings.source(key), key, f"is {value}", remedy))
    size = section.get("sampling_image_size")
    if isinstance(size, list) and len(size) != 2:
        key = "args.sampling_image_size"
        problems.append(Problem(settings.source(key), key, f"is {size}", "give two numbers: height and width"))
    return problems


def check_output_dir(settings: Settings, folder: Path) -> Iterator[Problem]:
    """Clips can be written to `folder`, given or not."""
    key = "args.output_dir"
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        what = f"cannot write to {folder}: {place} " + (
            "may not be written to" if place.is_dir() else "is not a folder"
        )
        where = settings.source(key) if settings.get(key) is not None else ""
        yield Problem(where, key, what, "name one that you can write to with --output-dir")


def chosen_prompts(settings: Settings, line: CommandLine, problems: list[Problem]) -> tuple[list[Prompt], bool]:
    """The prompts, and whether to ask for them instead. What the command line says takes the place of a file's."""
    from_line = any(name in line.values for name in ("prompt", *PROMPT_KEYS))
    said = {
        name: settings.get(f"args.{name}") if name in line.values or not from_line else None for name in PROMPT_KEYS
    }
    values = SamplingValues(settings)
    prompts = [parse_prompt(text, "--prompt") for text in line.values.get("prompt", [])]
    is_interactive = said["interactive"] is True or said["input_type"] == "cli"
    # The reference's files name a file even where `input_type: cli` says that it does not count.
    file_name = "prompts" if said["prompts"] or said["input_type"] == "cli" else "input_file"
    file = said[file_name]
    if is_interactive and (prompts or file):
        what = "prompts are given, and are to be asked for"
        problems.append(Problem("--interactive", "", what, "give --prompt and --prompts, or --interactive"))
    if not (is_interactive or prompts or file):
        remedy = 'give `--prompt "what to draw"`, `--prompts FILE` or `--interactive`'
        problems.append(Problem("--prompt", "", "no prompt is given", remedy))
    if file:
        try:
            prompts += read_prompts(Path(str(file)))
        except UserError as error:
            source = settings.source(f"args.{file_name}")
            problems.append(Problem(source, "", str(error), "give a text file with a prompt a line"))
    problems += _faults(prompts, values.takes_image)
    if values.of("image2video") and not values.takes_image:
        key, what = "args.image2video", "is true, but the model takes no image (model.noised_image_input is not true)"
        problems.append(Problem(settings.source(key), key, what, "use an image-to-video model, or remove it"))
    return prompts, is_interactive


def _faults(prompts: list[Prompt], takes_image: bool) -> Iterator[Problem]:
    for prompt in prompts:
        fault = fault_of_prompt(prompt, takes_image)
        if fault is not None:
            what, _, remedy = fault.partition(": ")
            yield Problem(f"{prompt.where} {prompt.text[:40]!r}", "", what, remedy or "correct the path")


def check_weights(settings: Settings, run: str | None, run_source: str, problems: list[Problem]) -> Checkpoint | None:
    """The checkpoint to read; None where there is none to choose, with the reason among the problems."""
    values = SamplingValues(settings)
    load, source = values.of("load"), settings.source("args.load")
    if run is not None and load is not None:
        what, remedy = f"is {load}, and --run has weights of its own", "give one of them (--base-weights for adapters)"
        problems.append(Problem(source, "args.load", what, remedy))
    if run is None and load is None:
        what, remedy = "no weights are named", "give `--load CHECKPOINT`, or a run with `--run RUN`"
        problems.append(Problem("--load", "", what, remedy))
    checkpoint = None
    given = Path(run or load) if run or load else None
    if given is not None and given.exists():
        try:
            checkpoint = choose_checkpoint(given, values.of("iteration"))
            if run is not None and not checkpoint.is_sat:
                raise UserError(f"{run} holds no checkpoint: the run has not saved one yet (args.save_interval)")
            if values.of("ema"):
                ema_file_of(checkpoint)
        except UserError as error:
            what, _, remedy = str(error).partition(": ")
            problems.append(
                Problem(run_source or source, "" if run else "args.load", what, remedy or "give another one")
            )
    base, base_key = values.base_weights, "args.base_weights"
    if base is not None and not Path(base).exists():
        problems.append(Problem(settings.source(base_key), base_key, f"there is no {base}", "correct the path"))
    if values.of("lora_scale") is not None and settings.get(f"{NETWORK}.modules.lora_config") is None:
        key, what = "args.lora_scale", f"is {values.of('lora_scale')}, but the model has no adapters"
        remedy = "leave it out, or list the config that the adapters were trained with"
        problems.append(Problem(settings.source(key), key, what, remedy))
    return checkpoint


def check_sampler(settings: Settings) -> Iterator[Problem]:
    """There is a sampler, a number of steps that it can take, and a guider where a scale is given."""
    values = SamplingValues(settings)
    if settings.get("model") is not None and settings.get(SAMPLER) is None:
        yield Problem(settings.source("model"), SAMPLER, "is missing", "add it, as in configs/parts/cogvideox.yaml")
        return
    key = values.winner("args.num_steps", f"{SAMPLER}.params.num_steps") or "args.num_steps"
    timesteps = settings.get("model.denoiser_config.params.num_idx")
    most = timesteps if isinstance(timesteps, int) else NUM_TIMESTEPS
    if not 2 <= values.num_steps <= most and settings.get("model") is not None:
        what = f"is {values.num_steps}" if values.num_steps else "no number of steps is given"
        yield Problem(settings.source(key) or "--num-steps", key, what, f"give 2 to {most}")
    if settings.is_given("args.guidance_scale") and settings.get(f"{SAMPLER}.params.guider_config") is None:
        key, what = "args.guidance_scale", "is given, but model.sampler_config has no guider_config"
        yield Problem(settings.source(key), key, what, "add one, or leave the scale out")


def check_clip(settings: Settings, clip: Clip | None) -> list[Problem]:
    """Whether VAE and positions take clips of this size, by the same rules as training's `data:`."""
    if clip is None:
        if settings.get("model") is None:
            return []
        what = "the model's file does not say for what size it was made"
        return [Problem("--frames, --height, --width", "", what, "give all three")]
    size, length = "data.params.video_size", "data.params.max_num_frames"
    sources = {size: settings.source(clip.size_key), length: settings.source(clip.frames_key)}
    history = {key: list(each) for key, each in settings.history.items()}
    sized = Settings({"model": settings.get("model"), "data": {}}, history)
    sized.set(size, [clip.height, clip.width], sources[size])
    sized.set(length, clip.frames, sources[length])
    names = {size: "args.height, args.width", length: "args.frames"}
    found = [problem for problem in check_sizes(sized) if problem.key != "model.not_trainable_prefixes"]
    return [dataclasses.replace(problem, key=names.get(problem.key, problem.key)) for problem in found]
