"""Where numbers and videos of a run go: metrics.jsonl always, TensorBoard and wandb when asked.

No sink stops a training: what fails is said once, and the other sinks and the training go on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from cogvideox.errors import shown
from cogvideox.telemetry.metrics_file import MetricsFile, check_plain
from cogvideox.telemetry.tensorboard_events import TensorBoardEvents
from cogvideox.telemetry.wandb_run import WandbSettings
from cogvideox.telemetry.wandb_sink import WandbSink

__all__ = ["Logger", "NullLogger", "RunLogger", "WandbSettings", "evaluation_tags", "iteration_tags"]

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
MAX_PPL_LOSS = 20.0
T = TypeVar("T")


class Logger(Protocol):
    """What the training calls; `RunLogger` on rank 0, `NullLogger` on the others."""

    def iteration(self, step: int, values: Mapping[str, float]) -> None: ...

    def evaluation(self, step: int, values: Mapping[str, float], split: str) -> None: ...

    def bad_clip(self, step: int, name: str, kind: str, reason: str) -> None: ...

    def data_line(self, step: int, kind: str, values: Mapping[str, float | int | str]) -> None: ...

    def videos(self, step: int, videos: Mapping[str, Path], fps: int) -> None: ...

    def go_back_to(self, step: int) -> None: ...

    def close(self) -> None: ...


def iteration_tags(values: Mapping[str, float]) -> dict[str, float]:
    """Metrics by the reference's tags: `loss` is Train/train_loss, time per iteration is Train/elapsed_time in ms."""
    tags = {f"Train/{key}": value for key, value in values.items() if key not in ("loss", "seconds_per_iteration")}
    if "loss" in values:
        tags["Train/train_loss"] = values["loss"]
    if "seconds_per_iteration" in values:
        tags["Train/elapsed_time"] = values["seconds_per_iteration"] * 1000.0
    return tags


def evaluation_tags(values: Mapping[str, float], split: str) -> dict[str, float]:
    """Metrics by the reference's tags: Train/valid_<key> for split `val`, and exp(loss) (capped) as Train/valid_ppl."""
    prefix = "Train/valid" if split == "val" else f"Train/{split}"
    tags = {f"{prefix}_{key}": value for key, value in values.items()}
    if "loss" in values:
        loss = values["loss"]
        tags.setdefault(f"{prefix}_ppl", math.exp(MAX_PPL_LOSS if loss > MAX_PPL_LOSS else loss))
    return tags


class _Guard:
    """Calls a sink's functions; their first failure is logged as a warning, later ones for debugging only."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._has_warned = False

    def call(self, function: Callable[[], T]) -> T | None:
        try:
            return function()
        # A logging service may fail in any way, and none of them is worth the training.
        except Exception as error:
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            logger.log(level, "%s failed (%s: %s); training goes on", self._sink, type(error).__name__, error)
            return None


class RunLogger:
    """Writes into a run's `folder`: metrics.jsonl, `tensorboard/`, and a wandb run if settings are given."""

    def __init__(self, folder: Path, *, tensorboard: bool = True, wandb: WandbSettings | None = None) -> None:
        self._file_guard, self._board_guard, self._wandb_guard = map(_Guard, (METRICS_NAME, "TensorBoard", "wandb"))
        self._metrics = self._file_guard.call(lambda: MetricsFile(folder / METRICS_NAME))
        self._board = TensorBoardEvents(folder / "tensorboard") if tensorboard else None
        self._wandb = WandbSink(wandb, self._wandb_guard) if wandb is not None else None

    def iteration(self, step: int, values: Mapping[str, float]) -> None:
        """Log a training iteration's metrics, named as in metrics.jsonl (`loss, lr, seconds_per_iteration, …`)."""
        check_plain(values)
        self._write({"iteration": step, **values})
        self._show(step, iteration_tags(values))

    def evaluation(self, step: int, values: Mapping[str, float], split: str) -> None:
        """Log an evaluation's metrics (`loss, …`); `split` is `val` or `test`."""
        check_plain(values)
        self._write({"iteration": step, "split": split, **values})
        self._show(step, evaluation_tags(values, split))

    def bad_clip(self, step: int, name: str, kind: str, reason: str) -> None:
        """Log, in the file only, a clip that could not be used."""
        self._write({"iteration": step, "split": "data", "file": shown(name), "kind": kind, "reason": shown(reason)})

    def data_line(self, step: int, kind: str, values: Mapping[str, float | int | str]) -> None:
        """Log, in the file only, what `kind` of thing happened with the data of `step`."""
        plain = {name: shown(value) if isinstance(value, str) else value for name, value in values.items()}
        self._write({"iteration": step, "split": "data", "kind": kind, **plain})

    def videos(self, step: int, videos: Mapping[str, Path], fps: int) -> None:
        """Show mp4 files beside the metrics of `step`, on wandb only. `fps` is how they were written."""
        assert fps > 0, f"fps is {fps}"
        if self._wandb is not None:
            self._wandb.add_videos(step, videos)

    def go_back_to(self, step: int) -> None:
        """What was logged after `step` is void: the run goes on from there."""
        if (file := self._metrics) is not None:
            self._file_guard.call(lambda: file.void_after(step))
        if (board := self._board) is not None:
            self._board_guard.call(board.close)  # its next file has the later steps forgotten

    def close(self) -> None:
        """Flush and close every sink; waits for wandb's upload, for a limited time."""
        if self._metrics is not None:
            self._file_guard.call(self._metrics.close)
        if self._board is not None:
            self._board_guard.call(self._board.close)
        if self._wandb is not None:
            self._wandb.close()
        self._metrics = self._board = self._wandb = None

    def _write(self, line: Mapping[str, float | str]) -> None:
        if (file := self._metrics) is not None:
            self._file_guard.call(lambda: file.write(line))

    def _show(self, step: int, tags: Mapping[str, float]) -> None:
        if (board := self._board) is not None:
            self._board_guard.call(lambda: board.write(step, tags))
        if self._wandb is not None:
            self._wandb.add(step, tags)


class NullLogger:
    """Takes everything, writes nothing: for the ranks other than 0."""

    def iteration(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def evaluation(self, step: int, values: Mapping[str, float], split: str) -> None:
        """Nothing."""

    def bad_clip(self, step: int, name: str, kind: str, reason: str) -> None:
        """Nothing."""

    def data_line(self, step: int, kind: str, values: Mapping[str, float | int | str]) -> None:
        """Nothing."""

    def videos(self, step: int, videos: Mapping[str, Path], fps: int) -> None:
        """Nothing."""

    def go_back_to(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
