"""wandb beside a training that never waits for it: all its calls are made in a thread, and given up after a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from cogvideox.telemetry.background import Background
from cogvideox.telemetry.wandb_run import FINISH_TIMEOUT_S, INIT_TIMEOUT_S, WandbRun, WandbSettings

logger = logging.getLogger(__name__)

# Beyond wandb's own limits, after which it says itself what is wrong.
MORE_S = 10.0


class Guard(Protocol):
    """Calls a function and tells of its failure."""

    def call(self, function: Callable[[], Any]) -> Any: ...


class WandbSink:
    """A wandb run whose failures `guard` tells; nothing here raises, and nothing takes longer than the limits."""

    def __init__(
        self,
        settings: WandbSettings,
        guard: Guard,
        init_timeout_s: float = INIT_TIMEOUT_S + MORE_S,
        finish_timeout_s: float = FINISH_TIMEOUT_S + MORE_S,
    ) -> None:
        self._settings, self._guard, self._finish_timeout_s = settings, guard, finish_timeout_s
        self._run: WandbRun | None = None
        self._has_dropped = False
        self._background = Background("wandb")
        if not self._background.wait(self._open, init_timeout_s):
            text = "wandb has not started within %g s; training goes on, and what it logs is kept for when it has"
            logger.warning(text, init_timeout_s)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """As `WandbRun.add`."""
        self._call(lambda run: run.add(step, values))

    def add_videos(self, step: int, videos: Mapping[str, Path]) -> None:
        """As `WandbRun.add_videos`."""
        self._call(lambda run: run.add_videos(step, videos))

    def close(self) -> None:
        """Send what is left and end the run, in time or not at all."""
        if not self._background.wait(lambda: self._with_run(WandbRun.close), self._finish_timeout_s):
            text = "wandb has not taken everything within %g s; `wandb sync` sends what is in %s"
            logger.warning(text, self._finish_timeout_s, self._settings.dir / "wandb")

    def _open(self) -> None:
        self._run = self._guard.call(lambda: WandbRun(self._settings))

    def _call(self, use: Callable[[WandbRun], None]) -> None:
        if not self._background.call(lambda: self._with_run(use)) and not self._has_dropped:
            self._has_dropped = True
            logger.warning("wandb does not answer; what is logged from here on is in metrics.jsonl only")

    def _with_run(self, use: Callable[[WandbRun], None]) -> None:
        if (run := self._run) is not None:
            self._guard.call(lambda: use(run))
