"""Write a checkpoint with DeepSpeed so that a reader sees the whole of it or nothing.

Layout: `<folder>/<iteration>/mp_rank_XX_model_states.pt` and ZeRO's optimizer shards beside it, `<folder>/latest`. The
files are written in `<iteration>.incomplete`, synced, and the folder renamed; `latest` moves last, by a rename too.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideox.parallel import current
from cogvideox.platform import device_random_states


def save_checkpoint(
    engine: Any, folder: Path, iteration: int, client_state: dict[str, Any], *, adapters_only: bool
) -> Path:
    """Save weights, optimizer, scheduler and random states of all ranks; every rank must call this.

    `adapters_only` leaves frozen parameters out. `client_state` must hold nothing that `torch.load(weights_only=True)`
    refuses. The folder must be on a file system that all ranks share. Returns the checkpoint's folder.
    """
    world = current().world
    final, incomplete = folder / str(iteration), folder / f"{iteration}.incomplete"
    if world.rank == 0 and incomplete.exists():
        shutil.rmtree(incomplete)
    world.barrier()
    state = client_state | {"iteration": iteration, "random_states": world.gather_objects(random_state())}
    engine.save_checkpoint(
        str(folder),
        tag=incomplete.name,
        client_state=state,
        save_latest=False,
        exclude_frozen_parameters=adapters_only,
    )
    if engine.zero_optimization_partition_weights():
        _save_consolidated(engine, incomplete, state, adapters_only)
    current().host.barrier()
    if world.rank == 0:
        publish(incomplete, final)
    current().host.barrier()
    return final


def _save_consolidated(engine: Any, folder: Path, state: dict[str, Any], adapters_only: bool) -> None:
    """At stage 3 each rank's file holds its own part: write the whole weights in SAT's place too."""
    weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapters_only)
    groups = current()
    if groups.data.rank == 0:
        name = f"mp_rank_{groups.model.rank:02d}_model_states.pt"
        torch.save({"module": weights, **state}, folder / name)


def publish(incomplete: Path, final: Path) -> None:
    """Give a finished folder its name and point `latest` at it, durably and in this order."""
    for path in incomplete.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(incomplete)
    replaced = final.with_name(f"{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    incomplete.rename(final)
    _sync(final.parent)
    pointer = final.parent / "latest.incomplete"
    pointer.write_text(final.name, encoding="utf-8")
    _sync(pointer)
    os.replace(pointer, final.parent / "latest")
    _sync(final.parent)
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
