"""Test manifests, and what `find_records` makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cogvideox.data.records import Record, find_records
from cogvideox.errors import UserError


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def captions(records: Sequence[Record]) -> dict[str, str | None]:
    return {record.name: record.caption for record in records}


def refusal(place: Path, format: str = "auto") -> str:
    with pytest.raises(UserError) as caught:
        find_records(place, format)
    return str(caught.value)


def write_table(path: Path, columns: dict[str, list[object]]) -> Path:
    """The same table in the form that the file's ending names."""
    names, rows = list(columns), list(zip(*columns.values(), strict=True))
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path)
        return path
    if path.suffix == ".jsonl":
        return write_rows(path, [dict(zip(names, row, strict=True)) for row in rows])
    quoted = ['"' + str(cell).replace('"', '""') + '"' if cell is not None else "" for row in rows for cell in row]
    lines = [",".join(quoted[at : at + len(names)]) for at in range(0, len(quoted), len(names))]
    return write(path, "\ufeff" + "\r\n".join([",".join(names), *lines]) + "\r\n")
