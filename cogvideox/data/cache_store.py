"""Tensors by key in a folder that many processes and jobs share, each entry whole and checked, or absent."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from cogvideox.data.cache_shards import (
    DATA,
    EVERYTHING,
    INDEX,
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
from cogvideox.data.clips import within
from cogvideox.data.reading import UnreadableVideo
from cogvideox.errors import UserError

T = TypeVar("T")

_logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60.0
OPEN_SHARDS = 64  # of one process; a folder may have more shards than a process may open files
LOOK_AGAIN_S = 0.5  # for what others have written and this process does not see yet


class CacheStore:
    """A content-addressed store: the same key means the same content, so that nothing is ever replaced.

    `put` collects entries and writes them as one shard (`cache_shards`) at `shard_bytes`, at the first `put` after
    `shard_seconds`, and at `flush`: a kill loses what was not written by then. Others see them after their `refresh`.
    A damaged entry counts as absent, here and, once it was found, in every process; put anew, it is found again.
    Storage that gives no answer for `read_timeout_s` seconds (None: wait for it) counts as unreadable.
    A copy in another process (pickled or forked) opens its own files and does not have what is still to be written.
    """

    def __init__(
        self,
        folder: Path,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
        read_timeout_s: float | None = None,
    ) -> None:
        """`folder` is made where it is missing, by the first use."""
        self.folder, self.shard_bytes, self.shard_seconds = Path(folder), shard_bytes, shard_seconds
        self.read_timeout_s = read_timeout_s
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
                return self._read(key, entry)
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

    def wait_for(self, keys: Collection[str], patience_s: float) -> set[str]:
        """See what others have finished since, again and again until all of `keys` are there, for `patience_s` seconds:
        some file systems show new files late. Gives those that are missing then.
        """
        end = time.monotonic() + patience_s
        while True:
            self.refresh()
            missing = {key for key in keys if key not in self}
            if not missing or time.monotonic() >= end:
                return missing
            time.sleep(min(LOOK_AGAIN_S, patience_s))

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
    def shard_count(self) -> int:
        """How many shards are known here."""
        self._prepare()
        return len(self._shards)

    @property
    def bytes_used(self) -> int:
        """What the data of all shards take that are known here."""
        self._prepare()
        return sum(self._shards.values())

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("folder", "shard_bytes", "shard_seconds", "read_timeout_s")}

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
            self._bounded(partial(self.folder.mkdir, parents=True, exist_ok=True))
            self._bounded(partial(remove_abandoned, self.folder))
        except OSError as error:
            self._process = None
            raise UserError(
                f"cannot make the cache {self.folder} ({error.strerror or error}): choose another --cache"
            ) from error
        self._read_folder()

    def _read_folder(self) -> None:
        try:
            there = self._bounded(partial(shard_names, self.folder))
        except OSError as error:
            raise UserError(f"cannot read the cache {self.folder} ({error.strerror or error})") from error
        gone = self._shards.keys() - there
        if gone:
            self._drop(gone)
        self._shards = {shard: size for shard, size in self._shards.items() if shard not in gone}
        for shard in sorted(there - self._shards.keys()):
            try:
                self._add(self._bounded(partial(read_index, self.folder, shard)))
            except TimeoutError as error:
                raise UserError(f"cannot read the cache {self.folder} ({shard + INDEX} {error})") from error
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

    def _read(self, key: str, entry: Entry) -> dict[str, Tensor]:
        """The tensors of an entry. The shards read last stay open. Raises DamagedShard, OSError."""
        shard, file_bytes, known = entry.shard, self._shards[entry.shard], self._open_shards.get(entry.shard)

        def read() -> tuple[Any, dict[str, Tensor] | DamagedShard]:
            check_size(self.folder, shard, file_bytes)
            data = known if known is not None else open_shard(self.folder, shard)
            try:
                return data, read_entry(data, key, entry)
            except DamagedShard as error:
                return data, error

        try:
            data, found = self._bounded(read)
        except (DamagedShard, OSError):
            self._open_shards.pop(shard, None)
            raise
        self._open_shards[shard] = data
        self._open_shards.move_to_end(shard)
        if len(self._open_shards) > OPEN_SHARDS:
            self._open_shards.popitem(last=False)
        if isinstance(found, DamagedShard):
            raise found
        return found

    def _bounded(self, function: Callable[[], T]) -> T:
        """What `function` gives or raises; TimeoutError, an OSError, where storage keeps it waiting for too long."""
        if self.read_timeout_s is None:
            return function()
        try:
            return within(self.read_timeout_s, function)
        except UnreadableVideo as error:
            text = f"gave no answer within {self.read_timeout_s:g} s (data.params.read_timeout_s)"
            raise TimeoutError(text) from error
