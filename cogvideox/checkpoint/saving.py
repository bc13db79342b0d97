"""Write a checkpoint so that a reader, and a crash at any moment, see the whole of it or nothing.

Layout: `<folder>/<iteration>/mp_rank_XX_model_states.pt`, ZeRO's optimizer shards and `manifest.json` beside it, and
`<folder>/latest`. The files are written in `<iteration>.incomplete`, synced, and the folder renamed; `latest` moves
last, by a rename too. One that a gate refuses is named `<iteration>.not_trusted` instead, and `latest` stays.

Saving has two parts: `snapshot` asks DeepSpeed what belongs into the files, on the thread that trains, and `store`
writes it, on any thread.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.durable import Written, in_units
from cogvideox.checkpoint.ema import averages_of
from cogvideox.checkpoint.manifest import Manifest
from cogvideox.errors import UserError
from cogvideox.parallel import Group, current
from cogvideox.platform import device_random_states

SPARE_BYTES = 1 << 26  # for what is not a tensor, and for the folder itself
INCOMPLETE, REPLACED = ".incomplete", ".replaced"


class UntrustedCheckpoint(UserError):
    """What was saved is not what was trained."""


class SaveFailed(Exception):
    """A checkpoint could not be written; those before it are as they were. Raised on all ranks alike."""


class Gate(Protocol):
    """What a checkpoint must pass before it is published."""

    def record(self, engine: Any, averages: dict[str, torch.Tensor] | None) -> dict[str, Any] | None:
        """What the live model is, for a file in the checkpoint. Every rank calls this; `averages` as `averages_of`."""

    def check(self, folder: Path) -> None:
        """Raise UntrustedCheckpoint if `folder` does not load as what was recorded. Rank 0 calls this."""


@dataclass
class Snapshot:
    """What this rank writes of the checkpoint of `iteration`: file names and their contents."""

    iteration: int
    contents: dict[str, Any] = field(default_factory=dict)

    def size(self) -> int:
        """Bytes of the tensors in it."""
        return sum(_bytes_in(content) for content in self.contents.values())

    def in_host_memory(self) -> Snapshot:
        """The same, with copies of all tensors: what is trained on goes on changing."""
        return Snapshot(self.iteration, {name: _copied(content) for name, content in self.contents.items()})

    def write(self, folder: Path) -> dict[str, Written]:
        """Each content into its file, durably. Raises OSError."""
        return {
            name: durable.write_file(folder / name, partial(torch.save, content))
            for name, content in self.contents.items()
        }


def snapshot(
    engine: Any,
    iteration: int,
    client_state: dict[str, Any],
    *,
    adapters_only: bool,
    averages: bool = False,
    gate: Gate | None = None,
) -> Snapshot:
    """Weights, optimizer, scheduler and random states of all ranks; every rank must call this.

    `adapters_only` leaves frozen parameters out. `averages`: the optimizer keeps some. `client_state` must hold nothing
    that `torch.load(weights_only=True)` refuses. The tensors are those that are trained on, not copies.
    """
    groups = current()
    taken = Snapshot(iteration)
    state = client_state | {"iteration": iteration, "random_states": groups.world.gather_objects(random_state())}
    with _files_of(engine, taken):
        engine.save_checkpoint(
            ".", tag=str(iteration), client_state=state, save_latest=False, exclude_frozen_parameters=adapters_only
        )
    if engine.zero_optimization_partition_weights():
        # Each rank's file holds its own part: the whole weights go into SAT's place too.
        weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapters_only)
        if groups.data.rank == 0:
            taken.contents[f"mp_rank_{groups.model.rank:02d}_model_states.pt"] = {"module": weights, **state}
    averaged = averages_of(engine) if averages else None
    if averaged is not None and groups.data.rank == 0:
        name = f"mp_rank_{groups.model.rank:02d}_ema_states.pt"
        taken.contents[name] = {"module": averaged, "iteration": iteration}
    live = gate.record(engine, averaged) if gate is not None else None
    if live is not None:
        taken.contents[f"mp_rank_{groups.model.rank:02d}_live_states.pt"] = live
    return taken


@contextmanager
def _files_of(engine: Any, taken: Snapshot) -> Iterator[None]:
    """What DeepSpeed would write inside the block goes into `taken`, and nothing to the disk."""

    def take(state_dict: Any, path: str) -> None:
        taken.contents[Path(path).name] = state_dict

    def nothing(*_: Any, **__: Any) -> None:
        return None

    writer = engine.checkpoint_engine
    writer.save, writer.makedirs, engine._copy_recovery_script = take, nothing, nothing
    try:
        yield
    finally:
        del writer.save, writer.makedirs, engine._copy_recovery_script


def store(
    taken: Snapshot, folder: Path, group: Group, gate: Gate | None = None, retire: Callable[[], None] | None = None
) -> Path:
    """Write a snapshot as `<folder>/<iteration>` and let `latest` name it; every rank of `group` must call this.

    The folder must be on a file system that all ranks share. `retire` is called on the first rank once that is done, to
    delete earlier ones. Returns the checkpoint's folder. Raises on all ranks SaveFailed (the disk is full or fails), or
    UserError if `gate` refuses it.
    """
    final = folder / str(taken.iteration)
    incomplete = final.with_name(final.name + INCOMPLETE)
    sizes = group.gather_objects(taken.size())
    _on_first(group, partial(_prepare, incomplete, sum(sizes)))
    written, fault = _written(taken, incomplete)
    outcomes = group.gather_objects((written, fault))
    if faults := [fault for _, fault in outcomes if fault]:
        _on_first(group, partial(_give_up, incomplete))
        raise SaveFailed(faults[0])
    files = {name: each for names, _ in outcomes for name, each in names.items()}
    if gate is not None:
        group.on_first(partial(_pass, gate, incomplete, final.with_name(f"{final.name}.not_trusted")))
    _on_first(group, partial(_finish, incomplete, Manifest(taken.iteration, group.size, files), retire))
    return final


def _prepare(incomplete: Path, needed: int) -> None:
    """An empty folder for the files, if the disk has room for them."""
    durable.free_name(incomplete)
    free = shutil.disk_usage(incomplete.parent).free
    if free < needed + SPARE_BYTES:
        raise SaveFailed(
            f"{in_units(needed)} are to be written, {in_units(SPARE_BYTES)} to spare; {incomplete.parent} has "
            f"{in_units(free)}"
        )
    durable.make_folder(incomplete)


def _written(taken: Snapshot, folder: Path) -> tuple[dict[str, Written], str | None]:
    """This rank's files, or why they cannot be written."""
    written: dict[str, Written] = {}
    fault = durable.failure_of(lambda: written.update(taken.write(folder)), folder)
    return written, fault


