"""Where drawn clips go: `OUT/007-a-red-kite/000.mp4`, and beside each a JSON file with all that decided it.

The JSON file is written first and the clip after it, each whole or not at all: a clip with its JSON is complete.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogvideox.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SLUG_LENGTH = 48
# In a record, but without influence on the clip.
NOT_DECISIVE = ("versions", "config_files", "device")


def sample_path(folder: Path, prompt_number: int, text: str, sample_number: int, suffix: str) -> Path:
    """The file of one sample of one prompt, both counted from 0."""
    return folder / f"{prompt_number:03d}-{slug(text)}" / f"{sample_number:03d}{suffix}"


def slug(text: str) -> str:
    """A prompt as part of a file name: its first words in lower case with dashes between, at most `SLUG_LENGTH`."""
    words = re.sub(r"[\W_]+", "-", text.lower()).strip("-")
    if len(words) > SLUG_LENGTH:
        words = words[:SLUG_LENGTH].rpartition("-")[0] or words[:SLUG_LENGTH]
    return words or "no-text"


def is_complete(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether the clip `path` is there, drawn with the settings of `record`.

    Raises UserError where it is there with other settings, or without a record of them.
    """
    if not path.exists():
        return False
    remedy = "choose another --output-dir, or replace it with --overwrite"
    try:
        found = dict(json.loads(record_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(
            f"{path} is there already, and no {record_path(path).name} says how it was drawn: {remedy}"
        ) from None
    wanted = json.loads(json.dumps(record))
    different = [key for key in wanted if key not in NOT_DECISIVE and found.get(key) != wanted[key]]
    if different:
        shown = ", ".join(f"{key} {found.get(key)!r}, now {wanted[key]!r}" for key in different[:3])
        raise UserError(f"{path} is there already, drawn with other settings ({shown}): {remedy}")
    return True


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the JSON file beside the clip `path`, and take away a clip that is there: its record would be wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.json")
    partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, record_path(path))


def record_path(path: Path) -> Path:
    """The JSON file beside a clip."""
    return path.with_suffix(".json")


def save_latents(path: Path, latents: Tensor) -> None:
    """Save one clip's latents (T, C, h, w), on the CPU, whole or not at all."""
    import torch  # only here: the rest is needed before torch is

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    torch.save(latents.clone(), partial)
    os.replace(partial, path)
