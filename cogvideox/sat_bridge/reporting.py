"""From what a run records to its log, metrics.jsonl, TensorBoard, wandb and report."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogvideox.parallel import current
from cogvideox.platform import device_name
from cogvideox.sat_bridge.recorder import Recorder
from cogvideox.telemetry import report
from cogvideox.telemetry.metrics_file import read_metrics
from cogvideox.telemetry.phases import phases
from cogvideox.telemetry.progress import evaluation_line, training_line
from cogvideox.telemetry.sinks import METRICS_NAME, Logger, NullLogger, RunLogger, WandbSettings
from cogvideox.telemetry.throughput import ForwardFlops, Throughput, peak_flops, training_flops, transformer_flops

logger = logging.getLogger(__name__)


class Reporter:
    """Writes on rank 0; the other ranks call the same functions and write nothing."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self._logger: Logger = self._open() if current().world.rank == 0 else NullLogger()
        self._model: Any = None
        self._throughput = Throughput()
        self._has_content = False

    def _open(self) -> RunLogger:
        settings = None
        if self.args.wandb:
            settings = WandbSettings(
                project=self.args.wandb_project_name,
                name=self.folder.name,
                dir=self.folder,
                config={"files": self.args.log_config, "merged": self.args.merged_config},
            )
        return RunLogger(self.folder, wandb=settings)

    def describe_model(self, model: Any) -> None:
        """Learn what the model is, for its FLOPs, and whether it trains adapters only."""
        groups = current()
        peak = peak_flops(device_name(), model.dtype)
        self._model = model
        self._throughput = Throughput(peak, data_ranks=groups.data.size, model_ranks=groups.model.size)

    def opening(self, samples: int | None) -> None:
        """What is about to run, in two lines; `samples` is the clips of an epoch, if it is known."""
        args, groups = self.args, current()
        precision = "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32"
        where = f"{groups.world.size} × {device_name()}"
        self.say(f"run {self.folder} | {where} | {precision} | ZeRO {args.zero_stage} | seed {args.seed}")
        factors = (args.batch_size, args.gradient_accumulation_steps, groups.data.size)
        step = math.prod(factors)
        batch, accumulation, ranks = factors
        clips = "a stream of clips" if samples is None else f"{samples} clips"
        often = "" if samples is None else f", each clip {args.train_iters * step / samples:.1f} times"
        self.say(
            f"{clips} | {step} a step: batch {batch} × accumulation {accumulation} × {ranks} data ranks | "
            f"{args.train_iters} iterations{often}"
        )
        if args.iteration >= args.train_iters:
            self.say(f"nothing is left to train: iteration {args.iteration} of {args.train_iters} (--train-iters)")

    def say(self, text: str) -> None:
        """A line in rank 0's log."""
        if current().world.rank == 0:
            logger.info("%s", text)

    def iteration(
        self, step: int, total: int, recorder: Recorder, *, seconds: float, data_wait: float, loss_scale: float | None
    ) -> None:
        """Log the interval that ends with iteration `step`: `seconds` is training time per iteration, `data_wait` the
        whole interval's wait.
        """
        iterations = max(1, recorder.micro_batches // self.args.gradient_accumulation_steps)
        flops = self._forward_flops()
        self._throughput.add(
            wall_s=seconds * self.args.log_interval,
            samples=recorder.samples,
            tokens=recorder.samples * (self._model.text_tokens + self._model.video_tokens),
            data_wait_s=data_wait,
            model_flops=recorder.samples * training_flops(flops, lora=self._model.trains_adapters_only),
            iterations=iterations,
        )
        values = recorder.drain() | self._throughput.drain()
        if loss_scale is not None:
            values["loss_scale"] = loss_scale
        seconds_of_phases = {f"seconds_{name}": value / iterations for name, value in phases.totals().items()}
        self._logger.iteration(step, values | seconds_of_phases)
        self.say(training_line(step, total, values))
        self._has_content = True

    def _forward_flops(self) -> ForwardFlops:
        text, video = self._model.text_tokens, self._model.video_tokens
        return transformer_flops(text_tokens=text, video_tokens=video, **self._model.network.flop_shape())

    def evaluation(self, step: int, values: dict[str, float], split: str, where: str) -> None:
        """Log an evaluation; `where` is SAT's name for the moment."""
        self._logger.evaluation(step, values, split)
        self.say(f"{evaluation_line(step, values, split)} ({where})")
        self._has_content = True

    def go_back_to(self, step: int) -> None:
        """What was logged after `step` is void: the run goes on from there."""
        self._logger.go_back_to(step)

    def evaluation_at(self, step: int) -> dict[str, Any] | None:
        """What has been logged of the validation of `step`; every rank must ask."""
        path = self.folder / METRICS_NAME

        def found() -> dict[str, Any] | None:
            lines = read_metrics(path) if path.is_file() else []
            return next((line for line in lines if line.get("split") == "val" and line.get("iteration") == step), None)

        return current().host.on_first(found)

    def bad_clip(self, step: int, name: str, kind: str, reason: str, so_far: int) -> None:
        """A clip that another one stands in for from now on."""
        self._logger.bad_clip(step, name, kind, reason)
        if current().world.rank == 0:
            logger.warning("%s %s: another clip takes its place (%d so far)", name, reason, so_far)

    def data_line(self, step: int, kind: str, values: Mapping[str, float | int | str]) -> None:
        """A line of metrics.jsonl about the data that went wrong in `step`."""
        self._logger.data_line(step, kind, values)
        self._has_content = True

    def videos(self, step: int, files: dict[str, list[Path]], fps: int) -> None:
        """Show sample videos where videos are shown."""
        named = {f"{key}_video_{place}": path for key, paths in files.items() for place, path in enumerate(paths)}
        self._logger.videos(step, named, fps)

    def close(self) -> None:
        """Close the sinks and write the report of a run that has logged anything."""
        self._logger.close()
        self.write_report()

    def say_where(self) -> None:
        """Where a run that went well is."""
        if self._has_content:
            self.say(f"the run is in {self.folder}")

    def write_report(self) -> None:
        """The report as of now, of a run that has logged anything."""
        if not self._has_content or current().world.rank != 0:
            return
        try:
            report.write_report(self.folder)
        except OSError as error:
            logger.warning("no report.html: %s", error)
