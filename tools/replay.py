"""Compute a step that went wrong once more, on one device, and hold it against what the run saw.

    python tools/replay.py RUN/bad-step-1234
    python tools/replay.py RUN/bad-step-1234 --rank 3

A run keeps a bundle of the step when too many in a row have a loss or gradients that are not finite
(docs/bad-numbers.md). This builds the run's model from it, loads the weights as they were, takes the batch and the
random draws of one rank, and prints the loss and the norm of each layer's gradients beside the recorded ones.
Exit status 0 if they come out the same: not finite where they were not, else equal within rounding; 1 if they do not; 2
where something needed is missing or damaged.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

import torch  # noqa: E402
import yaml  # noqa: E402

from cogvideox.checkpoint.choosing import MODEL_FILES  # noqa: E402
from cogvideox.checkpoint.gradient_norms import GradientNorms  # noqa: E402
from cogvideox.checkpoint.loading import read_chain, read_starting_weights  # noqa: E402
from cogvideox.checkpoint.replay_bundle import (  # noqa: E402
    CONFIG,
    BadStep,
    Forward,
    RankRecord,
    read_forward,
    read_step,
)
from cogvideox.checkpoint.resuming import restore_random_state  # noqa: E402
from cogvideox.config.bounds import safe_yaml  # noqa: E402
from cogvideox.config.targets import allowed_modules  # noqa: E402
from cogvideox.data.batches import to_device  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402
from cogvideox.parallel import Group, Groups, install  # noqa: E402
from cogvideox.platform import current_device, device_name, has_gpu  # noqa: E402
from cogvideox.transformer.tensor_parallel import merge  # noqa: E402
from diffusion_video import SATVideoDiffusionEngine  # noqa: E402

SAME, OTHERWISE, MISTAKE = 0, 1, 2
# How far finite numbers may lie apart: another device, another order of summation.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}


@dataclass(frozen=True)
class Line:
    """A number as recorded and as computed now."""

    name: str
    recorded: float
    computed: float

    def is_same(self, tolerance: float) -> bool:
        if not math.isfinite(self.recorded):
            return not math.isfinite(self.computed)
        return math.isclose(self.recorded, self.computed, rel_tol=tolerance, abs_tol=1e-12)


def read_config(bundle: Path) -> Mapping[str, Any]:
    """The run's. UserError where it is missing, damaged, or without a model."""
    path = bundle / CONFIG
    try:
        config = safe_yaml(path)
        config["model"]["network_config"]["params"]["transformer_args"].items()
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}): name a whole bundle") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} says nothing of a network: put back the file that the run wrote") from error
    return config


def build_engine(config: Mapping[str, Any], dtype: torch.dtype) -> SATVideoDiffusionEngine:
    """The run's engine, on one model parallel rank; its weights are not yet those of the step."""
    args = config.get("args") or {}
    model, network = dict(config["model"]), dict(config["model"]["network_config"]["params"])
    network["transformer_args"] = {**network["transformer_args"], "model_parallel_size": 1, "skip_init": True}
    model |= {"network_config": {**model["network_config"], "params": network}, "compile_model": False}
    nothing_else = {"do_valid": False, "do_test": False, "eval_interval": None, "only_log_video_latents": True}
    wanted = argparse.Namespace(model_config=model, cache=args.get("cache"), **nothing_else)
    engine = SATVideoDiffusionEngine(wanted, params_dtype=dtype).to(dtype).to(current_device())
    engine.disable_untrainable_params()
    return engine.train()


def load_weights(engine: SATVideoDiffusionEngine, bundle: Path, step: BadStep, base: Path | None) -> None:
    """Those under adapters, if there are any, and then the bundle's. UserError where they do not fit the model."""
    under = base or step.base_weights
    if under is not None:
        for weights in read_chain(under):
            engine.load_weights(weights, allow_missing=True)
    files = len(list(bundle.glob(MODEL_FILES)))
    shards = [read_starting_weights(bundle, rank, files).state_dict for rank in range(files)]
    state = {name: merge(name, [shard[name] for shard in shards]) for name in shards[0]} if files > 1 else shards[0]
    try:
        missing, unexpected = engine.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"the weights in {bundle} do not fit the model of its {CONFIG}: {error}") from error
    if unexpected or (missing and under is None):
        raise UserError(f"the weights in {bundle} are not of the model of its {CONFIG}: {(unexpected + missing)[0]}")


