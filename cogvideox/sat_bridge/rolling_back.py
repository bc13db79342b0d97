"""What becomes of a run after too many bad steps in a row: back to its last checkpoint, once; then an end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from cogvideox.checkpoint.choosing import checkpoints_of
from cogvideox.checkpoint.manifest import fault_on_any_rank
from cogvideox.checkpoint.resuming import random_state_of, restore_random_state, resume_engine
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.sat_bridge.bad_numbers import warn
from cogvideox.sat_bridge.bundling import ForwardStep, keep_bad_step
from cogvideox.sat_bridge.distributed import seed_everything, seed_of_draws

REMEDY = "Lower the learning rate, train in bf16 instead of fp16, or leave the clips concerned out with --quarantine"


class BadNumbers(UserError):
    """Too many steps in a row had a loss or gradients that were not finite, and there is no way back.

    Ends with status 1, not 2: nothing that was given is wrong by itself, and who starts runs again when they fail may
    start this one again.
    """

    exit_status = 1


class Recovery:
    """Sets `run` back, once in the life of this process; a run that is resumed may be set back once more."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self._went_back_to: int | None = None

    def after_bad_steps(self, engine: Any, lr_scheduler: Any, forward: ForwardStep) -> None:
        """Keep the latest bad step for `tools/replay.py`, and go back. BadNumbers where that cannot be."""
        run, watch = self.run, self.run.watch
        run.checkpoints.wait()
        failed = run.args.iteration + 1
        adapters_only = bool(run.args.load) and engine.module.trains_adapters_only
        base = run.args.base_weights if adapters_only else None
        bundle = keep_bad_step(run.folder, failed, engine, watch, forward, base)
        checkpoint = newest_whole(run.folder) if self._went_back_to is None else None
        kept = f"; to compute it again: python tools/replay.py {shlex.quote(str(bundle))}" if bundle else ""
        what = f"iteration {failed}: {watch.cause}, {watch.bad_in_a_row} steps in a row"
        if checkpoint is None:
            why = (
                "there is no checkpoint yet to go back to"
                if self._went_back_to is None
                else f"the run went back to iteration {self._went_back_to} before, without the batches that were bad"
            )
            raise BadNumbers(f"{what}; {why}{kept}. {REMEDY}")
        before = watch.quarantine_bad()
        self._go_back(engine, lr_scheduler, checkpoint)
        self._went_back_to = run.args.iteration
        run.reporter.data_line(run.args.iteration, "went back", {"reason": what, "bundle": str(bundle or "")})
        warn(f"{what}: back to iteration {run.args.iteration}, now without {before} batches that were bad{kept}")

    def _go_back(self, engine: Any, lr_scheduler: Any, checkpoint: Path) -> None:
        """All is as when `checkpoint` was saved, but what is counted over the whole run."""
        run, world = self.run, current().world
        recorder = run.recorder
        state = resume_engine(engine, checkpoint)
        lr_scheduler.load_state_dict(state["client_lr_scheduler"])
        so_far = recorder.skipped_batches, recorder.skipped_steps, recorder.overflows
        recorder.restore(state)
        recorder.skipped_batches, recorder.skipped_steps, recorder.overflows = so_far
        at = run.args.iteration = state["iteration"]
        run.checkpoints.go_on_from(at)
        if run.best is not None and run.best["iteration"] > at:
            run.best = state.get("best")
            if logged := run.reporter.evaluation_at(at):  # after the save, which does not know of it
                run.note_if_best(logged["loss"], at)
        run.train_data.start_at(at, recorder.skipped_batches, state.get("data"))
        run.watch.restore(state["numbers"])
        draws = random_state_of(state["random_states"], world.rank, world.size)
        if draws is None:
            seed_everything(seed_of_draws(run.args.seed, current().data.rank, at))
        else:
            restore_random_state(draws)
        run.reporter.go_back_to(at)


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint of a run whose files are what its manifest says; every rank must call this."""
    host = current().host
    for checkpoint in host.on_first(lambda: checkpoints_of(run)):
        fault = fault_on_any_rank(checkpoint, host)
        if fault is None:
            return checkpoint
        warn(f"{checkpoint} {fault}: the one before it is looked at")
    return None
