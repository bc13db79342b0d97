"""Which of a run's checkpoints stay on the disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.choosing import LATEST, checkpoints_of

logger = logging.getLogger(__name__)

ABANDONED = ".abandoned"


@dataclass(frozen=True)
class Retention:
    """Keep the newest `limit` (None: all), and beside them those of every `every`-th iteration and of the `best`
    evaluation.
    """

    limit: int | None = None
    every: int | None = None
    best: int | None = None

    def to_delete(self, run: Path) -> list[Path]:
        """The checkpoints of `run` that may go, the oldest first; never the newest."""
        if self.limit is None:
            return []
        old = checkpoints_of(run)[max(1, self.limit) :]
        return [path for path in reversed(old) if not self._is_kept(int(path.name))]

    def _is_kept(self, iteration: int) -> bool:
        return iteration == self.best or bool(self.every) and iteration % (self.every or 1) == 0

    def apply(self, run: Path) -> None:
        """Delete them. What cannot be deleted, or even listed, is told in the log and stays."""
        try:
            going = self.to_delete(run)
        except OSError as error:
            logger.warning("%s cannot be listed (%s); --save-total-limit", run, error.strerror or error)
            return
        for path in going:
            try:
                durable.remove_folder(path)
            except OSError as error:
                logger.warning("%s cannot be deleted (%s); --save-total-limit", path, error.strerror or error)


def abandon_after(run: Path, iteration: int) -> None:
    """The course of a run is from now on the one that went on from `iteration`: give the later checkpoints of the other
    one, up to the one that `latest` names, names that say so, and let `latest` name this one.

    Else they would pass for earlier ones of the new course, once it is longer than they are: in `Retention`, and where
    a damaged checkpoint is passed over for the one before it. What cannot be renamed is told in the log.
    """
    renamed = []
    try:
        for path in reversed([each for each in checkpoints_of(run) if int(each.name) > iteration]):
            aside = durable.unused(path.with_name(path.name + ABANDONED))
            durable.rename(path, aside)
            renamed.append(aside.name)
        if renamed:
            durable.replace_text(run / LATEST, str(iteration))
    except OSError as error:
        logger.warning("%s: later checkpoints cannot be renamed (%s)", run, error.strerror or error)
    if renamed:
        went_on = f"{run} went on from iteration {iteration}"
        logger.warning("%s: its later checkpoints are kept as %s", went_on, ", ".join(renamed))


def keep_up(run: Path, iteration: int) -> None:
    """Let `latest` name the checkpoint that a run goes on from, where it names an earlier one or is not there."""
    if not any(int(each.name) >= iteration for each in checkpoints_of(run)) or not (run / LATEST).is_file():
        durable.replace_text(run / LATEST, str(iteration))
