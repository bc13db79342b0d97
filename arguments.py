"""Flags and YAML files → checked arguments. Nothing is started here: `initialize_distributed` is a second call.

`get_args` reads, merges and checks; every problem that it finds is told in one UserError. It imports neither SAT nor
DeepSpeed, and torch only once the settings are right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogvideox.config.command_line import CommandLine, parse_command_line
from cogvideox.config.explain import explain
from cogvideox.config.fitting import fit
from cogvideox.config.flags import FLAGS, INERT_FLAGS, YAML_KEYS
from cogvideox.config.launchers import ranks_from
from cogvideox.config.load import load_settings, resolve_interpolations
from cogvideox.config.preflight import check_mode, check_paths, check_world
from cogvideox.config.reconcile import check_batch, reconcile
from cogvideox.config.report import Problem, raise_if_any
from cogvideox.config.resumed import settle_resumed
from cogvideox.config.settings import DEFAULT, MISSING, Settings
from cogvideox.config.sizes import check_sizes
from cogvideox.config.split import check_split
from cogvideox.config.targets import allowed_modules
from cogvideox.config.trust import check_trust
from cogvideox.config.validate import Validator
from cogvideox.errors import shown

DEFAULT_TRAIN_ITERS = 10_000
# Of one process or one machine, or without effect: not part of the merged config that a run writes down.
UNWRITTEN_KEYS = {"device", "distributed_backend", "resume", *INERT_FLAGS}


def get_args(args_list: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of `args_list` (default: this process's command line) and of the YAML files that it names.

    Beside the flags, the namespace has `model_config`, `data_config`, `deepspeed_config` (plain dicts), `merged_config`
    (all sections as run), `config_notes` (what to tell the user), `rank`, `world_size`, `local_rank`, `device`.
    `--help` and `--explain` print and exit with 0.
    Raises UserError that names every problem found.
    """
    problems: list[Problem] = []
    line = parse_command_line(sys.argv[1:] if args_list is None else args_list, problems)
    settings = _merged(line, problems)
    notes = reconcile(settings, problems)
    problems += settle_resumed(settings, notes)
    if line.values.get("explain"):
        sys.stdout.write(shown(explain(settings, line.values["explain"])) + "\n")
        raise SystemExit(0)
    ranks = ranks_from(os.environ, line.values.get("local_rank"), problems)
    validator = Validator(settings)
    validator.run()
    found = [
        *check_trust(settings),
        *validator.problems,
        *check_mode(settings),
        *check_paths(settings),
        *check_sizes(settings),
        *_check_lengths(settings),
        *check_split(settings),
    ]
    found += [*check_world(settings, ranks["world_size"]), *check_batch(settings, ranks["world_size"])]
    told = {problem.key for problem in problems if problem.key}
    problems += [problem for problem in found if problem.key not in told]
    args = argparse.Namespace(**ranks)
    if not problems or _asks_for_gpu(settings):
        _add_device(args, settings, problems)
    raise_if_any(problems)
    notes += [f"{key} has no effect ({reason}); ignored" for key, reason in validator.notes.items()]
    notes += _given_in_vain(settings, line)
    _fill(args, settings, line, validator.data_params)
    args.config_notes = notes
    return args


def initialize_distributed(args: argparse.Namespace) -> None:
    """Start the process group, SAT's groups and DeepSpeed's communication for `args`."""
    from cogvideox.sat_bridge.distributed import initialize

    initialize(args)


def _merged(line: CommandLine, problems: list[Problem]) -> Settings:
    """Files, then a DeepSpeed JSON file, then dotted overrides and flags; defaults where nothing is said."""
    for module in line.values.get("allow_target", []):
        allowed_modules.allow(module)
    files = line.values.get("base", [])
    if not files:
        problems.append(Problem("--base", "", "no config file is named", "try `--base configs/quickstart.yaml`"))
    unread: list[Problem] = []
    settings = load_settings(files, line.overrides, unread)
    if unread:
        raise_if_any(problems + unread)
    _merge_deepspeed_json(settings, line, problems)
    for key, value in line.values.items():
        if key in YAML_KEYS:
            settings.set(f"args.{key}", value, line.sources[key])
    for key, flag in YAML_KEYS.items():
        if settings.get(f"args.{key}", MISSING) is MISSING:
            settings.set(f"args.{key}", flag.default, DEFAULT)
    resolve_interpolations(settings, problems)
    return settings


def _merge_deepspeed_json(settings: Settings, line: CommandLine, problems: list[Problem]) -> None:
    path = line.values.get("deepspeed_config")
    if not path:
        return
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(Problem(line.sources["deepspeed_config"], "", f"cannot be read ({error})", "give a JSON file"))
        return
    overrides = [key for key in settings.history if settings.is_from_command_line(key)]
    kept = {key: (settings.get(key), settings.source(key)) for key in overrides}
    settings.merge({"deepspeed": content}, {}, str(path))
    for key, (value, source) in kept.items():
        settings.set(key, value, source)


