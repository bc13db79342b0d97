"""The metadata form: a table with a clip a row, as metadata.jsonl, .csv or .parquet, or under a name of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from cogvideox.data.formats.record import Record
from cogvideox.data.formats.rows import Row, record_of
from cogvideox.data.formats.tables import READERS, TableRow, names_of, read_table
from cogvideox.errors import UserError

_logger = logging.getLogger(__name__)

FILE_NAMES = tuple(names_of("metadata"))
SUFFIXES = tuple(READERS)

# First choice first, in each row of its own: the names that collections in use have.
FILE_COLUMNS = ("file", "file_name", "video", "video_path", "path", "image")
CAPTION_COLUMNS = ("caption", "text", "prompt", "txt")
START_COLUMNS = ("start", "start_s")
END_COLUMNS = ("end", "end_s")
WEIGHT_COLUMNS = ("weight",)
COLUMNS = frozenset({*FILE_COLUMNS, *CAPTION_COLUMNS, *START_COLUMNS, *END_COLUMNS, *WEIGHT_COLUMNS})


def read_metadata(place: Path) -> list[Record]:
    """The records of a manifest: `place` itself, or metadata.* in it. Raises UserError: it cannot be used at all."""
    if place.is_file():
        return tell_of_absolute(place, read_manifest(place, place.parent))
    manifests = manifests_in(place)
    if not manifests:
        raise UserError(
            f"the data folder {place} holds no {', '.join(FILE_NAMES)}: write one, or set data.params.format"
        )
    if manifests[1:]:
        _logger.warning("%s: %s is read, %s not", place, manifests[0].name, ", ".join(p.name for p in manifests[1:]))
    return tell_of_absolute(place, read_manifest(manifests[0], place))


def manifests_in(folder: Path) -> list[Path]:
    """The metadata.* of a folder, first choice first."""
    return [path for name in FILE_NAMES if (path := folder / name).is_file()]


def read_manifest(manifest: Path, place: Path) -> list[Record]:
    """A record for each row of the file `manifest`; `place` is the folder that messages name files from.

    Raises UserError: it cannot be read, has no row, or no column of files. A fault in a row goes to its record.
    """
    table = read_table(manifest, COLUMNS)
    columns = ", ".join(table.columns) or "none"
    if not table.rows:
        raise UserError(f"{manifest} has no row (its columns: {columns}): write a clip a row")
    if not any(column in row.values for row in table.rows for column in FILE_COLUMNS):
        raise UserError(
            f"{manifest} has no column of files: its columns are {columns}. Call one of them "
            f"{' or '.join(FILE_COLUMNS)}; data.params.format: folder does without this file"
        )
    return [record_of(_row(row), manifest, place) for row in table.rows]


def tell_of_absolute(place: Path, records: list[Record]) -> list[Record]:
    """Say how many files are named by an absolute path: such a manifest works on this machine only."""
    if count := sum(os.path.isabs(record.name) for record in records):
        _logger.warning("%s: %d of %d files are named by absolute paths", place, count, len(records))
    return records


def _row(row: TableRow) -> Row:
    def first(columns: Sequence[str]) -> object:
        given = (value for column in columns if (value := row.values.get(column)) not in (None, ""))
        return next(given, None)

    return Row(
        row.where,
        file=first(FILE_COLUMNS),
        caption=first(CAPTION_COLUMNS),
        start=first(START_COLUMNS),
        end=first(END_COLUMNS),
        weight=first(WEIGHT_COLUMNS),
        fault=row.fault,
    )
