"""Write a checkpoint with DeepSpeed so that a reader sees the whole of it or nothing.

Layout: `<folder>/<iteration>/mp_rank_XX_model_states.pt` and ZeRO's optimizer shards beside it, `<folder>/latest`. The
files are written in `<iteration>.incomplete`, synced, and the folder renamed; `latest` moves last, by a rename too. One
that a gate refuses is named `<iteration>.not_trusted` instead, and `latest` stays where it was.
"""

from __future__ import annotations

import os
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cogvideox.checkpoint.durable import sync
from cogvideox.checkpoint.ema import save_averages
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import device_random_states


class UntrustedCheckpoint(UserError):
    """What was saved does not load as what was trained."""


class Gate(Protocol):
    """What a checkpoint must pass before it is published."""

    def record(self, engine: Any, folder: Path, averages: dict[str, torch.Tensor] | None) -> None:
        """Leave in `folder` what the live model is. Every rank calls this; `averages` are of `save_averages`."""

    def check(self, folder: Path) -> None:
        """Raise UntrustedCheckpoint if `folder` does not load as what was recorded. Rank 0 calls this."""


def save_checkpoint(
    engine: Any,
    folder: Path,
    iteration: int,
    client_state: dict[str, Any],
    *,
    adapters_only: bool,
    averages: bool = False,
    gate: Gate | None = None,
) -> Path:
    """Save weights, optimizer, scheduler and random states of all ranks; every rank must call this.

    `adapters_only` leaves frozen parameters out. `averages`: the optimizer keeps some, which are saved too.
    `client_state` must hold nothing that `torch.load(weights_only=True)` refuses. The folder must be on a file system
    that all ranks share. Returns the checkpoint's folder. Raises UserError on every rank if `gate` refuses it.
    """
    world = current().world
    final, incomplete = folder / str(iteration), folder / f"{iteration}.incomplete"
    if world.rank == 0 and incomplete.exists():
        shutil.rmtree(incomplete)
    world.barrier()
    state = client_state | {"iteration": iteration, "random_states": world.gather_objects(random_state())}
    _write(engine, incomplete, state, adapters_only)
    saved = save_averages(engine, incomplete, {"iteration": iteration}) if averages else None
    if gate is not None:
        gate.record(engine, incomplete, saved)
    del saved
    current().host.barrier()
    if gate is not None:
        current().host.on_first(partial(_pass, gate, incomplete, folder / f"{iteration}.not_trusted"))
    if world.rank == 0:
        publish(incomplete, final)
    current().host.barrier()
    return final


def _write(engine: Any, folder: Path, state: dict[str, Any], adapters_only: bool) -> None:
    """DeepSpeed's files. At stage 3 each rank's holds its own part: the whole weights go into SAT's place too."""
    engine.save_checkpoint(
        str(folder.parent),
        tag=folder.name,
        client_state=state,
        save_latest=False,
        exclude_frozen_parameters=adapters_only,
    )
    if not engine.zero_optimization_partition_weights():
        return
    weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapters_only)
    groups = current()
    if groups.data.rank == 0:
        name = f"mp_rank_{groups.model.rank:02d}_model_states.pt"
        torch.save({"module": weights, **state}, folder / name)


def _pass(gate: Gate, incomplete: Path, refused: Path) -> None:
    """Let a checkpoint through the gate, or mark it by its name and say so."""
    try:
        gate.check(incomplete)
    except UntrustedCheckpoint as error:
        shutil.rmtree(refused, ignore_errors=True)
        incomplete.rename(refused)
        raise UntrustedCheckpoint(
            f"{error}\nIt is kept as {refused}, and `latest` does not name it. The run ends here (--verify-save)"
        ) from error


def publish(incomplete: Path, final: Path) -> None:
    """Give a finished folder its name and point `latest` at it, durably and in this order."""
    for path in incomplete.rglob("*"):
        if path.is_file():
            sync(path)
    sync(incomplete)
    replaced = final.with_name(f"{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    incomplete.rename(final)
    sync(final.parent)
    pointer = final.parent / "latest.incomplete"
    pointer.write_text(final.name, encoding="utf-8")
    sync(pointer)
    os.replace(pointer, final.parent / "latest")
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """This process's random states in types that load without running code."""
    algorithm, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "device": device_random_states(),
    }
