"""One run of `training_main`: our side of its loop, with what has to be remembered between its calls."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cogvideox.checkpoint.resuming import resume_engine
from cogvideox.checkpoint.saving import save_checkpoint
from cogvideox.data.checking import LeftOut, describe
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import reset_peak_memory
from cogvideox.sat_bridge import building, loaders, training
from cogvideox.sat_bridge.numbered import TellsReplaced
from cogvideox.sat_bridge.optimizer import EmaAdamW
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.sat_bridge.reporting import Reporter
from cogvideox.sat_bridge.timers import Timers
from cogvideox.sat_bridge.verification import LiveGate, gate_of

logger = logging.getLogger(__name__)


class Run:
    """Holds the loaders, the recorder and the reporter that SAT's functions do not hand to each other."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        args.eval_batch, args.eval_split = 0, "val"  # which batch of which evaluation is running
        self.recorder = Recorder()
        self._bad_clips: dict[str, LeftOut] = {}
        self._bad_in_evaluations: dict[str, dict[str, LeftOut]] = {"val": {}, "test": {}}
        self.reporter = Reporter(args, folder)
        self.train_data: loaders.TrainLoader | None = None
        self.valid_data: loaders.EvaluationLoader | None = None
        self.test_data: loaders.EvaluationLoader | None = None
        self.sat_train: Callable[..., Any]
        self._timers: Timers | None = None
        self._saved_at = -1
        self._gate: LiveGate | None = None
        self._random_state: dict[str, Any] | None = None
        self._data_state: dict[str, Any] | None = None

    def make_loaders(self, args: argparse.Namespace, create: Any, collate_fn: Any = None) -> tuple[Any, Any, Any]:
        """As `loaders.make_loaders`; remembers what it made, and tells SAT the run's name."""
        args.experiment_name = self.folder.name
        self.train_data, self.valid_data, self.test_data = loaders.make_loaders(args, create, collate_fn)
        return self.train_data, self.valid_data, self.test_data

    def setup(self, args: argparse.Namespace, model: Any) -> tuple[Any, Any]:
        """An engine and its optimizer, from the checkpoint to resume where there is one."""
        self._gate = gate_of(args)
        engine, optimizer = building.setup_model_untrainable_params_and_optimizer(args, model)
        if args.resume:
            state = resume_engine(engine, Path(args.resume))
            if state["seed"] != args.seed:
                raise UserError(
                    f"{args.resume} was trained with seed {state['seed']}: resume with --seed {state['seed']}"
                )
            args.iteration = self._saved_at = state["iteration"]
            self.recorder.skipped_batches = state["skipped_batches"]
            self._random_state = state["random_states"][current().world.rank]
            self._data_state = state.get("data")
            self.reporter.say(f"resuming {args.resume} at iteration {args.iteration}")
        return engine, optimizer

    def train(self, engine: Any, optimizer: Any, lr_scheduler: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """SAT's `train`, with each rank's own draws; `--exit-interval` ends it like its last iteration."""
        reset_peak_memory()
        self.reporter.describe_model(engine.module)
        assert self.train_data is not None
        self.reporter.opening(self.train_data.samples)
        skipped = self.recorder.skipped_batches
        if not self.train_data.start_at(self.args.iteration, skipped, self._data_state):
            self.reporter.say("the data is not what it was when the run was saved: its order begins anew")
        with training.prepared_for_training(self.args, self._random_state):
            try:
                return self.sat_train(engine, optimizer, lr_scheduler, *args, **kwargs)
            except SystemExit:
                if not self.args.exit_interval or self.args.iteration % self.args.exit_interval:
                    raise
                return self.args.iteration, 0

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
        """As `training.train_step`, recorded."""
        self._timers = timers
        return training.train_step(
            data_iterator,
            engine,
            optimizer,
            lr_scheduler,
            args,
            timers,
            forward_step=hooks["forward_step"],
            recorder=self.recorder,
        )

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
        clips = self.train_data.clips
        if clips is not None and len(bad) > self.args.max_bad_fraction * clips:
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
        """Mean validation or test loss over ranks and batches, logged; the time it takes is not training time."""
        assert hooks is not None
        loader = self.valid_data if split == "val" else self.test_data
        assert loader is not None
        args.eval_split = split
        with self._not_training_time():
            batches = len(loader) if args.strict_eval else eval_iters
            values = training.evaluate(loader, engine, batches, args, timers, hooks["forward_step_eval"])
            at = step if step is not None else args.iteration
            self._tell_of_new(at, loader, self._bad_in_evaluations[split], f" ({split} data)")
            self.reporter.evaluation(at, values, split, prefix)
            self.reporter.write_report()
        return values["loss"]

    def save_checkpoint(
        self, iteration: int, engine: Any, _optimizer: Any, lr_scheduler: Any, args: argparse.Namespace
    ) -> None:
        """Save once per iteration; the last save of `training_main` is often one that was just made.

        With `--verify-save`, raises UserError where what was saved does not load as what was trained.
        """
        if iteration == self._saved_at:
            return
        adapters_only = bool(args.load) and engine.module.trains_adapters_only
        state = {
            "client_lr_scheduler": lr_scheduler.state_dict(),
            "seed": args.seed,
            "skipped_batches": self.recorder.skipped_batches,
            "data_parallel_size": current().data.size,
            "data": self.train_data.state(iteration, self.recorder.skipped_batches) if self.train_data else None,
            "adapters_only": adapters_only,
            "base_weights": args.base_weights if args.load else None,
        }
        with self._not_training_time():
            began = time.perf_counter()
            final = save_checkpoint(
                engine,
                Path(args.save),
                iteration,
                state,
                adapters_only=adapters_only,
                averages=isinstance(engine.basic_optimizer, EmaAdamW),
                gate=self._gate,
            )
            self.reporter.write_report()
            self.reporter.say(f"saved {final} in {time.perf_counter() - began:.1f} s")
        self._saved_at = iteration

    @contextmanager
    def _not_training_time(self) -> Any:
        """Keep evaluations and saves out of "time per iteration" and out of the wait for data."""
        timers = self._timers
        if timers is None or not timers("interval time").running:
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

    def print_nothing(self, *_: Any) -> None:
        """Stands where SAT prints what the log and training_config.yaml already hold."""

    def close(self) -> None:
        """Flush the logs and write the report, if the run got as far as having something in it."""
        self.reporter.close()
