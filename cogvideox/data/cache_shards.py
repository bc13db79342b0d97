"""The files of the cache: `<name>.safetensors` with tensors of many entries, and `<name>.json` that says which.

Both are written aside, synced and renamed, the index last: what has an index is whole. A shard is never changed
afterwards. Its index gives each entry a checksum of its key and of its tensors' names, types, shapes and bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cogvideox.checkpoint.durable import sync
from cogvideox.errors import UserError

DATA, INDEX, PARTIAL, DAMAGED = ".safetensors", ".json", ".partial", ".damaged"
EVERYTHING = "*"  # in a list of damaged entries: the whole shard
ABANDONED_AFTER_S = 24 * 3600.0
MOST_HEADER_BYTES = 100_000_000  # safetensors reads no longer ones
FORMAT = 1
_NAME = re.compile(r"[0-9a-f]{32}")
_LEFT_OVER = re.compile(rf"[0-9a-f]{{32}}({re.escape(DATA)}|{re.escape(INDEX)})({re.escape(PARTIAL)})?")


class DamagedShard(Exception):
    """A shard, or an entry of it, is not what was written. The text is the reason."""


class Entry(NamedTuple):
    """Where a key's tensors lie, and what they must be."""

    shard: str
    checksum: str
    names: tuple[str, ...]
    bytes: int


class Shard(NamedTuple):
    """A finished shard: its name, the bytes of its data file, and its entries by key."""

    name: str
    file_bytes: int
    entries: dict[str, Entry]


def shard_names(folder: Path) -> set[str]:
    """The shards of a folder that are finished."""
    names = (Path(each.name) for each in os.scandir(folder))
    return {name.stem for name in names if name.suffix == INDEX and _NAME.fullmatch(name.stem)}


def write_shard(folder: Path, entries: Mapping[str, Mapping[str, Tensor]]) -> Shard:
    """Write `entries` (tensors on the CPU) as a shard of its own. UserError: it cannot be written."""
    name = uuid.uuid4().hex
    data, index = folder / (name + DATA), folder / (name + INDEX)
    written = {key: _entry_of(name, key, tensors) for key, tensors in entries.items()}
    parts = [Path(f"{data}{PARTIAL}"), Path(f"{index}{PARTIAL}")]
    try:
        save_file({f"{key}/{each}": tensors[each] for key, tensors in entries.items() for each in tensors}, parts[0])
        file_bytes = parts[0].stat().st_size
        described = {key: _described(written[key], tensors) for key, tensors in entries.items()}
        text = json.dumps({"format": FORMAT, "file_bytes": file_bytes, "entries": described})
        parts[1].write_text(text, encoding="utf-8")
        parts[0].chmod(parts[1].stat().st_mode & 0o777)  # safetensors lets no other user read what it writes
        for part, final in zip(parts, (data, index), strict=True):
            sync(part)
            part.rename(final)
            sync(folder)
    except (OSError, SafetensorError) as error:
        for part in parts:
            part.unlink(missing_ok=True)
        raise UserError(
            f"cannot write to the cache {folder} ({error}): make room or access there, or choose another --cache"
        ) from error
    return Shard(name, file_bytes, written)


def read_index(folder: Path, name: str) -> Shard:
    """A finished shard without those of its entries that are known to be damaged.

    Raises DamagedShard: index or data are not as they were written, as far as can be told without reading the data;
    OSError: they cannot be read.
    """
    text, found = (folder / (name + INDEX)).read_bytes(), (folder / (name + DATA)).stat().st_size
    try:
        description = json.loads(text)
        entries = {str(key): _entry_from(name, each) for key, each in description["entries"].items()}
        wanted = description["file_bytes"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedShard(f"has a damaged index ({error!r})") from error
    if description.get("format") != FORMAT:
        raise DamagedShard(f"is of format {description.get('format')!r}, not {FORMAT}")
    if wanted != found:
        raise DamagedShard(f"has {found:,} bytes, not {wanted!r}")
    damaged = _known_damage(folder, name)
    if EVERYTHING in damaged:
        entries = {}
    return Shard(name, found, {key: each for key, each in entries.items() if key not in damaged})


def check_size(folder: Path, name: str, file_bytes: int) -> None:
    """Raises DamagedShard: a shard's data have another size than `file_bytes`; OSError: they are gone.

    To be called before each access to what is mapped: past the end of a file that was cut, that ends the process.
    """
    found = (folder / (name + DATA)).stat().st_size
    if found != file_bytes:
        raise DamagedShard(f"has {found:,} bytes, not {file_bytes:,}")


def open_shard(folder: Path, name: str) -> Any:
    """A shard's data, mapped into memory. Raises DamagedShard."""
    path = folder / (name + DATA)
    # Storage that hangs is waited for here, where other threads go on, and not within safetensors, where they do not.
    with path.open("rb") as file:
        file.read(min(int.from_bytes(file.read(8), "little"), MOST_HEADER_BYTES))
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise DamagedShard(f"does not open ({error})") from error


def read_entry(data: Any, key: str, entry: Entry) -> dict[str, Tensor]:
    """The tensors of an entry, copied out of an open shard. Raises DamagedShard: they are not what was written."""
    try:
        tensors = {name: data.get_tensor(f"{key}/{name}").clone() for name in entry.names}
    except (SafetensorError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise DamagedShard(f"entry {key} cannot be read ({error})") from error
    if checksum_of(key, tensors) != entry.checksum:
        raise DamagedShard(f"entry {key} has another checksum than when it was written")
    return tensors


def record_damage(folder: Path, name: str, key: str) -> None:
    """Tell other processes, and later ones, that an entry (or EVERYTHING) of a shard is damaged.

    Nothing happens where the folder cannot be written to: each process then finds out for itself.
    """
    try:
        with (folder / (name + DAMAGED)).open("a", encoding="utf-8") as file:
            file.write(f"{key}\n")
    except OSError:
        return


def remove_abandoned(folder: Path) -> None:
    """Remove what killed writers left behind more than a day ago: files written aside, and data without an index."""
    oldest = time.time() - ABANDONED_AFTER_S
    for each in [each for each in os.scandir(folder) if _LEFT_OVER.fullmatch(each.name)]:
        path = Path(each.path)
        is_partial = path.suffix == PARTIAL or (path.suffix == DATA and not path.with_suffix(INDEX).exists())
        try:
            if is_partial and each.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
        except OSError:
            continue  # gone already, or not ours to remove


def checksum_of(key: str, tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits that decide key, names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([key, name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _entry_of(shard: str, key: str, tensors: Mapping[str, Tensor]) -> Entry:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Entry(shard, checksum_of(key, tensors), tuple(sorted(tensors)), size)


def _described(entry: Entry, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return {"tensors": shapes, "checksum": entry.checksum, "bytes": entry.bytes}


def _entry_from(shard: str, described: Mapping[str, Any]) -> Entry:
    names = tuple(sorted(str(name) for name in described["tensors"]))
    return Entry(shard, str(described["checksum"]), names, int(described["bytes"]))


def _known_damage(folder: Path, name: str) -> set[str]:
    try:
        return set((folder / (name + DAMAGED)).read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return set()
