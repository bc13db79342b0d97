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
    "optimizer": {"type": DEFAULT_OPTIMIZER, "params": {"betas": [0.9, 0.95], "eps": 1e-8}},
}

# DeepSpeed always gets a ready optimizer of torch's, which it calls untested; without these it would refuse it.
FOR_OUR_OPTIMIZERS = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
# Where a model's file says the same as `args`.
TRANSFORMER_ARGS = "model.network_config.params.transformer_args"


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
    _settle_stage(settings, notes)
    _settle_transformer_args(settings, problems, notes)
    _settle_length(settings, notes)
    _settle_cache(settings)
    _allow_our_optimizers(settings, notes)
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


def _settle_stage(settings: Settings, notes: list[str]) -> None:
    """ZeRO's stage as asked, except 0 in fp16, for which `engine.backward` of DeepSpeed 0.19 has no loss scaling."""
    stage, is_fp16 = settings.get("args.zero_stage"), settings.get("args.fp16") is True
    if not isinstance(stage, int) or isinstance(stage, bool):
        return
    if stage > 0 and not is_fp16 and settings.get("args.bf16") is not True:
        notes.append(f"ZeRO {stage} in float32, as asked; `--bf16` trains in mixed precision")
    if stage == 0 and is_fp16:
        source = settings.source("args.fp16")
        notes.append(
            f"ZeRO 1 in place of {stage}: DeepSpeed scales the loss under ZeRO only, and fp16 ({source}) needs it"
        )
        for key in ("args.zero_stage", f"deepspeed.{SHARED['zero_stage']}"):
            settings.set(key, 1, source)


def _settle_length(settings: Settings, notes: list[str]) -> None:
    """`--epochs` or `--train-iters` as a flag takes back the other one of a file."""
    for name, other in (("train_iters", "epochs"), ("epochs", "train_iters")):
        arg, opposite = f"args.{name}", f"args.{other}"
        if settings.is_from_command_line(arg) and settings.get(arg) is not None and settings.get(opposite) is not None:
            if not settings.is_from_command_line(opposite):
                notes.append(f"{opposite} ({settings.source(opposite)}) is taken back by {settings.source(arg)}")
                settings.set(opposite, None, settings.source(arg))


def _settle_cache(settings: Settings) -> None:
    """`data.params.cache` says the same as `--cache`, which wins; true is a folder beside the first of the data."""
    key = "data.params.cache"
    value = settings.get(key, MISSING)
    if value is MISSING:
        return
    if value is True:
        folders = settings.get("args.train_data")
        first = folders[0] if isinstance(folders, list) and folders else "data"
        settings.set(key, f"{str(first).rstrip('/')}.cache", settings.source(key))
    if value is False or settings.is_given("args.cache"):
        settings.remove(key)
        return
    settings.remove("args.cache")
    settings.move(key, "args.cache")


def _settle_transformer_args(settings: Settings, problems: list[Problem], notes: list[str]) -> None:
    """Recomputation: a flag, then the transformer's own arguments, then `args` of a file. Model parallel: `args`."""
    if not isinstance(settings.get(TRANSFORMER_ARGS), Mapping):
        return
    arg, place = "args.checkpoint_activations", f"{TRANSFORMER_ARGS}.checkpoint_activations"
    if settings.is_given(arg) or settings.get(place) is not None:
        _settle(settings, arg, place, problems, notes)
    arg, place = "args.model_parallel_size", f"{TRANSFORMER_ARGS}.model_parallel_size"
    ours, theirs = settings.get(arg), settings.get(place)
    if theirs not in (None, ours):
        if theirs != 1:
            notes.append(
                f"{arg} ({ours}, {settings.source(arg)}) wins over {place} ({theirs}, {settings.source(place)})"
            )
        settings.set(place, ours, settings.source(arg))


def _allow_our_optimizers(settings: Settings, notes: list[str]) -> None:
    for name, wanted in FOR_OUR_OPTIMIZERS.items():
        key = f"deepspeed.{name}"
        if settings.get(key) is (not wanted):
            notes.append(f"{key} ({settings.source(key)}) is set to {str(wanted).lower()}: optimizers are torch's here")
        if settings.get(key) in (None, not wanted):
            settings.set(key, wanted, DEFAULT)


def _move_scaler_keys(settings: Settings, notes: list[str]) -> None:
    moved = [key for key in SCALER_KEYS if settings.get(f"deepspeed.{key}", MISSING) is not MISSING]
    for key in moved:
        settings.move(f"deepspeed.{key}", f"deepspeed.fp16.{key}")
    if moved:
        notes.append(f"{', '.join(moved)}: taken as keys of `deepspeed.fp16:`, where DeepSpeed reads them")
