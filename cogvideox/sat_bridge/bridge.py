"""Every place where SAT's `training_main` is bent, on one page.

`with bent(args):` puts our functions in place of names in `sat.training.deepspeed_training` and restores them after it.
Each row of `_replacements` says what SAT 0.4.12 does there and when ours may go.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cogvideox.errors import UserError
from cogvideox.sat_bridge import importing  # noqa: F401  (makes `import sat` work)
from cogvideox.sat_bridge.building import get_model, load_checkpoint
from cogvideox.sat_bridge.learning_rate import get_learning_rate_scheduler
from cogvideox.sat_bridge.run import Run
from cogvideox.sat_bridge.run_folder import make_run_folder, remove_if_empty
from cogvideox.sat_bridge.timers import Timers

from sat.training import deepspeed_training  # isort: skip


@contextmanager
def bent(args: argparse.Namespace) -> Iterator[Run]:
    """Make the run's folder and let SAT's training loop use our functions inside the block.

    Raises:
        UserError: the run's folder cannot be made, or a GPU's memory is too small.
    """
    folder = make_run_folder(args)
    run = Run(args, folder)
    replacements = _replacements(run)
    before = {name: getattr(deepspeed_training, name) for name in replacements}
    run.sat_train = before["train"]
    for name, ours in replacements.items():
        setattr(deepspeed_training, name, ours)
    try:
        yield run
        run.reporter.say_where()
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory(error, args)) from error
    finally:
        for name, theirs in before.items():
            setattr(deepspeed_training, name, theirs)
        run.close()
        remove_if_empty(folder)


def out_of_memory(error: Exception, args: argparse.Namespace) -> str:
    """What to say where a GPU's memory is too small: how much was missing, what to change, how to go on."""
    reason = (str(error).strip().splitlines() or ["out of memory"])[0].partition(". GPU")[0]
    saved = Path(args.save) / "latest"
    going_on = f"; go on from the last checkpoint with --resume {args.save}" if saved.is_file() else ""
    return (
        f"out of GPU memory at iteration {getattr(args, 'iteration', 0)} ({reason}). What helps: a smaller batch, "
        f"checkpoint_activations, LoRA, a higher --zero-stage, fewer frames; see docs/memory.md{going_on}"
    )


def _replacements(run: Run) -> dict[str, Callable[..., Any]]:
    return {
        # Synchronise the GPU at every start and stop; fail on a CPU. Until SAT times with events.
        "Timers": Timers,
        # Draw with replacement, ignore the seed, cannot resume on one process. Until SAT's loaders take a sampler.
        # Ours also gives the run its name: SAT names it per rank, to the minute, before this and uses it after.
        "make_loaders": run.make_loaders,
        # Builds under deepspeed.zero.Init (fails at stage 3), reseeds to 1234. Until SAT builds plainly.
        "get_model": get_model,
        # Unpickles code, accepts any mismatch in silence. Until SAT loads weights_only and strictly.
        "load_checkpoint": load_checkpoint,
        # Saves no optimizer, the frozen T5 and VAE, one rank's shard at stage 3. Until SAT uses DeepSpeed's saving.
        "save_checkpoint": run.save_checkpoint,
        # Lets DeepSpeed compile its own Adam; imports `sat.ops` optimizers, which need nvcc. Until neither does.
        # Ours resumes too, once there is an engine to load into. Until SAT resumes.
        "setup_model_untrainable_params_and_optimizer": run.setup,
        # Holds 5 % of lr for 100 iterations, divides by zero without warmup. Until SAT ramps.
        "get_learning_rate_scheduler": get_learning_rate_scheduler,
        # Seeds all ranks alike before training, collects garbage in the step. Until SAT seeds by rank.
        "train": run.train,
        # A host sync per metric and micro-batch, losses reduced twice, NaN averaged. Until SAT packs its reductions.
        "train_step": run.train_step,
        # Reports rank 0's loss. Until SAT averages over ranks.
        "evaluate_and_print_results": run.evaluate_and_print_results,
        # One wandb.log per kind of value, with steps out of order; metrics only as text. Until SAT logs once a step.
        "report_iteration_metrics": run.report_iteration_metrics,
        # TensorBoard in ./runs of the current folder. Until SAT writes into the run's folder.
        "get_sample_writer": run.summary_writer,
        # Started by our logger, which survives its failure. Until SAT's does.
        "init_wandb_writer": run.wandb_is_ours,
        # A line per argument, DeepSpeed's whole config included; training_config.yaml says it better.
        "print_args": _nothing,
        # Asks CUDA only; peak memory is in every log line.
        "report_memory": _nothing,
    }


def _nothing(*_: Any) -> None:
    """Stands where SAT prints what the log and training_config.yaml already hold."""
