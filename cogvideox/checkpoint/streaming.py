"""Write weight files one tensor at a time: what is in memory is that tensor, not the file.

A file is planned first, names, shapes and types of all its tensors, then filled.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
HEADER_MULTIPLE = 8  # safetensors pads its header to it
RECORD_MULTIPLE = 64  # torch.save lets every tensor's bytes start at a multiple of it
ZIP_HEADER, ZIP64_EXTRA = 30, 20  # bytes before the name, and of the field that `force_zip64` adds
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # as torch.save: equal content, equal file


@dataclass(frozen=True)
class Planned:
    """A tensor to come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Filled:
    """Checks that what comes is what was planned, each once and all of them."""

    def __init__(self, plan: Iterable[Planned]) -> None:
        self.left = {planned.name: planned for planned in plan}

    def take(self, name: str, tensor: Tensor) -> memoryview:
        planned = self.left.pop(name)
        assert (tuple(tensor.shape), tensor.dtype) == (planned.shape, planned.dtype), f"{name} is not as planned"
        return _bytes(tensor)

    def finish(self) -> None:
        assert not self.left, f"{len(self.left)} planned tensors did not come: {next(iter(self.left))}"


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def write_safetensors(
    path: Path, plan: Sequence[Planned], tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> None:
    """A safetensors file of the planned tensors, which may come in any order. Format: the safetensors README."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for planned in sorted(plan, key=lambda each: -each.dtype.itemsize):  # so that all are aligned
        end = start + planned.bytes
        kind = SAFETENSORS_TYPES[planned.dtype]
        header[planned.name] = {"dtype": kind, "shape": list(planned.shape), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % HEADER_MULTIPLE)
    filled = _Filled(plan)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        data = file.tell()
        file.truncate(data + start)
        for name, tensor in tensors:
            file.seek(data + header[name]["data_offsets"][0])
            file.write(filled.take(name, tensor))
    filled.finish()


@dataclass(frozen=True)
class _Storage:
    """What torch's format keeps of a tensor beside its bytes: which record they are in."""

    kind: type
    record: int
    elements: int


class _Pickler(pickle.Pickler):
    """Writes planned tensors as torch.save writes tensors: a storage named by its record, and a view of the whole."""

    def __init__(self, file: IO[bytes], records: Mapping[str, int]) -> None:
        super().__init__(file, protocol=2)
        self._records = records

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", obj.kind, str(obj.record), "cpu", obj.elements)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Planned):
            return NotImplemented
        storage = _Storage(STORAGES[obj.dtype], self._records[obj.name], math.prod(obj.shape))
        strides = tuple(math.prod(obj.shape[i + 1 :]) for i in range(len(obj.shape)))
        return torch._utils._rebuild_tensor_v2, (storage, 0, obj.shape, strides, False, OrderedDict())


def write_torch(
    path: Path,
    plan: Sequence[Planned],
    tensors: Iterable[tuple[str, Tensor]],
    wrapping: str,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """What `torch.save({wrapping: {name: tensor, …}, **beside}, path)` writes, tensor by tensor.

    The format of torch since 1.6: a zip archive of one pickle and one record for each storage.
    """
    records = {planned.name: record for record, planned in enumerate(plan)}
    filled = _Filled(plan)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with _record(archive, "data.pkl") as file:
            _Pickler(file, records).dump({wrapping: {each.name: each for each in plan}, **(beside or {})})
        for name, content in (("byteorder", b"little"), ("version", b"3\n")):
            with _record(archive, name) as file:
                file.write(content)
        for name, tensor in tensors:
            with _record(archive, f"data/{records[name]}") as file:
                file.write(filled.take(name, tensor))
    filled.finish()


def _record(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A new record, open for writing, whose bytes start at a multiple of 64."""
    info = zipfile.ZipInfo(f"archive/{name}", FIXED_TIME)
    start = archive.start_dir + ZIP_HEADER + len(info.filename) + ZIP64_EXTRA
    padding = -(start + 4) % RECORD_MULTIPLE
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return archive.open(info, "w", force_zip64=True)


def in_shards(plan: Sequence[Planned], max_bytes: int) -> Iterator[list[Planned]]:
    """The plan in order, cut where a file would grow beyond `max_bytes`; a larger tensor has a file of its own."""
    shard: list[Planned] = []
    size = 0
    for planned in plan:
        if shard and size + planned.bytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(planned)
        size += planned.bytes
    if shard or not plan:
        yield shard