def _check_lengths(settings: Settings) -> list[Problem]:
    """How long to train is said once, and each training folder has one weight if any has."""
    problems = []
    iters, epochs = (settings.get(f"args.{name}") for name in ("train_iters", "epochs"))
    if iters is not None and epochs is not None:
        what = f"{iters}, and args.epochs is {epochs} ({settings.source('args.epochs')})"
        remedy = "give one of them (`args.train_iters=null` takes a file's value back)"
        problems.append(Problem(settings.source("args.train_iters"), "args.train_iters", what, remedy))
    folders, weights = settings.get("args.train_data"), settings.get("args.train_data_weights")
    if isinstance(folders, list) and isinstance(weights, list) and len(folders) != len(weights):
        what = f"{len(weights)} weights for {len(folders)} folders of training data"
        key = "args.train_data_weights"
        problems.append(Problem(settings.source(key), key, what, "give one weight for each folder"))
    return problems


def _given_in_vain(settings: Settings, line: CommandLine) -> list[str]:
    """A note for each flag that was given although nothing reads it."""
    sources = {key: line.sources.get(key) or settings.source(f"args.{key}") for key in INERT_FLAGS}
    given = [key for key in INERT_FLAGS if key in line.values or settings.is_given(f"args.{key}")]
    notes = [f"args.{key} ({sources[key]}) has no effect ({INERT_FLAGS[key]}); ignored" for key in given]
    if settings.get("args.keep_every") and not settings.get("args.save_total_limit"):
        notes.append("args.keep_every has no effect without --save-total-limit: all checkpoints are kept")
    return notes


def _asks_for_gpu(settings: Settings) -> bool:
    """Whether something is on that a CPU has to refuse: worth importing torch for beside other problems."""
    return settings.get("args.fp16") is True or _asks_for_profiler(settings)


def _asks_for_profiler(settings: Settings) -> bool:
    profiling = settings.get("args.profiling")
    return isinstance(profiling, int) and profiling >= 0


def _add_device(args: argparse.Namespace, settings: Settings, problems: list[Problem]) -> None:
    """`args.device` (a GPU's index or "cpu") and the backend, as SAT wants them."""
    from cogvideox.platform import device_count, distributed_backend

    gpus = device_count()
    wanted = settings.get("args.device")
    args.device = args.local_rank if gpus else "cpu"
    args.distributed_backend = settings.get("args.distributed_backend") or distributed_backend()
    if wanted not in (-1, args.device):
        what = f"GPU {wanted} is asked for, but this process's place is {args.device}"
        remedy = "choose GPUs with CUDA_VISIBLE_DEVICES"
        problems.append(Problem(settings.source("args.device"), "args.device", what, remedy))
    if gpus and args.local_rank >= gpus:
        what = f"local rank {args.local_rank} needs a GPU of its own, but there are {gpus}"
        problems.append(Problem("environment: LOCAL_RANK", "", what, f"start {gpus} processes on this machine"))
    if not gpus and settings.get("args.fp16") is True:
        where = settings.source("args.fp16")
        remedy = "use bf16 (`--bf16`) or float32 (`--fp16 false`), or a machine with a GPU"
        problems.append(Problem(where, "args.fp16", "float16 needs a GPU, and there is none here", remedy))
    if not gpus and _asks_for_profiler(settings):
        where = settings.source("args.profiling")
        remedy = "leave it out; `--profile-phases` times the phases of a step on any device"
        problems.append(Problem(where, "args.profiling", "CUDA's profiler needs a GPU, and there is none here", remedy))
    if not gpus and args.distributed_backend == "nccl":
        where = settings.source("args.distributed_backend")
        problems.append(
            Problem(where, "args.distributed_backend", "nccl needs GPUs, and there is none here", "use gloo")
        )


def _fill(args: argparse.Namespace, settings: Settings, line: CommandLine, data_params: dict[str, Any] | None) -> None:
    """Everything else that SAT, DeepSpeed and the entry point read from the namespace."""
    values = {key: fit(settings.get(f"args.{key}"), flag.annotation) for key, flag in YAML_KEYS.items()}
    if values["train_iters"] is None and values["epochs"] is None:
        values["train_iters"] = DEFAULT_TRAIN_ITERS
        settings.set("args.train_iters", DEFAULT_TRAIN_ITERS, DEFAULT)
    if values["iterable_dataset_eval"] == "":
        values["iterable_dataset_eval"] = values["iterable_dataset"]
    values["summary_dir"] = values["summary_dir"] or values["save"] or ""
    values["resume_dataloader"] = False  # SAT would look for its own sampler in our loaders
    for key in values.keys() - {"device", "distributed_backend"}:
        setattr(args, key, values[key])
    for key, flag in FLAGS.items():
        if flag.only_flag and key != "local_rank":
            setattr(args, key, line.values.get(key, flag.default))
    args.deepspeed = True
    args.deepspeed_activation_checkpointing = False  # the transformer recomputes by itself, on any device
    args.deepspeed_config = settings.get("deepspeed")
    args.model_config = settings.get("model") or {}
    args.data_config = {"params": {}, **(settings.get("data") or {})}
    if data_params is not None:
        args.data_config["params"] = data_params
    args.merged_config = {
        **{name: section for name, section in settings.tree.items() if name != "args"},
        "args": {key: value for key, value in settings.tree["args"].items() if key not in UNWRITTEN_KEYS},
    }
