"""Tables as files: JSON lines, CSV and Parquet, row by row, with the place of each row for messages."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError

Values = Mapping[str, object]


@dataclass(frozen=True)
class TableRow:
    """`values` by column, names in lower case; `fault` where the row cannot be read. `where`: "FILE line 7"."""

    where: str
    values: Values
    fault: str | None = None


@dataclass(frozen=True)
class Table:
    """The rows of a file; `columns` are all that it has, as messages show them."""

    columns: tuple[str, ...]
    rows: list[TableRow]


def read_table(path: Path, wanted: frozenset[str]) -> Table:
    """The columns `wanted` (lower case) of a .jsonl, .csv or .parquet file. Raises UserError: not readable at all."""
    try:
        return READERS[path.suffix.lower()](path, wanted)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def _read_jsonl(path: Path, wanted: frozenset[str]) -> Table:
    columns: dict[str, None] = {}
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                found = json.loads(line.decode("utf-8-sig"))
                if not isinstance(found, dict):
                    raise ValueError(f"is a {type(found).__name__}")
            except (ValueError, RecursionError) as error:
                rows.append(TableRow(where, {}, f"is no JSON object ({error})"))
                continue
            columns |= dict.fromkeys(found)
            values = {_key(name): value for name, value in found.items() if _key(name) in wanted}
            rows.append(TableRow(where, values))
    if rows and not columns:
        raise UserError(
            f"no line of {path} is a JSON object with a value: {rows[0].where} {rows[0].fault or 'is empty'}"
        )
    return Table(tuple(columns), rows)


def _read_csv(path: Path, wanted: frozenset[str]) -> Table:
    rows: list[TableRow] = []
    header: list[str] = []
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Strict, so that a quote that is never closed does not swallow the rest of the file.
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            for fields in reader:
                is_blank = not any(field.strip() for field in fields)
                if not header and not is_blank:
                    header = fields
                    _refuse_twins(path, header, wanted)
                elif not is_blank:
                    rows.append(_csv_row(f"{path.name} line {line}", header, fields, wanted))
                line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path} line {line} is no CSV: {error}; a text with quotes doubles them and stands in quotes"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (from line {line} on): save it as such") from error
    return Table(tuple(header), rows)


def _csv_row(where: str, header: list[str], fields: list[str], wanted: frozenset[str]) -> TableRow:
    if any(field.strip() for field in fields[len(header) :]):
        count = f"has {len(fields)} fields for {len(header)} columns"
        return TableRow(where, {}, f"{count}: a text with commas stands in quotes")
    pairs = zip(map(_key, header), fields, strict=False)
    return TableRow(where, {name: value.strip() or None for name, value in pairs if name in wanted})


def _refuse_twins(path: Path, header: list[str], wanted: frozenset[str]) -> None:
    keys = [_key(name) for name in header]
    if twins := sorted({key for key in keys if keys.count(key) > 1} & wanted):
        raise UserError(f"{path} has the column {twins[0]!r} twice: rename one")


def _read_parquet(path: Path, wanted: frozenset[str]) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: Parquet is read by a package that is missing: `pip install pyarrow`") from error
    try:
        with parquet.ParquetFile(path) as file:
            fields = list(file.schema_arrow)
            columns = [field.name for field in fields if _key(field.name) in wanted and _is_plain(pyarrow, field.type)]
            rows: list[TableRow] = []
            _refuse_twins(path, columns, wanted)
            for batch in file.iter_batches(columns=columns):
                first = len(rows) + 1
                rows += [
                    TableRow(f"{path.name} row {first + place}", {_key(name): value for name, value in values.items()})
                    for place, values in enumerate(batch.to_pylist())
                ]
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    shown = (field.name if _is_plain(pyarrow, field.type) else f"{field.name} ({field.type})" for field in fields)
    return Table(tuple(shown), rows)


def _is_plain(pyarrow: Any, kind: Any) -> bool:
    """Whether a column holds texts or numbers, not whole videos: a `datasets` table can have those inside."""
    types = pyarrow.types
    if types.is_list(kind):
        return bool(types.is_string(kind.value_type))
    return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def _key(column: str) -> str:
    return column.strip().lower()


READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def names_of(stem: str) -> Iterator[str]:
    """`stem` with the ending of each kind of table, first choice first."""
    return (stem + suffix for suffix in READERS)
