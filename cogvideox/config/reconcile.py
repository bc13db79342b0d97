"""Make `args` and the `deepspeed:` section say the same, whoever said it.

Where both say something, the command line wins, then the section, as in the reference; the other side is written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogvideox.config.report import Problem
from cogvideox.config.sections import SCALER_KEYS
from cogvideox.config.settings import DEFAULT, MISSING, Settings

# args key → its place below `deepspeed`.
SHARED = {
    "batch_size": "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "lr": "optimizer.params.lr",
    "weight_decay": "optimizer.params.weight_decay",
    "zero_stage": "zero_optimization.stage",
}
PRECISIONS = ("fp16", "bf16")
DEFAULT_OPTIMIZER = "AdamW"
# What a run without a `deepspeed:` section gets, beside the values of `args`.
DEFAULT_SECTION: dict[str, Any] = {
    "gradient_clipping": 0.1,
    "zero_allow_untested_optimizer": True,
    "optimizer": {"type": DEFAULT_OPTIMIZER, "params": {"betas": [0.9, 0.95], "eps": 1e-8}},
}


def reconcile(settings: Settings, problems: list[Problem]) -> list[str]:
    """Settle every shared value in both places; returns what the user should be told."""
    notes: list[str] = []
    if not settings.get("deepspeed"):
        for key, value in DEFAULT_SECTION.items():
            settings.set(f"deepspeed.{key}", value, DEFAULT)
    if not isinstance(settings.get("deepspeed"), Mapping):
        return notes
    _move_scaler_keys(settings, notes)
    for name, place in SHARED.items():
        _settle(settings, f"args.{name}", f"deepspeed.{place}", problems, notes)
    _settle_precision(settings, problems, notes)
    _settle_checkpointing(settings)
    _settle_length(settings, notes)
    if settings.get("deepspeed.optimizer.type") is None:
        settings.set("deepspeed.optimizer.type", DEFAULT_OPTIMIZER, DEFAULT)
    return notes


def check_batch(settings: Settings, world_size: int) -> list[Problem]:
    """DeepSpeed's `train_batch_size`, where it is given, is micro batch × accumulation × data-parallel ranks."""
    key = "deepspeed.train_batch_size"
    total = settings.get(key)
    parts = [settings.get(f"args.{name}", 1) for name in ("batch_size", "gradient_accumulation_steps")]
    ranks = settings.get("args.model_parallel_size", 1)
    if total is None or not all(isinstance(each, int) and each > 0 for each in (total, ranks, *parts)):
        return []
    data_parallel = max(1, world_size // ranks)
    product = parts[0] * parts[1] * data_parallel
    if total == product:
        return []
    what = f"is {total}, but batch {parts[0]} × accumulation {parts[1]} × {data_parallel} ranks is {product}"
    return [Problem(settings.source(key), key, what, "remove it: the other three decide")]


def _settle(settings: Settings, arg: str, place: str, problems: list[Problem], notes: list[str]) -> None:
    ours, theirs = settings.get(arg, MISSING), settings.get(place, MISSING)
    if theirs is MISSING or theirs is None:
        settings.set(place, ours, settings.source(arg))
    elif not settings.is_from_command_line(arg):
        if settings.is_given(arg) and ours != theirs:
            notes.append(
                f"{place} ({theirs}, {settings.source(place)}) wins over {arg} ({ours}, {settings.source(arg)})"
            )
        settings.set(arg, theirs, settings.source(place))
    elif settings.is_from_command_line(place) and ours != theirs:
        what = f"is {ours!r}, but {place} is {theirs!r} ({settings.source(place)})"
        problems.append(Problem(settings.source(arg), arg, what, "give one of them only"))
    else:
        settings.set(place, ours, settings.source(arg))


def _settle_precision(settings: Settings, problems: list[Problem], notes: list[str]) -> None:
    if isinstance(settings.get("deepspeed.bfloat16"), Mapping):
        settings.move("deepspeed.bfloat16", "deepspeed.bf16")
    for name, other in (PRECISIONS, PRECISIONS[::-1]):
        arg, opposite = f"args.{name}", f"args.{other}"
        chosen = settings.is_from_command_line(arg) and settings.get(arg) is True
        for key in (opposite, f"deepspeed.{other}.enabled"):
            if chosen and settings.get(key) is True and not settings.is_from_command_line(key):
                notes.append(f"{key} ({settings.source(key)}) is turned off by {settings.source(arg)}")
                settings.set(key, False, settings.source(arg))
    for name in PRECISIONS:
        _settle(settings, f"args.{name}", f"deepspeed.{name}.enabled", problems, notes)
    if settings.get("args.fp16") is True and settings.get("args.bf16") is True:
        what = f"fp16 is on, and so is bf16 ({settings.source('args.bf16')})"
        remedy = "turn one off: CogVideoX-2B is trained in fp16, all others in bf16"
        problems.append(Problem(settings.source("args.fp16"), "args.fp16", what, remedy))
    is_half = settings.get("args.fp16") is True or settings.get("args.bf16") is True
    stage = settings.get("args.zero_stage")
    if not is_half and isinstance(stage, int) and stage > 0:
        notes.append(f"ZeRO {stage} in float32, as asked: --bf16 halves memory and time on most GPUs")


def _settle_length(settings: Settings, notes: list[str]) -> None:
    """`--epochs` or `--train-iters` as a flag takes back the other one of a file."""
    for name, other in (("train_iters", "epochs"), ("epochs", "train_iters")):
        arg, opposite = f"args.{name}", f"args.{other}"
        if settings.is_from_command_line(arg) and settings.get(arg) is not None and settings.get(opposite) is not None:
            if not settings.is_from_command_line(opposite):
                notes.append(f"{opposite} ({settings.source(opposite)}) is taken back by {settings.source(arg)}")
                settings.set(opposite, None, settings.source(arg))


def _settle_checkpointing(settings: Settings) -> None:
    """`--checkpoint-activations` and `--model-parallel-size` as flags reach the transformer's own arguments."""
    home = "model.network_config.params.transformer_args"
    for name in ("checkpoint_activations", "model_parallel_size"):
        arg = f"args.{name}"
        if isinstance(settings.get(home), Mapping) and settings.is_from_command_line(arg):
            settings.set(f"{home}.{name}", settings.get(arg), settings.source(arg))


def _move_scaler_keys(settings: Settings, notes: list[str]) -> None:
    moved = [key for key in SCALER_KEYS if settings.get(f"deepspeed.{key}", MISSING) is not MISSING]
    for key in moved:
        settings.move(f"deepspeed.{key}", f"deepspeed.fp16.{key}")
    if moved:
        notes.append(f"{', '.join(moved)}: taken as keys of `deepspeed.fp16:`, where DeepSpeed reads them")
