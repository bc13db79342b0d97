"""The form of the Hugging Face `datasets` package's VideoFolder: metadata.* beside the files, split folders above."""

from __future__ import annotations

import logging
from pathlib import Path

from cogvideox.data.formats.folder import walk
from cogvideox.data.formats.metadata import FILE_NAMES, manifests_in, read_manifest, tell_of_absolute
from cogvideox.data.formats.record import Record
from cogvideox.errors import UserError

_logger = logging.getLogger(__name__)

TRAIN_FOLDERS = ("train", "training")


def read_huggingface(place: Path) -> list[Record]:
    """The records of a VideoFolder; of its split `train` alone where it has that. Raises UserError: no metadata.*."""
    split = train_folder(place)
    root = place if split is None else split
    folders = sorted({(root / path).parent for path in walk(root) if path.name in FILE_NAMES})
    manifests = [manifests_in(folder)[0] for folder in folders]
    if not manifests and split is not None:
        # One table above the split folders speaks of all of them.
        manifests = manifests_in(place)[:1]
    if not manifests:
        raise UserError(
            f"the data folder {root} holds no {', '.join(FILE_NAMES)} (subfolders too): "
            "write one, or set data.params.format"
        )
    records = [record for manifest in manifests for record in read_manifest(manifest, place)]
    if split is not None:
        records = [record for record in records if not _is_of_another_split(record, place, split)]
        if not records:
            raise UserError(f"{manifests[0]} names no file in {split.name}/")
        _logger.info("%s: the split %s/ is taken, with %d files", place, split.name, len(records))
    return tell_of_absolute(place, records)


def train_folder(place: Path) -> Path | None:
    """The folder of the training split, where `place` has split folders."""
    return next((path for name in TRAIN_FOLDERS if (path := place / name).is_dir()), None)


def _is_of_another_split(record: Record, place: Path, split: Path) -> bool:
    path = record.path
    return path.is_relative_to(place) and not path.is_relative_to(split) and path.name not in FILE_NAMES


def has_train_metadata(place: Path) -> bool:
    """Whether a look at `place` shows a training split with its metadata."""
    split = train_folder(place)
    return split is not None and bool(manifests_in(split))
