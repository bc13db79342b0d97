"""Reading weight files of any published form, and loading them with every difference reported at once."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cogvideox.checkpoint.adapters import peft_scale
from cogvideox.checkpoint.first_bytes import fault_of_file
from cogvideox.checkpoint.lora_names import is_peft, scaled_b
from cogvideox.checkpoint.pointers import read_latest, read_shards
from cogvideox.checkpoint.safe_loading import load_safely
from cogvideox.errors import UserError

PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin", ".pth")
# In a folder without `latest` or an index: diffusers' file, SAT's, the published VAE's, and older ones of the others.
PATTERNS = (
    "*.safetensors",
    "mp_rank_*_model_states.pt",
    "3d-vae.pt",
    "diffusion_pytorch_model*.bin",
    "adapter_model.bin",
)
MAX_LISTED = 8
MAX_WRAPPINGS = 4  # of `state_dict` and `module`; a file may hold itself


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Weights by name, on the CPU, from a SAT folder, a diffusers folder, a torch file or a safetensors file.

    Nothing in the file is run as code. UserError: missing, unreadable, or not such a file.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        state |= _read_file(file)
    return state


def weight_files(path: str | Path) -> list[Path]:
    """The files with the weights of `path`: itself, or those of a folder. UserError: missing, or no such folder."""
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such weight file or folder: correct the path, or fetch it (tools/fetch_weights.py)"
        )
    return _files_of_folder(path) if path.is_dir() else [path]


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES:
        return _read_torch(path)
    raise UserError(
        f"{path}: weights are read from .safetensors and {', '.join(PICKLE_SUFFIXES)} files, or a folder of them"
    )


def _files_of_folder(folder: Path) -> list[Path]:
    latest = folder / "latest"
    if latest.is_file():
        step = read_latest(latest)
        file = folder / step / "mp_rank_00_model_states.pt"
        if not file.is_file():
            raise UserError(
                f"{latest} names {step!r}, but there is no {file}: "
                "copy that folder too, or write the name of one that is there into it"
            )
        _refuse_part(file)
        return [file]
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        return _shards_of(indices[0])
    for pattern in PATTERNS:
        files = sorted(folder.glob(pattern))
        if files:
            _refuse_part(files[0])
        if len(files) == 1:
            return files
        if files:
            raise UserError(
                f"{folder} holds {len(files)} weight files ({_listed([f.name for f in files])}): name one of them"
            )
    inside = [name for name in ("transformer", "vae") if (folder / name).is_dir()]
    if inside:
        raise UserError(f"{folder} is a whole package: name {' or '.join(str(folder / name) for name in inside)}")
    raise UserError(
        f"{folder} holds no weights: neither `latest` with <n>/mp_rank_00_model_states.pt (SAT) "
        f"nor diffusion_pytorch_model.safetensors or its index (diffusers); correct the path"
    )


def _refuse_part(file: Path) -> None:
    """A file that is one of several, for as many model parallel ranks, holds a part of each layer only."""
    others = sorted(file.parent.glob("mp_rank_*_model_states.pt"))
    if file in others and len(others) > 1:
        raise UserError(
            f"{file.parent} is cut for {len(others)} model parallel ranks: make one file of it with\n"
            f"  python tools/convert_checkpoint.py {shlex.quote(str(file.parent))} OUTPUT --to sat"
        )


def _shards_of(index: Path) -> list[Path]:
    names = read_shards(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index} names shards that are not there: fetch them too ({_listed(missing)})")
    return [index.parent / name for name in names]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors, adapters as `_counting_as_one`."""
    _refuse_other_files(path)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy or download it again") from error
    return _counting_as_one(state, path)


def _counting_as_one(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same, with alpha / r of PEFT's adapters, from where the file or what lies beside it has it, in their B."""
    if not is_peft(state):
        return state
    scale = peft_scale(state, read_metadata(path), path)
    return {name: scaled_b(name, tensor, scale) for name, tensor in state.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The text that a safetensors file, or the only one in a folder, has in its header; of other files none."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or files[0].suffix != ".safetensors":
        return {}
    with safe_open(files[0], framework="pt") as file:
        return dict(file.metadata() or {})


def _read_torch(path: Path) -> dict[str, Tensor]:
    _refuse_other_files(path)
    content = load_safely(path, mmap=True)
    return _counting_as_one(_tensors(content, path), path)


def _refuse_other_files(path: Path) -> None:
    try:
        fault = fault_of_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if fault:
        raise UserError(f"{path} {fault}. Get the file itself (`git lfs pull`, `hf download`, tools/fetch_weights.py)")


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The named tensors in a torch file, out of their `state_dict` or `module` wrapping."""
    for _ in range(MAX_WRAPPINGS):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in ("state_dict", "module") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise UserError(
            f"{path}: holds no named tensors (a {type(content).__name__}), so it is no weight file: name another"
        )
    return state


@dataclass(frozen=True)
class LoadReport:
    """What loading did: how many tensors were taken, and the names that were allowed to differ."""

    loaded: int
    ignored: tuple[str, ...]
    missing: tuple[str, ...]


def load_strictly(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    where: str,
    ignore_prefixes: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> LoadReport:
    """Copy `state_dict` into `module`, which it must match in names and shapes.

    Names that start with one of `ignore_prefixes` are left out; names of the module that start with one of
    `allow_missing` may be absent. `where` names the source in the one UserError that lists every difference.
    """
    ignored = tuple(name for name in state_dict if name.startswith(tuple(ignore_prefixes)))
    given = {name: tensor for name, tensor in state_dict.items() if name not in set(ignored)}
    wanted = module.state_dict()
    absent = [name for name in wanted if name not in given]
    missing = [name for name in absent if not name.startswith(tuple(allow_missing))]
    unexpected = [name for name in given if name not in wanted]
    reshaped = [
        f"{name} {tuple(given[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    lines = [f"  {len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if lines:
        raise UserError(
            f"{where} does not fit the {type(module).__name__} that the config describes:\n" + "\n".join(lines)
        )
    module.load_state_dict(given, strict=False)
    return LoadReport(len(given), ignored, tuple(absent))


def _listed(names: Sequence[str]) -> str:
    """At most eight names, and how many more there are."""
    shown = ", ".join(names[:MAX_LISTED])
    return shown if len(names) <= MAX_LISTED else f"{shown}, and {len(names) - MAX_LISTED} more"
