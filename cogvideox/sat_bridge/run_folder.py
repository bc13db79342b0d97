"""The folder of a run: named once, on rank 0, made exclusively, and told to the other ranks.

SAT lets every rank name it by its own clock to the minute: ranks disagree at a minute's turn, and two runs started in
one minute overwrite each other.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import socket
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from cogvideox.checkpoint.choosing import checkpoints_of, run_of, runs_of
from cogvideox.checkpoint.durable import sync
from cogvideox.checkpoint.manifest import fault_on_any_rank
from cogvideox.checkpoint.saving import tidy
from cogvideox.config.resumed import AUTO, DEFAULT_SAVE
from cogvideox.errors import UserError
from cogvideox.parallel import current

logger = logging.getLogger(__name__)

TIME_FORMAT = "%m-%d-%H-%M"
LOCK = "in_use"
_held: dict[Path, int] = {}  # descriptors of the locks that this process has


def make_run_folder(args: argparse.Namespace) -> Path:
    """The run's folder, the same on every rank: a new `<save>/<experiment_name>-MM-DD-HH-MM[-k]`, or the resumed one.

    In `pretrain` mode with `load`, SAT writes on into the loaded folder, over its checkpoints: here only `resume` does
    that. Sets `args.resume` to the checkpoint to go on from, whose files have been read and found whole, or None where
    `auto` finds none. Nobody else can resume in the folder until this process ends.

    Raises:
        UserError: the folder cannot be made, there is nothing to resume in it, or another process writes into it.
    """
    save = Path(args.save or DEFAULT_SAVE)
    checkpoint = _checkpoint_to_resume(args.resume, save, args.experiment_name) if args.resume else None
    args.resume = str(checkpoint) if checkpoint else None
    folder = checkpoint.parent if checkpoint else current().world.on_first(partial(_new, save, args.experiment_name))
    args.save = str(folder.parent)
    return folder


def _checkpoint_to_resume(resume: str, save: Path, name: str) -> Path | None:
    """The newest whole checkpoint that `resume` means; for `auto` None if there is none."""
    world = current().world
    path = Path(resume).resolve()
    is_one = resume != AUTO and run_of(path) != path
    runs = world.broadcast_object(runs_of(save.resolve(), name)) if resume == AUTO else [run_of(path)]
    if resume == AUTO and not runs and world.rank == 0:
        logger.info("no run %s-… in %s has saved: a new run begins at iteration 0", name, save)
    for run in runs:
        found = current().host.on_first(partial(_taken_up, run))  # patient: there may be much to delete
        candidates = [path] if is_one else found
        for number, candidate in enumerate(candidates):
            fault = fault_on_any_rank(candidate, current().host)  # patient: there may be much to read
            if fault is None:
                return candidate
            if resume != AUTO:
                before = candidates[number + 1 :] or [each for each in found if int(each.name) < int(candidate.name)]
                remedy = f"take the one before it: --resume {before[0]}" if before else "begin anew without --resume"
                raise UserError(f"{candidate} {fault}; {remedy}")
            if world.rank == 0:
                logger.warning("%s %s: it is not resumed", candidate, fault)
        if world.rank == 0:
            release(run)
    if resume != AUTO:
        raise UserError(f"{runs[0]} holds no checkpoint to resume (--resume)")
    if runs and world.rank == 0:
        logger.warning("no checkpoint of %s-… in %s is whole: A NEW RUN BEGINS at iteration 0", name, save)
    return None


def _taken_up(run: Path) -> list[Path]:
    """The run's checkpoints, with what an interrupted save left behind put in order."""
    if not run.is_dir():
        raise UserError(f"there is no run {run} (--resume)")
    hold(run)
    try:
        tidy(run)
        return checkpoints_of(run)
    except OSError as error:
        raise UserError(f"{run} cannot be resumed: {error.filename}: {error.strerror}") from error


def _new(save: Path, name: str) -> Path:
    try:
        folder = _make_new(save, name)
    except OSError as error:
        raise UserError(
            f"cannot make a run's folder in save {str(save)!r}: {error.strerror} (args.save, --save)"
        ) from error
    hold(folder)
    return folder


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
        sync(save)
        return folder
    raise UserError(f"a thousand runs named {name}-{time} in {save}: choose another experiment_name")


def hold(run: Path) -> None:
    """Keep other processes from going on in the same run; the lock ends with this process, however it ends.

    A lock of the process, not of the file as opened: workers that outlive it must not keep it. Where the file system
    has no locks there is none. UserError: another process has it.
    """
    if run in _held:
        return
    try:
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write into {run}: {error.strerror} (args.save, --resume)") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        who = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise UserError(f"{run} is in use by {who}: wait for its end, or stop it (--resume)") from error
    except OSError:
        logger.warning("%s: this file system has no locks; see that only one job writes into a run", run)
    _held[run] = descriptor
    with suppress(OSError):  # a full disk: others are kept out all the same
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def release(run: Path) -> None:
    """Let others go on in a run that this process held."""
    descriptor = _held.pop(run, None)
    if descriptor is not None:
        os.close(descriptor)


def remove_if_empty(folder: Path) -> None:
    """Take back a folder that a failed start left without content."""
    if current().world.rank != 0:
        return
    release(folder)  # first: NFS keeps a file that is open under another name
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
