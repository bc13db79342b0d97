"""One run of `training_main`: our side of its loop, with what has to be remembered between its calls."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cogvideox.checkpoint.resuming import random_state_of, resume_engine
from cogvideox.data.checking import LeftOut, describe
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import reset_peak_memory
from cogvideox.progress import tick
from cogvideox.sat_bridge import building, loaders, stopping, training
from cogvideox.sat_bridge.bad_numbers import NumberWatch
from cogvideox.sat_bridge.checkpoints import Checkpoints
from cogvideox.sat_bridge.numbered import TellsReplaced
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.sat_bridge.reporting import Reporter
from cogvideox.sat_bridge.rolling_back import Recovery
from cogvideox.sat_bridge.timers import Timers

logger = logging.getLogger(__name__)


class Run:
    """Holds the loaders, the recorder and the reporter that SAT's functions do not hand to each other."""

    stopping: str | None = None  # why the run ends before its last iteration: from then on nothing is evaluated

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        args.eval_batch, args.eval_split = 0, "val"  # which batch of which evaluation is running
        self.recorder = Recorder()
        self._bad_clips: dict[str, LeftOut] = {}
        self._bad_in_evaluations: dict[str, dict[str, LeftOut]] = {"val": {}, "test": {}}
        self.reporter = Reporter(args, folder)
        self.watch = NumberWatch(args.max_bad_steps, self.recorder, self.reporter)
        self._recovery = Recovery(self)
        self.train_data: loaders.TrainLoader | None = None
        self.valid_data: loaders.EvaluationLoader | None = None
        self.test_data: loaders.EvaluationLoader | None = None
        self.sat_train: Callable[..., Any]
        self._timers: Timers | None = None
        self.checkpoints: Checkpoints | None = None
        self._has_trained = False  # a step, since this process began
        self._is_over = False  # SAT's loop has ended: what is saved now is the run's last state
        self.best: dict[str, Any] | None = None  # the least validation loss so far and its iteration
        self._resumed: dict[str, Any] | None = None  # what the checkpoint that the run goes on from says

    def make_loaders(self, args: argparse.Namespace, create: Any, collate_fn: Any = None) -> tuple[Any, Any, Any]:
        """As `loaders.make_loaders`; remembers what it made, and tells SAT the run's name."""
        args.experiment_name = self.folder.name
        self.train_data, self.valid_data, self.test_data = loaders.make_loaders(args, create, collate_fn)
        return self.train_data, self.valid_data, self.test_data

    def setup(self, args: argparse.Namespace, model: Any) -> tuple[Any, Any]:
        """An engine and its optimizer, from the checkpoint to resume where there is one."""
        engine, optimizer = building.setup_model_untrainable_params_and_optimizer(args, model)
        self.checkpoints = Checkpoints(args, self.folder)
        if args.resume:
            self._take_up(resume_engine(engine, Path(args.resume)), self.checkpoints)
        self.checkpoints.tell_of_room(engine)
        return engine, optimizer

    def _take_up(self, state: dict[str, Any], checkpoints: Checkpoints) -> None:
        """Go on where `state` was saved. UserError: with another seed, or without the weights that adapters are for."""
        args = self.args
        if state.get("adapters_only") and not args.load:
            raise UserError(f"{args.resume} holds adapters alone: resume with --load {state['base_weights']}")
        if state["seed"] != args.seed:
            raise UserError(f"{args.resume} was trained with seed {state['seed']}: resume with --seed {state['seed']}")
        args.iteration = state["iteration"]
        checkpoints.go_on_from(args.iteration)
        self.recorder.restore(state)
        self._resumed, self.best = state, state.get("best")
        self._bad_clips = {clip[0]: LeftOut(Path(clip[0]), *clip[1:]) for clip in state.get("bad_clips", [])}
        self.reporter.go_back_to(args.iteration)
        ranks = len(state["random_states"])
        cut = "" if ranks == current().world.size else f", which {ranks} ranks saved: its parts are cut anew"
        self.reporter.say(f"resuming {args.resume} at iteration {args.iteration}{cut}")

    def train(self, engine: Any, optimizer: Any, lr_scheduler: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """SAT's `train`, with each rank's own draws; `--exit-interval` ends it like its last iteration."""
        reset_peak_memory()
        self.reporter.describe_model(engine.module)
        assert self.train_data is not None
        self.reporter.opening(self.train_data.samples)
        resumed = self._resumed or {}
        if not self.train_data.start_at(self.args.iteration, self.recorder.skipped_batches, resumed.get("data")):
            self.reporter.say("the data is not what it was when the run was saved: its order begins anew")
        self.watch.loader = self.train_data
        if resumed:
            lr_scheduler.load_state_dict(resumed["client_lr_scheduler"])
            self.watch.restore(resumed["numbers"])
        world = current().world
        draws = random_state_of(resumed["random_states"], world.rank, world.size) if resumed else None
        with training.prepared_for_training(self.args, draws):
            engine.module.model.register_forward_hook(lambda *_: tick("a forward of the network"))
            self._evaluate_what_was_due(engine, *args, **kwargs)
            try:
                return self.sat_train(engine, optimizer, lr_scheduler, *args, **kwargs)
            except stopping.Stopped:
                return self.args.iteration, 0
            except SystemExit:
                if not self.args.exit_interval or self.args.iteration % self.args.exit_interval:
                    raise
                if self.args.iteration < self.args.train_iters:
                    self.stopping = f"--exit-interval {self.args.exit_interval}"
                return self.args.iteration, 0
            finally:
                self._is_over = True

    def _evaluate_what_was_due(
        self, engine: Any, _train: Any, valid: Any, timers: Timers, args: argparse.Namespace, **kwargs: Any
    ) -> None:
        """SAT saves before it evaluates: a run that ended in between has an evaluation to make up for."""
        at, every = args.iteration, args.eval_interval
        if not self._resumed or not every or at % every or not args.do_valid:
            return
        if logged := self.reporter.evaluation_at(at):  # after the save, which does not know of it
            self.note_if_best(logged["loss"], at)
            return
        self.evaluate_and_print_results(
            f"iteration {at}", valid, engine, args.eval_iters, args, timers, False, "val", hooks=kwargs["hooks"]
        )

    def goes_on(self) -> bool:
        """Whether no rank is to stop; every rank asks, before each step and each batch of an evaluation."""
        self.stopping = self.stopping or stopping.current().agree(has_begun=self._has_trained)
        return self.stopping is None

    def train_step(
        self,
        data_iterator: Any,
        engine: Any,
        optimizer: Any,
        lr_scheduler: Any,
        args: argparse.Namespace,
        timers: Timers,
        hooks: dict[str, Any],
    ) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
        """As `training.train_step`, recorded. Raises Stopped, on all ranks, where the run is to end before it."""
        tick(f"iteration {args.iteration}")
        if not self.goes_on():
            raise stopping.Stopped
        self._timers, self._has_trained = timers, True
        return training.train_step(
            data_iterator,
            engine,
            optimizer,
            lr_scheduler,
            args,
            timers,
            forward_step=hooks["forward_step"],
            watch=self.watch,
            recover=partial(self._recover, engine, lr_scheduler, timers, hooks["forward_step"]),
        )

    def _recover(self, engine: Any, lr_scheduler: Any, timers: Timers, forward_step: Callable[..., Any]) -> None:
        """After too many bad steps in a row: back to the last checkpoint, or an end."""

        def forward(batch: dict[str, Any]) -> torch.Tensor:
            return forward_step(iter([batch]), engine, self.args, timers)[0]

        with self._not_training_time():
            self._recovery.after_bad_steps(engine, lr_scheduler, forward)

    def report_iteration_metrics(
        self, _writer: Any, optimizer: Any, _lr: float, _loss: float, elapsed_ms: float, step: int, total: int, *_: Any
    ) -> None:
        """One log line, one line of metrics.jsonl, one set of TensorBoard and wandb values."""
        data_wait = self._timers("data loader").elapsed() if self._timers is not None else 0.0
        loss_scale = float(optimizer.loss_scale) if self.args.fp16 else None
        self._tell_of_bad_clips(step)
        self.reporter.iteration(
            step, total, self.recorder, seconds=elapsed_ms / 1000, data_wait=data_wait, loss_scale=loss_scale
        )

    def _tell_of_bad_clips(self, step: int) -> None:
        """What clips did not decode in training on any rank. Every rank must call this. UserError above the limit."""
        assert self.train_data is not None
        bad = self._bad_clips
        self._tell_of_new(step, self.train_data, bad)
        if (clips := self.train_data.clips) is not None and len(bad) > self.args.max_bad_fraction * clips:
            raise UserError(
                f"{len(bad)} of {clips} clips do not decode, more than --max-bad-fraction "
                f"{self.args.max_bad_fraction:g} allows: {describe(list(bad.values()))}\n"
                "Replace these files, or name them in a --quarantine list (tools/check_data.py writes one)"
            )

    def _tell_of_new(self, step: int, loader: TellsReplaced, bad: dict[str, LeftOut], where: str = "") -> None:
        own, loader.new_replaced = loader.new_replaced, []
        for name, kind, reason in (each for of_rank in current().host.gather_objects(own) for each in of_rank):
            if name not in bad:
                bad[name] = LeftOut(Path(name), kind, reason)
                self.reporter.bad_clip(step, name, kind, reason + where, len(bad))

    def evaluate_and_print_results(
        self,
        prefix: str,
        _iterator: Any,
        engine: Any,
        eval_iters: int,
        args: argparse.Namespace,
        timers: Timers,
        _has_last: bool,
        split: str,
        _verbose: bool = False,
        step: int | None = None,
        summary_writer: Any = None,  # noqa: ARG002  (SAT passes it by name)
        hooks: dict[str, Any] | None = None,
    ) -> float:
        """Mean validation or test loss over ranks and batches, logged; the time it takes is not training time.

        Not a number, and nothing is logged, where the run stops meanwhile.
        """
        assert hooks is not None
        loader = self.valid_data if split == "val" else self.test_data
        assert loader is not None
        args.eval_split = split
        with self._not_training_time():
            batches = len(loader) if args.strict_eval else eval_iters
            values = training.evaluate(loader, engine, batches, args, timers, hooks["forward_step_eval"], self.goes_on)
            if values is None:
                return math.nan
            at = step if step is not None else args.iteration
            self._tell_of_new(at, loader, self._bad_in_evaluations[split], f" ({split} data)")
            if split == "val":
                self.note_if_best(values["loss"], at)
            self.reporter.evaluation(at, values, split, prefix)
            self.reporter.write_report()
        return values["loss"]

    def note_if_best(self, loss: float | None, iteration: int) -> None:
        """Keep a validation loss if it is finite and the least so far."""
        if loss is not None and math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            self.best = {"loss": loss, "iteration": iteration}

    def save_checkpoint(
        self, iteration: int, engine: Any, _optimizer: Any, lr_scheduler: Any, args: argparse.Namespace
    ) -> None:
        """Save once per iteration; the last save of `training_main` is often one that was just made.

        UserError: with `--verify-save` what was saved does not load as what was trained, or the last state of the run
        cannot be saved.
        """
        if not self._has_trained:  # what was loaded is where it was loaded from
            return
        assert self.train_data is not None and self.checkpoints is not None
        state = self.recorder.state() | {
            "client_lr_scheduler": lr_scheduler.state_dict(),
            "seed": args.seed,
            "data_parallel_size": current().data.size,
            "data": self.train_data.state(iteration, self.recorder.skipped_batches),
            "best": self.best,
            "numbers": self.watch.state(),
            "bad_clips": [(name, each.kind, each.reason) for name, each in self._bad_clips.items()],
        }
        with self._not_training_time():
            self.checkpoints.save(iteration, engine, state, is_last=self._is_over)
            self.reporter.write_report()

    @contextmanager
    def _not_training_time(self) -> Any:
        """Keep evaluations and saves out of "time per iteration" and out of the wait for data."""
        if (timers := self._timers) is None or not timers("interval time").running:
            yield
            return
        wait = timers("data loader").elapsed()
        timers("interval time").stop()
        try:
            yield
        finally:
            timers("interval time").start()
            timers("data loader").elapsed()
            timers("data loader").add(wait)

    def summary_writer(self, *_: Any, **__: Any) -> Any:
        """SAT's summary writer: ours is the reporter's, made with the run."""
        return self.reporter

    def wandb_is_ours(self, _args: argparse.Namespace) -> None:
        """The reporter starts wandb itself."""

    def close(self) -> None:
        """Let a save that goes on get to its end, flush the logs and write the report, if there is anything in it."""
        if self.checkpoints is not None:
            self.checkpoints.finish()
        self.reporter.close()
