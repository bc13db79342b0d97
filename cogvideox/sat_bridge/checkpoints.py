"""When a run saves: at once, or beside the training; what happens where the disk is full; which checkpoints stay."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cogvideox.checkpoint.durable import failure_of, in_units
from cogvideox.checkpoint.retention import Retention, abandon_after, keep_up
from cogvideox.checkpoint.saving import SaveFailed, Snapshot, snapshot, store
from cogvideox.errors import UserError
from cogvideox.parallel import Group, current
from cogvideox.platform import available_memory
from cogvideox.progress import waiting_for_others
from cogvideox.sat_bridge.distributed import another_host_group
from cogvideox.sat_bridge.optimizer import EmaAdamW
from cogvideox.sat_bridge.room import tell_of_room
from cogvideox.sat_bridge.verification import LiveGate, gate_of

logger = logging.getLogger(__name__)

FINISH_S = 600.0
MOST_OF_MEMORY = 0.8  # of what is free, that the copies of a save beside the training may take


class NotSaved(UserError):
    """The last state of a run is not on the disk. Ends with status 1, not 2: nothing that was given is wrong."""

    exit_status = 1


class Checkpoints:
    """The checkpoints of one run in `folder`, which exists before the first save.

    A save that fails leaves the earlier ones as they are, is told in the log, and does not end the training: the next
    one tries again. Only the last one of a run must succeed.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.saved_at = -1  # the iteration of the newest checkpoint
        self._goes_on_from: int | None = None  # the one that training went on from, until it has saved
        self._gate: LiveGate | None = gate_of(args)
        self._is_async = bool(args.async_save) and self._gate is None
        if args.async_save and self._gate is not None and current().world.rank == 0:
            logger.warning(
                "--verify-save holds the training until a checkpoint is verified: --async-save has no effect"
            )
        self._group: Group = another_host_group() if self._is_async else current().host
        self._thread: threading.Thread | None = None
        self._writing = -1  # the iteration that it writes
        self._outcome: BaseException | None = None

    def tell_of_room(self, engine: Any) -> None:
        """At the beginning, say what the checkpoints to come take, and whether there is room for them."""
        tell_of_room(engine, self.args, self.folder, adapters_only=self._adapters_only(engine))

    def _adapters_only(self, engine: Any) -> bool:
        return bool(self.args.load) and engine.module.trains_adapters_only and not self.args.save_full

    def go_on_from(self, iteration: int) -> None:
        """Training goes on from this checkpoint: once it has saved, later ones are of another course than its own."""
        self.saved_at = self._goes_on_from = iteration
        if current().world.rank == 0 and (fault := failure_of(lambda: keep_up(self.folder, iteration))):
            logger.warning("`latest` does not name iteration %d yet (%s)", iteration, fault)

    def save(self, iteration: int, engine: Any, state: dict[str, Any], *, is_last: bool) -> None:
        """Save the state after `iteration`, once; every rank must call this. `state` is what goes beside DeepSpeed's.

        With `--async-save` the files are written while the training goes on, all but the last. UserError: what was
        saved is not what was trained (`--verify-save`), or the last state of the run cannot be saved.
        """
        self.wait()
        if iteration == self.saved_at:
            return
        began = time.perf_counter()
        best = state["best"]["iteration"] if state["best"] else None
        adapters_only = self._adapters_only(engine)
        taken = snapshot(
            engine,
            iteration,
            state
            | {"adapters_only": adapters_only, "base_weights": self.args.base_weights if self.args.load else None},
            adapters_only=adapters_only,
            averages=isinstance(engine.basic_optimizer, EmaAdamW),
            gate=self._gate,
        )
        if self._is_async and not is_last and self._has_memory_for(taken):
            self._writing = iteration
            # A daemon: one whose disk hangs must not keep a process that has waited for it long enough.
            copies = taken.in_host_memory()
            self._thread = threading.Thread(target=self._store_beside, args=(copies, began, best), daemon=True)
            self._thread.start()
            return
        try:
            self._store(taken, began, best)
        except SaveFailed as error:
            self._tell(error, iteration, is_last=is_last)

    def wait(self) -> None:
        """Until nothing is being written any more; tells how that went. UserError as `save`."""
        if self._thread is None:
            return
        with waiting_for_others():
            self._thread.join()
        self._thread, outcome, self._outcome = None, self._outcome, None
        if isinstance(outcome, SaveFailed):
            self._tell(outcome, self._writing, is_last=False)
        elif outcome is not None:
            raise outcome

    def finish(self) -> None:
        """At the run's end, well or not: let what is being written get to its end, for a limited time.

        Where another rank is lost, the lifeline ends this one meanwhile. An error that ends the run is told first.
        """
        if self._thread is None:
            return
        if (error := sys.exc_info()[1]) is not None and self._thread.is_alive():
            said = (str(error).strip().splitlines() or [""])[0]
            sys.stderr.write(
                f"rank {current().world.rank} ends by {type(error).__name__}: {said}; it waits for the checkpoint of "
                f"iteration {self._writing}, which is being written\n"
            )
        self._thread.join(FINISH_S)
        if self._thread.is_alive():
            self._outcome = SaveFailed(f"not written after {FINISH_S:.0f} s")
        if self._outcome is not None and current().world.rank == 0:
            logger.warning("iteration %d could not be saved (%s)", self._writing, self._outcome)

    def _store(self, taken: Snapshot, began: float, best: int | None) -> None:
        if (before := self._goes_on_from) is not None:
            self._goes_on_from = None
            if current().world.rank == 0:
                abandon_after(self.folder, before)
        retention = Retention(self.args.save_total_limit, self.args.keep_every, best)
        retire: Callable[[], None] = lambda: retention.apply(self.folder)  # noqa: E731
        final = store(taken, self.folder, self._group, self._gate, retire)
        self.saved_at = taken.iteration
        if current().world.rank == 0:
            logger.info("saved %s in %.1f s", final, time.perf_counter() - began)

    def _store_beside(self, taken: Snapshot, began: float, best: int | None) -> None:
        try:
            self._store(taken, began, best)
        except BaseException as error:  # told on the thread that trains
            self._outcome = error

    def _has_memory_for(self, taken: Snapshot) -> bool:
        """Whether copies fit on every rank's host; told once in the log where they do not."""
        world = current().world
        of_ranks = world.gather_objects((socket.gethostname(), taken.size(), available_memory()))
        for host in {name for name, _, _ in of_ranks}:
            needed = sum(size for name, size, _ in of_ranks if name == host)
            free = min(memory for name, _, memory in of_ranks if name == host)
            if needed > MOST_OF_MEMORY * free:
                break
        else:
            return True
        if world.rank == 0:
            logger.warning(
                "--async-save: copies of %s do not fit into the %s of memory that %s has free: the "
                "training waits for this save",
                in_units(needed),
                in_units(free),
                host,
            )
        return False

    def _tell(self, error: SaveFailed, iteration: int, *, is_last: bool) -> None:
        newest = self.folder / str(self.saved_at)
        kept = f"the newest checkpoint is {newest}" if self.saved_at >= 0 else "there is no earlier checkpoint"
        if is_last:
            raise NotSaved(
                f"the last state, of iteration {iteration}, could not be saved ({error}); {kept}: make room, then "
                "train what is missing again with --resume auto"
            ) from error
        if current().world.rank == 0:
            logger.warning(
                "iteration %d could not be saved (%s); %s. Training goes on, the next save tries again: make room, or "
                "delete old runs",
                iteration,
                error,
                kept,
            )
