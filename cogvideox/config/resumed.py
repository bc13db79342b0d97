"""What a run that is resumed has settled already: its seed is taken over, what would not fit it is refused early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cogvideox.checkpoint.choosing import run_of, runs_of
from cogvideox.config.bounds import safe_yaml
from cogvideox.config.report import Problem
from cogvideox.config.settings import MISSING, Settings, leaves
from cogvideox.errors import config_without_credentials

AUTO = "auto"
DEFAULT_SAVE = "runs"
RECORD = "training_config.yaml"
NETWORK = "model.network_config"
# What decides the names, the shapes or the cut of what a checkpoint holds.
SETTLED = (
    "args.seed",
    "args.zero_stage",
    "args.model_parallel_size",
    "args.fp16",
    "args.bf16",
    "deepspeed.optimizer.type",
    "model.not_trainable_prefixes",
    NETWORK,
)
# Below those, what only says how to compute.
FREE = (f"{NETWORK}.params.transformer_args.checkpoint_activations",)
ITERATIONS = "args.train_iters"  # told too, where the learning rate's curve has no length of its own
# Told where they differ: the run goes on, but no longer as it would have.
TOLD = (
    "args.mode",
    "args.load",
    "args.batch_size",
    "args.gradient_accumulation_steps",
    "args.lr",
    "args.weight_decay",
    "args.warmup",
    "args.lr_decay_style",
    "args.lr_decay_iters",
    "args.lr_decay_ratio",
    "args.auto_warmup",
    "args.train_data",
    "data",
    "deepspeed.gradient_clipping",
    "deepspeed.optimizer.params",
)


def run_to_resume(settings: Settings) -> Path | None:
    """The folder that `args.resume` means, `auto` included; None where a new run begins."""
    resume = settings.get("args.resume")
    if not isinstance(resume, str):
        return None
    if resume != AUTO:
        return run_of(Path(resume))
    save, name = (settings.get(f"args.{key}") for key in ("save", "experiment_name"))
    runs = runs_of(Path(save or DEFAULT_SAVE), name) if isinstance(name, str) else []
    return runs[0] if runs else None


def settle_resumed(settings: Settings, notes: list[str]) -> list[Problem]:
    """Take the seed of the run to resume where no flag gives one. Returns what cannot go on in it, notes the rest."""
    folder = run_to_resume(settings)
    before = _recorded(folder / RECORD) if folder else None
    if folder is None or before is None:
        return []
    if not settings.is_from_command_line("args.seed"):
        seed = before.get("args.seed", MISSING)
        if isinstance(seed, int):
            settings.set("args.seed", seed, str(folder / RECORD))
    problems = [_refusal(settings, folder, *each) for each in _differences(settings, before, SETTLED)]
    problems += _adapters_without_base(settings, before, folder)
    stretches = (ITERATIONS,) if settings.get("args.lr_decay_iters") is None else ()
    changed = [f"{key} {was} → {now}" for key, was, now in _differences(settings, before, TOLD)]
    for key, was, now in _differences(settings, before, stretches):
        changed.append(f"{key} {was} → {now} (--lr-decay-iters {was} keeps the learning rate's curve)")
    if changed:
        notes.append(f"resuming {folder} with changed settings: {'; '.join(changed)}")
    return problems


def _adapters_without_base(settings: Settings, before: Settings, folder: Path) -> Iterator[Problem]:
    """Their checkpoint holds nothing else, so that all the rest would be random."""
    base, network = before.get("args.load"), dict(leaves(before.get(NETWORK), NETWORK))
    has_adapters = any(".lora_config." in name for name in network)
    if base and has_adapters and not before.get("args.save_full") and not settings.get("args.load"):
        what = f"is not given, and {folder} trains adapters for the weights in it"
        remedy = f"add --load {base} --mode {before.get('args.mode')}, as when it was started"
        yield Problem(settings.source("args.resume"), "args.load", what, remedy)


def _recorded(path: Path) -> Settings | None:
    """The config that a run wrote down, or None where it has none that can be read."""
    try:
        tree = safe_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return Settings(tree) if isinstance(tree, dict) else None


def _differences(settings: Settings, before: Settings, keys: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """(key, was, is) of each leaf at or below `keys`; a leaf that one side lacks counts as null there."""
    for key in keys:
        was, now = (dict(leaves(_null(tree.get(key)), key)) for tree in (before, settings))
        for name in {**was, **now}:
            if was.get(name) != config_without_credentials(now.get(name)) and name not in FREE:
                yield name, was.get(name), now.get(name)


def _null(node: Any) -> Any:
    return None if isinstance(node, (Mapping, list)) and not node else node


def _refusal(settings: Settings, folder: Path, key: str, was: Any, now: Any) -> Problem:
    what = f"is {now!r}, but {folder} was trained with {was!r}"
    remedy = f"resume it with {key}={was}, or start a new run from its weights with `--load {folder} --mode finetune`"
    return Problem(settings.source(key), key, what, remedy)
