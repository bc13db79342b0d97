"""Tensors by key in a folder that many processes and jobs share, each entry whole and checked, or absent."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.data.cache_shards import (
    DATA,
    EVERYTHING,
    DamagedShard,
    Entry,
    Shard,
    check_size,
    open_shard,
    read_entry,
    read_index,
    record_damage,
    remove_abandoned,
    shard_names,
    write_shard,
)
from cogvideox.errors import UserError

_logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60.0
OPEN_SHARDS = 64  # of one process; a folder may have more shards than a process may open files


class CacheStore:
    """A content-addressed store: the same key means the same content, so that nothing is ever replaced.

    `put` collects entries and writes them as one shard (`cache_shards`) at `shard_bytes`, at the first `put` after
    `shard_seconds`, and at `flush`: a kill loses what was not written by then. Others see them after their `refresh`.
    A damaged entry counts as absent, here and, once it was found, in every process; put anew, it is found again.
    A copy in another process (pickled or forked) opens its own files and does not have what is still to be written.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, shard_seconds: float = SHARD_SECONDS) -> None:
        """`folder` is made where it is missing, by the first use."""
        self.folder, self.shard_bytes, self.shard_seconds = Path(folder), shard_bytes, shard_seconds
        self._process: int | None = None  # which process's files and pending entries these are
        self._shards: dict[str, int] = {}  # bytes of the data of each; 0 for what cannot be used
        self._entries: dict[str, list[Entry]] = {}  # of one key mostly one; the last is the newest
        self._open_shards: OrderedDict[str, Any] = OrderedDict()
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._pending_bytes = 0
        self._pending_since = 0.0

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of `key`, on the CPU and the caller's own; None where there are none, or only damaged ones."""
        self._prepare()
        if key in self._pending:
            return {name: tensor.clone() for name, tensor in self._pending[key].items()}
        while copies := self._entries.get(key):
            entry = copies[-1]
            try:
                return read_entry(self._open(entry.shard), key, entry)
            except DamagedShard as error:
                keys = key if entry.shard in self._open_shards else EVERYTHING
                self._drop({entry.shard}, keys)
                self._warn(entry.shard, str(error))
                record_damage(self.folder, entry.shard, keys)
            except OSError as error:
                self._drop({entry.shard})
                self._warn(entry.shard, f"cannot be read ({error.strerror or error})")
                del self._shards[entry.shard]  # it may be there again at the next refresh
        return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep `tensors` by their names; they are copied. UserError: the folder cannot be written to."""
        assert key and tensors and not {"/", EVERYTHING} & set(key), f"not a key: {key!r}"
        self._prepare()
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending[key] = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        self._pending_bytes += sum(each.numel() * each.element_size() for each in self._pending[key].values())
        is_late = time.monotonic() - self._pending_since >= self.shard_seconds
        if self._pending_bytes >= self.shard_bytes or is_late:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet: when this returns, it is on the disk. UserError: it cannot be written."""
        self._prepare()
        if not self._pending:
            return
        written = write_shard(self.folder, self._pending)
        self._pending, self._pending_bytes = {}, 0
        self._add(written)

    def refresh(self) -> None:
        """See what others have finished since, and what is no longer there."""
        self._prepare()
        self._read_folder()

    def close(self) -> None:
        """Write what is not written yet, and let go of all files."""
        self.flush()
        self._open_shards.clear()

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry that is not known to be damaged; `get` alone reads it."""
        self._prepare()
        return key in self._pending or key in self._entries

    def keys(self) -> set[str]:
        """Every key that is `in` the store."""
        self._prepare()
        return {*self._pending, *self._entries}

    @property
    def bytes_used(self) -> int:
        """What the data of all shards take that are known here."""
        self._prepare()
        return sum(self._shards.values())

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("folder", "shard_bytes", "shard_seconds")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _prepare(self) -> None:
        """At the first use in a process: read the folder, or let go of what belongs to the process forked from."""
        process = os.getpid()
        if self._process == process:
            return
        is_forked, self._process = self._process is not None, process
        self._open_shards = OrderedDict()
        self._pending, self._pending_bytes = {}, 0
        if is_forked:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.folder)
        except OSError as error:
            self._process = None
            raise UserError(
                f"cannot make the cache {self.folder} ({error.strerror or error}): choose another --cache"
            ) from error
        self._read_folder()

    def _read_folder(self) -> None:
        try:
            there = shard_names(self.folder)
        except OSError as error:
            raise UserError(f"cannot read the cache {self.folder} ({error.strerror or error})") from error
        gone = self._shards.keys() - there
        if gone:
            self._drop(gone)
        self._shards = {shard: size for shard, size in self._shards.items() if shard not in gone}
        for shard in sorted(there - self._shards.keys()):
            try:
                self._add(read_index(self.folder, shard))
            except DamagedShard as error:
                self._shards[shard] = 0
                self._warn(shard, str(error))
            except OSError as error:
                self._warn(shard, f"cannot be read ({error.strerror or error})")

    def _add(self, shard: Shard) -> None:
        self._shards[shard.name] = shard.file_bytes
        for key, entry in shard.entries.items():
            self._entries.setdefault(key, []).append(entry)

    def _drop(self, shards: Set[str], key: str = EVERYTHING) -> None:
        """Forget what `shards` have of `key`, or everything."""
        if key == EVERYTHING:
            for shard in shards:
                self._open_shards.pop(shard, None)
        for each in list(self._entries) if key == EVERYTHING else [key]:
            kept = [entry for entry in self._entries[each] if entry.shard not in shards]
            if kept:
                self._entries[each] = kept
            else:
                del self._entries[each]

    def _warn(self, shard: str, reason: str) -> None:
        text = "the cache file %s %s: what it lacks counts as missing and is made anew where it can be"
        _logger.warning(text, self.folder / (shard + DATA), reason)

    def _open(self, shard: str) -> Any:
        """A shard's data, from the few that are open."""
        try:
            check_size(self.folder, shard, self._shards[shard])
        except (DamagedShard, OSError):
            self._open_shards.pop(shard, None)
            raise
        if shard not in self._open_shards:
            self._open_shards[shard] = open_shard(self.folder, shard)
            if len(self._open_shards) > OPEN_SHARDS:
                self._open_shards.popitem(last=False)
        self._open_shards.move_to_end(shard)
        return self._open_shards[shard]
