"""A Weights & Biases run that loses nothing: one log call per step, steps only ever rising, one run for all resumes."""

from __future__ import annotations

import re
import secrets
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError, config_without_credentials, without_credentials

ID_FILE = "wandb_run_id"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID_LETTERS = string.ascii_lowercase + string.digits

INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class WandbSettings:
    """Where the run appears: `dir` is the local folder of wandb's own files; `config` is shown beside the run."""

    project: str
    name: str
    dir: Path
    config: Mapping[str, Any] | None = None


class WandbRun:
    """Collects what belongs to one step and sends it when the step moves on: wandb drops a step that it has passed.

    A run folder is one run at wandb: its id is kept in `dir`/wandb_run_id, and what is resumed there goes on in it.
    """

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
            id=run_id_in(settings.dir),
            resume="allow",
            config=None if settings.config is None else config_without_credentials(dict(settings.config)),
            settings=wandb.Settings(**_limits(wandb.Settings.model_fields)),
        )
        self._first_step = self._run.starting_step

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
        # What a resumed run trains again is there already, and equal.
        if pending and self._step >= self._first_step:
            self._run.log(pending, step=self._step)


def run_id_in(folder: Path) -> str:
    """The id of the run at wandb that belongs to a run's folder, chosen at the first call. Raises OSError."""
    path = folder / ID_FILE
    if path.is_file() and _ID.fullmatch(found := path.read_text(encoding="utf-8", errors="replace").strip()):
        return found
    chosen = "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    path.write_text(chosen + "\n", encoding="utf-8")
    return chosen


def _limits(known: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of wandb's, of those that its version has: it gives up in time, and keeps no command line with
    credentials in it.
    """
    wanted: dict[str, Any] = {
        "init_timeout": INIT_TIMEOUT_S,
        "login_timeout": INIT_TIMEOUT_S,
        "finish_timeout": FINISH_TIMEOUT_S,
    }
    if any(without_credentials(word) != word for word in sys.argv):
        wanted["x_disable_meta"] = True
    return {name: value for name, value in wanted.items() if name in known}
