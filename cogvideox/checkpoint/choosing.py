"""Which checkpoint of a folder is meant, and what lies in it. Nothing here opens a weight file."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from cogvideox.checkpoint.pointers import latest_text, read_latest
from cogvideox.errors import UserError

MODEL_FILE = "mp_rank_00_model_states.pt"
MODEL_FILES = "mp_rank_*_model_states.pt"  # one for each model parallel rank
LATEST = "latest"
MANIFEST = "manifest.json"  # of a whole checkpoint, see manifest.py
RUN_TIME = re.compile(r"(-\d\d){4}(-\d+)?")  # what the name of a run ends with: -MM-DD-HH-MM, and -k
MOST_DIGITS = 18
EMA_FILE = "mp_rank_00_ema_states.pt"


@dataclass(frozen=True)
class Checkpoint:
    """Weights to read: `path` is a checkpoint's folder in SAT's layout where `is_sat`, else anything that can be read.

    `iteration` is None where the folder's name is no number.
    """

    path: Path
    is_sat: bool
    iteration: int | None = None

    @property
    def file(self) -> Path:
        """The model file of a SAT checkpoint (the first of several ranks'), or `path`."""
        return self.path / MODEL_FILE if self.is_sat else self.path

    @property
    def ema_file(self) -> Path:
        """Where a save writes the moving average of the weights, if it has one."""
        return (self.path if self.path.is_dir() else self.path.parent) / EMA_FILE


def choose_checkpoint(path: Path, iteration: int | None = None) -> Checkpoint:
    """The checkpoint that `path` means: a folder of checkpoints (the latest, or `iteration`), one checkpoint's folder
    or model file, or weights in another layout.

    Raises UserError: nothing there, no such iteration, or `iteration` for something that has none.
    """
    if not path.exists():
        raise UserError(f"there is no {path}" + ("" if path.is_absolute() else f" (seen from {Path.cwd()})"))
    if path.name == MODEL_FILE:
        path = path.parent
    if iteration is None and (path / MODEL_FILE).is_file():
        return _sat(path)
    if iteration is not None:
        if not (path / str(iteration) / MODEL_FILE).is_file():
            raise UserError(f"{path} has no checkpoint of iteration {iteration}: {_listed(path)}")
        return _sat(path / str(iteration))
    latest = path / LATEST
    if not latest.is_file():
        return Checkpoint(path, is_sat=False)
    name = read_latest(latest)
    if not (path / name / MODEL_FILE).is_file():
        raise UserError(f"{latest} names {name!r}, but {path / name / MODEL_FILE} is not there: {_listed(path)}")
    return _sat(path / name)


def is_number(name: str) -> bool:
    """Whether a checkpoint can be named so: an iteration, written as a save writes it."""
    return len(name) <= MOST_DIGITS and name.isascii() and name.isdigit() and str(int(name)) == name


def runs_of(save: Path, experiment_name: str) -> list[Path]:
    """The runs of this name in `save` that have saved, that with the newest checkpoint first."""
    runs = sorted(save.glob(f"{glob.escape(experiment_name)}-*")) if save.is_dir() else []
    own = [run for run in runs if RUN_TIME.fullmatch(run.name[len(experiment_name) :])]  # not those of a longer name
    saved = {run: _saved_at(run) for run in own}
    return sorted((run for run, at in saved.items() if at), key=lambda run: saved[run], reverse=True)


def _saved_at(run: Path) -> float:
    """When it last saved, as far as the disk tells; 0 for never, and where somebody else's folder cannot be read."""
    try:
        latest = run / LATEST
        marks = [latest] if latest.is_file() else [path / MANIFEST for path in checkpoints_of(run)]
        return max((mark.stat().st_mtime for mark in marks if mark.is_file()), default=0.0)
    except OSError:
        return 0.0


def run_of(path: Path) -> Path:
    """The run that `path`, itself or one of its checkpoints, means."""
    return path.parent if is_number(path.name) and not (path / LATEST).is_file() else path


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoint that `latest` names, then those before it, the newest first; without `latest` all that are there.

    Those after it are what an interrupted save left, or of a past that the run went back from.
    """
    numbers = {int(path.name) for path in run.iterdir() if is_number(path.name) and path.is_dir()}
    latest = run / LATEST
    name = latest_text(latest) if latest.is_file() else ""
    if is_number(name):
        numbers = {number for number in numbers if number <= int(name)}
    return [run / str(number) for number in sorted(numbers, reverse=True)]


def ema_file_of(checkpoint: Checkpoint) -> Path:
    """The file of moving averages beside a checkpoint's model file. Raises UserError if there is none."""
    if not checkpoint.ema_file.is_file():
        raise UserError(
            f"{checkpoint.path} has no moving average of the weights ({EMA_FILE}): a run keeps one where its optimizer "
            "is EmaAdamW; sample without --ema"
        )
    return checkpoint.ema_file


def _sat(folder: Path) -> Checkpoint:
    return Checkpoint(folder, is_sat=True, iteration=int(folder.name) if is_number(folder.name) else None)


def _listed(path: Path) -> str:
    """The iterations that a folder does have, in words."""
    found = sorted(int(file.parent.name) for file in path.glob(f"*/{MODEL_FILE}") if is_number(file.parent.name))
    return f"it has {', '.join(map(str, found))}" if found else "it has none"
