"""The folder of a run: named once, on rank 0, made exclusively, and told to the other ranks.

SAT lets every rank name it by its own clock to the minute: ranks disagree at a minute's turn, and two runs started in
one minute overwrite each other.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from cogvideox.checkpoint.choosing import newest_run
from cogvideox.config.resumed import AUTO, DEFAULT_SAVE
from cogvideox.errors import UserError
from cogvideox.parallel import current

TIME_FORMAT = "%m-%d-%H-%M"


def make_run_folder(args: argparse.Namespace) -> Path:
    """The run's folder, the same on every rank: a new `<save>/<experiment_name>-MM-DD-HH-MM[-k]`, or the resumed one.

    In `pretrain` mode with `load`, SAT writes on into the loaded folder, over its checkpoints: here only `resume` does
    that. Sets `args.resume` to the folder to resume from, or None where `auto` finds none.

    Raises:
        UserError: the folder cannot be made, or there is nothing to resume in it.
    """
    args.save = args.save or DEFAULT_SAVE
    folder, args.resume = current().world.on_first(lambda: _choose(args))
    args.save = str(folder.parent)
    return folder


def _choose(args: argparse.Namespace) -> tuple[Path, str | None]:
    save = Path(args.save)
    resumed = newest_run(save, args.experiment_name) if args.resume == AUTO else args.resume and Path(args.resume)
    if resumed:
        if not (resumed / "latest").is_file():
            raise UserError(f"{resumed} holds no checkpoint to resume: there is no file `latest` in it (--resume)")
        return resumed.resolve(), str(resumed.resolve())
    try:
        return _make_new(save, args.experiment_name), None
    except OSError as error:
        raise UserError(
            f"cannot make a run's folder in save {args.save!r}: {error.strerror} (args.save, --save)"
        ) from error


def _make_new(save: Path, name: str) -> Path:
    save.mkdir(parents=True, exist_ok=True)
    time = datetime.now().strftime(TIME_FORMAT)
    for attempt in range(1, 1000):
        suffix = time if attempt == 1 else f"{time}-{attempt}"
        folder = save / f"{name}-{suffix}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(f"a thousand runs named {name}-{time} in {save}: choose another experiment_name")


def remove_if_empty(folder: Path) -> None:
    """Take back a folder that a failed start left without content."""
    if current().world.rank == 0 and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