def compute(engine: SATVideoDiffusionEngine, step: BadStep, record: RankRecord, forward: Forward) -> Iterator[Line]:
    """The loss and the norms of the layers' gradients, beside those of `record`."""
    before = install(Groups(data=Group(record.rank, step.ranks)))  # for the timesteps, of which each rank has a share
    try:
        batch = to_device(forward.batch) | {"global_step": step.iteration - 1}
        restore_random_state(forward.random_state)
        with GradientNorms(engine) as norms:
            loss, _ = engine.shared_step(batch)
            (loss / step.accumulation * step.loss_scale).backward()
    finally:
        install(before)
    yield Line("loss", record.loss, float(loss.detach()))
    computed = norms.by_layer()
    for layer in record.gradient_norms | computed:
        yield Line(layer, record.gradient_norms.get(layer, 0.0), computed.get(layer, 0.0))


def check_device(step: BadStep) -> None:
    """UserError where random numbers would be others: those of a CPU and of a GPU differ."""
    remedy = "hide the GPUs with CUDA_VISIBLE_DEVICES=" if step.device == "cpu" else "use a machine with a GPU"
    if has_gpu() == (step.device == "cpu"):
        raise UserError(f"the step was computed on {step.device}, and {device_name()} draws other numbers: {remedy}")


def state_of_weights(engine: SATVideoDiffusionEngine) -> str:
    """How many of the weights are not finite, in words."""
    bad = sum(int((~torch.isfinite(each)).sum()) for each in engine.parameters())
    return f"{bad:,} of {sum(each.numel() for each in engine.parameters()):,} weights are not finite"


def replay(bundle: Path, rank: int | None, base: Path | None) -> tuple[BadStep, RankRecord, list[Line]]:
    """Compute one rank's part of the step (the first that is kept if None); says first how the weights are.

    UserError where something is missing.
    """
    step = read_step(bundle)
    kept = {record.rank: record for record in step.records}
    record = step.records[0] if rank is None else kept.get(rank)
    if record is None:
        raise UserError(f"{bundle} does not have rank {rank}: it has {', '.join(map(str, kept))}")
    if step.dtype not in DTYPES:
        raise UserError(f"{bundle}: its dtype {step.dtype!r} is none of {', '.join(DTYPES)}")
    check_device(step)
    forward = read_forward(bundle, record)
    config = read_config(bundle)
    if not any(bundle.glob(MODEL_FILES)):
        raise UserError(f"{bundle} has no weights ({MODEL_FILES}): name a whole bundle")
    try:
        engine = build_engine(config, DTYPES[step.dtype])
    except KeyError as error:
        raise UserError(f"{bundle / CONFIG} says nothing of {error}: put back the file that the run wrote") from error
    load_weights(engine, bundle, step, base)
    print(state_of_weights(engine))
    return step, record, list(compute(engine, step, record, forward))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was recorded beside what comes out; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a folder bad-step-… of a run")
    parser.add_argument("--rank", type=int, help="data parallel rank, of those that the bundle has; else the first")
    parser.add_argument("--base-weights", type=Path, help="of a LoRA run, if they are not where they were")
    parser.add_argument("--allow-target", action="append", default=[], help="as for train_video.py")
    options = parser.parse_args(arguments)
    for module in options.allow_target:
        allowed_modules.allow(module)
    try:
        step, record, lines = replay(options.bundle, options.rank, options.base_weights)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return _print(options.bundle, step, record, lines)


def _print(bundle: Path, step: BadStep, record: RankRecord, lines: Sequence[Line]) -> int:
    clips, timesteps = ", ".join(map(str, record.clips)) or "without names", ", ".join(map(str, record.timesteps))
    print(f"{bundle}: iteration {step.iteration}, {step.cause}; computed on {device_name()}")
    print(f"rank {record.rank} of {step.ranks}: clips {clips}; timesteps {timesteps}")
    if math.isfinite(record.loss) != math.isfinite(record.seen_loss):
        print(f"In training its loss was {record.seen_loss:g}. The run itself got {record.loss:g} when it tried again.")
    width = max(len(line.name) for line in lines)
    print(f"{'':{width}}  {'recorded':>12}  {'computed':>12}")
    tolerance = TOLERANCE[DTYPES[step.dtype]]
    # The layers of a model parallel rank are parts of those here: only what is not finite can be held against them.
    told = [line for line in lines if step.model_ranks == 1 or line.name == "loss" or not math.isfinite(line.recorded)]
    differing = [line for line in told if not line.is_same(tolerance)]
    for line in lines:
        mark = "  DIFFERS" if line in differing else ""
        print(f"{line.name:{width}}  {line.recorded:12.6g}  {line.computed:12.6g}{mark}")
    print(f"did NOT come out the same: {len(differing)} of {len(told)} differ" if differing else "came out the same")
    return OTHERWISE if differing else SAME


if __name__ == "__main__":
    sys.exit(main())
