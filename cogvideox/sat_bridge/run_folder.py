"""The folder of a run: named once, on rank 0, made exclusively, and told to the other ranks.

SAT lets every rank name it by its own clock to the minute: ranks disagree at a minute's turn, and two runs started in
one minute overwrite each other.
"""

from __future__ import annotations

import argparse
import os
from datetime import datetime
from pathlib import Path

from cogvideox.errors import UserError
from cogvideox.parallel import current

DEFAULT_SAVE = "runs"
TIME_FORMAT = "%m-%d-%H-%M"


class RunClock:
    """Stands where SAT looks for `datetime`: the run's name always gets the suffix agreed on."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def now(self) -> RunClock:
        """This clock, whose `strftime` is what SAT calls next."""
        return self

    def strftime(self, time_format: str) -> str:
        """The agreed suffix for the run's name, the real time for everything else."""
        return self._suffix if time_format == TIME_FORMAT else datetime.now().strftime(time_format)


def make_run_folder(args: argparse.Namespace) -> tuple[Path, str]:
    """Make `<save>/<experiment_name>-MM-DD-HH-MM[-k]` on rank 0 and return it with the suffix, on every rank.

    In `pretrain` mode with `load`, SAT continues under the loaded folder's name, which may be there already.

    Raises:
        UserError: the folder cannot be made.
    """
    args.save = args.save or DEFAULT_SAVE
    continued = args.load and args.mode == "pretrain"
    result: tuple[str, str] | str = ("", "")
    if current().world.rank == 0:
        try:
            if continued:
                folder = Path(args.save) / os.path.basename(os.path.normpath(args.load))
                folder.mkdir(parents=True, exist_ok=True)
                result = (str(folder), "")
            else:
                result = _make_new(Path(args.save), args.experiment_name)
        except OSError as error:
            result = f"cannot make a run's folder in save {args.save!r}: {error.strerror} (args.save, --save)"
    result = current().world.broadcast_object(result)
    if isinstance(result, str):
        raise UserError(result)
    folder_name, suffix = result
    return Path(folder_name), suffix


def _make_new(save: Path, name: str) -> tuple[str, str]:
    save.mkdir(parents=True, exist_ok=True)
    time = datetime.now().strftime(TIME_FORMAT)
    for attempt in range(1, 1000):
        suffix = time if attempt == 1 else f"{time}-{attempt}"
        folder = save / f"{name}-{suffix}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return str(folder), suffix
    raise UserError(f"a thousand runs named {name}-{time} in {save}: choose another experiment_name")


def remove_if_empty(folder: Path) -> None:
    """Take back a folder that a failed start left without content."""
    if current().world.rank == 0 and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
