"""Put a finished file or folder in its place, so that a reader sees the whole of it or nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cogvideox.errors import UserError

# What may be replaced: the files that are written here, by name.
OURS = re.compile(
    r"latest|config\.json|3d-vae\.pt|mp_rank_00_model_states\.pt|pytorch_lora_weights\.safetensors"
    r"|diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors|diffusion_pytorch_model\.safetensors\.index\.json"
)


@contextmanager
def placed(target: Path, replace: bool, bytes_wanted: int) -> Iterator[Path]:
    """A temporary path beside `target` to write to, a file or a folder, which gets its name at the end.

    Where the body fails it is removed, and what stood at `target` stays. UserError, before the body runs: `target`
    exists and is not to be replaced, or holds more than weights; there is not enough room.
    """
    check_free(target, replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if bytes_wanted > free:
        raise UserError(f"{target.parent} has {free / 1e9:.1f} GB free, {bytes_wanted / 1e9:.1f} GB are to be written")
    incomplete = target.with_name(f"{target.name}.incomplete.{os.getpid()}")
    try:
        yield incomplete
        _sync(incomplete)
        _exchange(incomplete, target)
    finally:
        _remove(incomplete)


def check_free(target: Path, replace: bool) -> None:
    """UserError: something that may not be replaced stands at `target`."""
    empty = target.is_dir() and not any(target.iterdir())
    if not target.exists() or empty:
        return
    if not replace:
        raise UserError(f"{target} is there already: give another name, or --force to replace it")
    others = [path for path in target.rglob("*") if path.is_file() and not OURS.fullmatch(path.name)]
    if others:
        raise UserError(f"{target} is not replaced: it holds other things than converted weights ({others[0].name})")


def _exchange(new: Path, target: Path) -> None:
    old = target.with_name(f"{target.name}.replaced.{os.getpid()}")
    if target.exists():
        target.rename(old)
    new.rename(target)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