def _give_up(incomplete: Path) -> None:
    with suppress(OSError):
        durable.remove_folder(incomplete)


def _finish(incomplete: Path, manifest: Manifest, retire: Callable[[], None] | None) -> None:
    try:
        publish(incomplete, incomplete.with_suffix(""), manifest)
    except OSError:
        _give_up(incomplete)
        raise
    if retire is not None:
        retire()


def publish(incomplete: Path, final: Path, manifest: Manifest) -> None:
    """Give a finished folder its name and point `latest` at it, durably and in this order. Raises OSError."""
    manifest.write(incomplete)
    durable.sync(incomplete)
    replaced = final.with_name(final.name + REPLACED)
    try:
        if final.exists():
            durable.free_name(replaced)
            durable.rename(final, replaced)
        durable.rename(incomplete, final)
        durable.replace_text(final.parent / "latest", final.name)
    except OSError:
        _settle(replaced, final)
        raise
    _settle(replaced, final)


def _settle(replaced: Path, final: Path) -> None:
    """Delete what was replaced; where nothing has taken its name, it gets it back. What fails here, `tidy` does."""
    with suppress(OSError):
        if replaced.exists() and not final.exists():
            durable.rename(replaced, final)
        durable.remove_folder(replaced)


def tidy(folder: Path) -> None:
    """Take up what a save that was interrupted left in a run's folder: a checkpoint that was to be replaced gets its
    name back, halves are deleted. Raises OSError.
    """
    for replaced in sorted(folder.glob(f"*{REPLACED}")):
        final = replaced.with_suffix("")
        if not final.exists():
            durable.rename(replaced, final)
    for ending in (INCOMPLETE, REPLACED, f"{durable.DELETED}*"):
        for half in sorted(folder.glob(f"*{ending}")):
            if half.is_dir():
                shutil.rmtree(half, ignore_errors=True)  # what stays (a file that is open on NFS) is in nobody's way
            else:
                half.unlink()


def _on_first(group: Group, function: Callable[[], None]) -> None:
    """Call it on the group's first rank; where the file system fails, SaveFailed on all of them."""

    def outcome() -> str | None:
        try:
            return durable.failure_of(function)
        except SaveFailed as error:
            return str(error)

    fault = group.on_first(outcome)
    if fault is not None:
        raise SaveFailed(fault)


def _pass(gate: Gate, incomplete: Path, refused: Path) -> None:
    """Let a checkpoint through the gate, or mark it by its name and say so."""
    try:
        gate.check(incomplete)
    except UntrustedCheckpoint as error:
        shutil.rmtree(refused, ignore_errors=True)
        try:
            kept = incomplete.rename(refused)
        except OSError:  # somebody has a file of an earlier one open
            kept = incomplete
        raise UntrustedCheckpoint(
            f"{error}\nIt is kept as {kept}, and `latest` does not name it. The run ends here (--verify-save)"
        ) from error


def _bytes_in(content: Any) -> int:
    """Of all tensors in nested dicts, lists and tuples; tensors that share a storage count once each."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(map(_bytes_in, values))


def _copied(content: Any) -> Any:
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return type(content)({name: _copied(value) for name, value in content.items()})
    if type(content) in (list, tuple):  # not a named one
        return type(content)(map(_copied, content))
    return copy.deepcopy(content)


def random_state() -> dict[str, Any]:
    """This process's random states in types that load without running code."""
    algorithm, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "device": device_random_states(),
    }
