"""Which of a run's checkpoints stay on the disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.choosing import checkpoints_of, is_number

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
    """A run goes on from `iteration`: give the checkpoints of later ones, if there are any, names that say so.

    Else they would pass for earlier ones of the new course, once it is longer than they are: in `Retention`, and where
    a damaged checkpoint is passed over for the one before it. What cannot be renamed is told in the log.
    """
    try:
        later = sorted(int(path.name) for path in run.iterdir() if is_number(path.name) and int(path.name) > iteration)
        if not later:
            return
        durable.replace_text(run / "latest", str(iteration))
        for number in later:
            path = run / str(number)
            durable.rename(path, durable.unused(path.with_name(path.name + ABANDONED)))
    except OSError as error:
        logger.warning("%s: later checkpoints cannot be renamed (%s)", run, error.strerror or error)
        return
    logger.warning(
        "%s goes on from iteration %d: its later checkpoints, %s, are kept as %s%s",
        run, iteration, ", ".join(map(str, later)), f"{later[0]}{ABANDONED}", " and so on" if later[1:] else "",
    )  # fmt: skip
