"""Finding a T5 encoder and its tokenizer on this disk. Nothing is downloaded here."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from cogvideox.checkpoint.pointers import read_shards
from cogvideox.errors import UserError

TOKENIZER_FILES = ("spiece.model", "tokenizer.json")
WHOLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ATTENTION = (None, "eager", "sdpa", "flash_attention_2")  # what transformers has itself
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

# The text encoder is the same for all CogVideoX models; this repository's copy is the smallest download (float16).
FETCH = 'hf download zai-org/CogVideoX-2b --include "text_encoder/*" --include "tokenizer/*" --local-dir {folder}'


@dataclass(frozen=True)
class T5Files:
    """The folders to load from: one and the same, or diffusers' `text_encoder` and `tokenizer`."""

    encoder: Path
    tokenizer: Path


def find_t5(model_dir: str, cache_dir: str | None = None) -> T5Files:
    """The complete T5 under `model_dir`: a folder, a diffusers folder, or a Hub name that is in the local cache.

    Raises UserError saying what is missing where, and the command that fetches it.
    """
    folder = Path(model_dir).expanduser()
    if not folder.exists():
        cached = _cached_snapshot(model_dir, cache_dir)
        if cached is None:
            raise _missing(model_dir, folder, "there is no such folder" + _and_cache(model_dir))
        folder = cached
    if not folder.is_dir():
        raise _missing(model_dir, folder, "it is not a folder")
    files = T5Files(folder, folder)
    if (folder / "text_encoder").is_dir():
        files = T5Files(folder / "text_encoder", folder / "tokenizer")
    lacks = _lacking(files)
    if lacks:
        raise _missing(model_dir, folder, "it lacks " + " and ".join(lacks))
    return files


def _lacking(files: T5Files) -> list[str]:
    lacks = []
    if not (files.encoder / "config.json").is_file():
        lacks.append(f"{files.encoder / 'config.json'}")
    lacks += _lacking_weights(files.encoder)
    if not any((files.tokenizer / name).is_file() for name in TOKENIZER_FILES):
        lacks.append(f"the tokenizer ({' or '.join(TOKENIZER_FILES)} in {files.tokenizer})")
    return lacks


def check_config(path: Path) -> None:
    """Raise UserError where a config names an attention kernel: transformers would fetch it from the hub and run it."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kernels = {key: value for key, value in config.items() if key.endswith("attn_implementation")}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"the config {path} cannot be read ({error}): fetch it again") from error
    for key, value in kernels.items():
        if value not in ATTENTION:
            raise UserError(f"{path}: {key} is {value!r}, which would be fetched and run: take that key out")


def _lacking_weights(folder: Path) -> list[str]:
    if any((folder / name).is_file() for name in WHOLE_WEIGHTS):
        return []
    for name in WEIGHT_INDEXES:
        index = folder / name
        if index.is_file():
            return [str(folder / shard) for shard in read_shards(index) if not (folder / shard).is_file()]
    return [f"the weights ({', '.join(WHOLE_WEIGHTS + WEIGHT_INDEXES[:1])} in {folder})"]


def _cached_snapshot(model_dir: str, cache_dir: str | None) -> Path | None:
    if not _is_hub_name(model_dir):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_dir, cache_dir=cache_dir, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _is_hub_name(model_dir: str) -> bool:
    return model_dir.count("/") <= 1 and not model_dir.startswith(("/", ".", "~"))


def _and_cache(model_dir: str) -> str:
    return " (nor a Hub download of that name in the local cache)" if _is_hub_name(model_dir) else ""


def _missing(model_dir: str, folder: Path, what: str) -> UserError:
    target = model_dir if not _is_hub_name(model_dir) or model_dir.count("/") == 0 else "t5-v1_1-xxl"
    return UserError(
        f"the T5 text encoder is not at `{model_dir}` (model_dir of FrozenT5Embedder; looked in {folder.absolute()}): "
        f"{what}. Fetch it with\n  {FETCH.format(folder=shlex.quote(target))}\nand set model_dir to that folder."
    )
