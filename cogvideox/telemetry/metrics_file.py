"""metrics.jsonl: one JSON object a line, appended, readable after any kind of death."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Value = float | int | str | bool | None
_PLAIN_TYPES = (float, int, str, bool, type(None))


def check_plain(values: Mapping[str, Value]) -> None:
    """Tensors and numpy scalars are the caller's to turn into floats, since that may wait for the device."""
    for key, value in values.items():
        assert type(value) in _PLAIN_TYPES, f"{key}: a plain number or text is wanted, not {type(value).__name__}"


def encode_line(values: Mapping[str, Value]) -> bytes:
    """One object as a line of valid JSON: a float that is not finite becomes null, beside a `<key>_nonfinite` note."""
    check_plain(values)
    plain: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            plain[key] = None
            plain[f"{key}_nonfinite"] = str(value)
        else:
            plain[key] = value
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


class MetricsFile:
    """Appends to `path`; each line reaches the operating system before `write` returns. Raises OSError.

    The file is made at the first line, so that a run that never started leaves none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: FileIO | None = None
        self._end = 0

    @property
    def _file(self) -> FileIO:
        if self._opened is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._end = _drop_torn_end(self._path)
            self._opened = FileIO(self._path, "a")
        return self._opened

    def write(self, values: Mapping[str, Value]) -> None:
        """Append one object: the whole line, or (on a full disk) nothing and an OSError."""
        line = encode_line(values)
        written = 0
        try:
            written = self._file.write(line)
        finally:
            if written != len(line):
                self._file.truncate(self._end)
        if written != len(line):
            raise OSError(f"{self._file.name}: only {written} of {len(line)} bytes could be written")
        self._end += written

    def void_after(self, iteration: int) -> None:
        """Move lines of later iterations to `<name>.voided.jsonl`: the run goes on from `iteration`. Raises OSError."""
        if not self._path.exists():
            return
        self.close()
        self._opened = None
        _drop_torn_end(self._path)
        lines = self._path.read_bytes().splitlines(keepends=True)
        voided = [line for line in lines if _iteration_of(line) > iteration]
        if not voided:
            return
        with self._path.with_suffix(".voided.jsonl").open("ab") as file:
            file.writelines(voided)
        aside = self._path.with_suffix(".incomplete")
        with aside.open("wb") as file:
            file.writelines(line for line in lines if _iteration_of(line) <= iteration)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._opened is not None:
            self._opened.close()


def _iteration_of(line: bytes) -> int:
    found = _decode(line) or {}
    iteration = found.get("iteration")
    return iteration if isinstance(iteration, int) else -1


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file in order of writing. A torn last line is skipped, any other bad one also named."""
    lines = path.read_bytes().split(b"\n")
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        found = _decode(line)
        if found is not None:
            objects.append(found)
        elif line.strip() and number < len(lines):
            logger.warning("%s, line %d is not a JSON object: skipped", path, number)
    return objects


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _drop_torn_end(path: Path) -> int:
    """Make `path` end with a whole line, so that an append starts a new one. Returns its size in bytes."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole == len(data):
        return whole
    if _decode(data[whole:]) is not None:
        with path.open("ab") as file:
            file.write(b"\n")
        return len(data) + 1
    os.truncate(path, whole)
    return whole
