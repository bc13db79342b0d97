"""A Weights & Biases run that loses nothing: one log call per step, steps only ever rising."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError


@dataclass(frozen=True)
class WandbSettings:
    """Where the run appears: `dir` is the local folder of wandb's own files; `config` is shown beside the run."""

    project: str
    name: str
    dir: Path
    config: Mapping[str, Any] | None = None


class WandbRun:
    """Collects what belongs to one step and sends it when the step moves on: wandb drops a step that it has passed."""

    def __init__(self, settings: WandbSettings) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"wandb does not import ({error}): pip install 'wandb>=0.20', or leave --wandb out"
            ) from error
        self._wandb = wandb
        self._step = 0
        self._pending: dict[str, Any] = {}
        settings.dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=settings.project,
            name=settings.name,
            dir=str(settings.dir),
            config=dict(settings.config) if settings.config is not None else None,
        )

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values to `step`; a step that is already past joins the present one, so that it is not dropped."""
        if step > self._step:
            self._flush()
            self._step = step
        self._pending.update(values)

    def add_videos(self, step: int, videos: Mapping[str, Path]) -> None:
        """Add mp4 files to `step`; the frame rate is that of the file."""
        self.add(step, {key: self._wandb.Video(str(path), format="mp4") for key, path in videos.items()})

    def close(self) -> None:
        """Send the last step and end the run; waits for the upload."""
        self._flush()
        self._run.finish()

    def _flush(self) -> None:
        pending, self._pending = self._pending, {}
        if pending:
            self._run.log(pending, step=self._step)
