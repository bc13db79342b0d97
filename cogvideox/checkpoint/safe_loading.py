"""Torch files read without running code from them: what their pickles may ask for, and what they may unpack to."""

from __future__ import annotations

import importlib
import json
import pickle
import re
import shlex
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from cogvideox.errors import UserError


class Unread:
    """In the place of numpy's arrays and numbers in SAT's files (the random state, a scheduler's), which nobody needs.

    numpy's own functions are not let in: what they take from a pickle can make one type of memory pass for another.
    """

    def __init__(self, *_: Any) -> None:
        """Whatever it is made of is left out."""

    def __setstate__(self, _: Any) -> None:
        """And so is its content."""


# By the names of numpy 1 and 2.
_ARRAYS: list[Any] = [
    (Unread, name)
    for name in (
        "numpy.ndarray",
        "numpy.dtype",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    )
]
# What DeepSpeed pickles beside tensors: let in where a file asks for it, since importing DeepSpeed takes seconds.
_DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_ASKED = re.compile(r"(?:GLOBAL|global|class|function)\s+`?([A-Za-z_][\w.]*\.\w+)")
MOST_NAMED = 3


def load_safely(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """The content of a torch file: tensors, plain values, DeepSpeed's loss scalers; `Unread` for numpy's arrays.

    UserError: it asks for anything else, which would run code; it is damaged; it would unpack to more than it has
    bytes.
    """
    path = Path(path)
    try:
        if fault := fault_of_archive(path):
            raise UserError(f"{path} {fault}: save it with torch.save, which does not compress")
        is_zip = zipfile.is_zipfile(path)
        asked = _asked_for(path) if is_zip else []
        let_in = [*_ARRAYS, *map(_named, _DEEPSPEED)] if set(asked) & set(_DEEPSPEED) else _ARRAYS
        with torch.serialization.safe_globals(let_in):
            # The format before torch 1.6, no zip archive, cannot be mapped into memory.
            return torch.load(path, map_location=map_location, mmap=mmap and is_zip, weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(needs_code(path, error)) from error
    except Exception as error:  # a damaged file leads torch's reader anywhere
        raise UserError(
            f"{path}: not a readable torch file ({_first_line(error)}); copy or download it again"
        ) from error


def fault_of_archive(path: Path) -> str | None:
    """Why a zip archive is not to be unpacked, by its directory alone; None for what torch.save writes, and no zip."""
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # torch says what is wrong with it
    if any(each.compress_type != zipfile.ZIP_STORED for each in records):
        return "is compressed, so that it may unpack to any size"
    wanted, found = sum(each.file_size for each in records), path.stat().st_size
    return f"would unpack to {wanted:,} bytes and has {found:,}" if wanted > found else None


def needs_code(path: Path, error: Exception) -> str:
    """What to say of a file that asks for more than data: what it asks for, and how to make plain weights of it."""
    asked = _asked_for(path) or sorted(set(_ASKED.findall(str(error))))
    what = f"it asks for {_listed(asked)}" if asked else f"or it is no torch file ({_first_line(error)})"
    plain = path.with_suffix(".plain.pt")
    code = (
        f'import torch; s = torch.load({json.dumps(str(path))}, map_location="cpu", weights_only=False); '
        's = s.get("state_dict", s.get("module", s)); '
        f"torch.save({{k: v for k, v in s.items() if torch.is_tensor(v)}}, {json.dumps(str(plain))})"
    )
    return (
        f"{path}: refused, because reading it would run code from the file: {what}. If you trust whoever made it, save "
        f"its tensors alone once:\n  python -c {shlex.quote(code)}"
    )


def _asked_for(path: Path) -> list[str]:
    """What a torch file names beyond what is always let in, without loading it; nothing where that cannot be told."""
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # a damaged pickle leads its reader anywhere, and loading it tells
        return []


def _named(name: str) -> Any:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
