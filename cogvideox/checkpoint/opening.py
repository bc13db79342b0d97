"""What a weight file or folder holds, found by looking: which network, under whose names, in how many pieces."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cogvideox.checkpoint.lora_names import is_peft, is_sat_adapter
from cogvideox.checkpoint.naming import NETWORK_PREFIX, OTHER_PREFIXES, VAE_PREFIX, is_diffusers_transformer
from cogvideox.checkpoint.reading import read_metadata, read_state_dict
from cogvideox.checkpoint.vae_names import is_diffusers_vae
from cogvideox.errors import UserError

Kind = Literal["transformer", "VAE", "adapters"]
Layout = Literal["SAT", "diffusers", "PEFT"]


@dataclass(frozen=True)
class Weights:
    """Mapped weights. `shards`: their state dicts, one for each model parallel rank that they are cut for, without the
    prefix of the network. `left_out`: names of other networks in the same file. `base`: where the weights are that
    adapters go with, if the file says so. `averaged`: how many were taken from the running average.
    """

    path: Path
    kind: Kind
    layout: Layout
    shards: tuple[dict[str, Tensor], ...]
    left_out: tuple[str, ...] = ()
    base: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    averaged: int = 0

    def beside(self, name: str) -> Path | None:
        """The file `name` next to the weights or, for a single checkpoint of a run, in the run's folder."""
        folder = self.path if self.path.is_dir() else self.path.parent
        folders = [folder] if (folder / "latest").is_file() else [folder, folder.parent]
        return next((path / name for path in folders if (path / name).is_file()), None)


def open_weights(path: str | Path, ema: bool = False) -> Weights:
    """Look at `path`: a SAT folder, a diffusers component's folder, a VAE or LoRA file, any single weight file.

    `ema` takes the running average where one was kept. UserError: it holds none of these, or no average.
    """
    path = Path(path)
    files = rank_files(path)
    states = [read_state_dict(file) for file in files]
    averaged = 0
    if ema:
        averages = [_average_of(file) for file in files]
        averaged = len(averages[0])
        states = [_replaced(state, average, path) for state, average in zip(states, averages, strict=True)]
    kind, layout = _recognize(states[0], path)
    shards = tuple(_own(state, kind) for state in states)
    left_out = tuple(name for name in states[0] if kind != "VAE" and name.startswith(OTHER_PREFIXES))
    base, metadata = noted_base(files[0]), read_metadata(files[0])
    return Weights(path, kind, layout, shards, left_out, base, metadata, averaged)


def rank_files(path: Path) -> list[Path]:
    """The files that hold `path`'s weights: SAT's, one for each model parallel rank, or `path` itself."""
    if not path.is_dir():
        return [path]
    latest = path / "latest"
    folder = path / latest.read_text(encoding="utf-8").strip() if latest.is_file() else path
    files = sorted(folder.glob("mp_rank_*_model_states.pt"))
    return files or [path]  # reading it says what is missing


def _average_of(file: Path) -> dict[str, Tensor]:
    """Our runs keep the average beside the weights, the reference in a folder of its own."""
    candidates = [
        file.with_name(file.name.replace("model_states", "ema_states")),
        file.parent.with_name(f"{file.parent.name}-ema") / file.name,
    ]
    for candidate in candidates:
        if candidate != file and candidate.is_file():
            return read_state_dict(candidate)
    raise UserError(
        f"there are no averaged weights of {file}: looked for {candidates[0].name} beside it and for "
        f"{candidates[1].parent.name}/. A run keeps them with deepspeed.optimizer.type sat.ops.FusedEmaAdam (--ema)"
    )


def _replaced(state: Mapping[str, Tensor], average: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state` with the averaged weights in place of their own."""
    unknown = [name for name in average if name not in state or average[name].shape != state[name].shape]
    if unknown:
        raise UserError(f"{path}: {len(unknown)} averaged weights have no counterpart of their shape: {unknown[0]}")
    return {**state, **average}


def _recognize(state: Mapping[str, Tensor], path: Path) -> tuple[Kind, Layout]:
    names = [name.removeprefix(NETWORK_PREFIX) for name in state]
    if is_peft(names):
        return "adapters", "PEFT"
    if is_diffusers_transformer(names):
        return "transformer", "diffusers"
    if any(name.startswith("transformer.layers.") for name in names):
        own = [name for name in names if not name.startswith(OTHER_PREFIXES)]
        return ("adapters" if all(is_sat_adapter(name) for name in own) else "transformer"), "SAT"
    names = [name.removeprefix(VAE_PREFIX) for name in names]
    if is_diffusers_vae(names):
        return "VAE", "diffusers"
    if any(name.startswith(("encoder.down.", "decoder.up.")) for name in names):
        return "VAE", "SAT"
    some = ", ".join(sorted(names)[:3])
    raise UserError(f"{path} holds neither a CogVideoX transformer nor its VAE nor LoRA adapters, but: {some}")


def _own(state: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    if kind == "VAE":
        return {name.removeprefix(VAE_PREFIX): tensor for name, tensor in state.items()}
    bare = {name.removeprefix(NETWORK_PREFIX): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in bare.items() if not name.startswith(OTHER_PREFIXES)}


def noted_base(file: Path) -> Path | None:
    """The weights that a checkpoint of adapters alone was trained on, as our own checkpoints note them."""
    if file.suffix != ".pt":
        return None
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError):
        return None  # `read_state_dict` says what is wrong with it
    base = content.get("base_weights") if isinstance(content, dict) else None
    return Path(base) if isinstance(base, str) and content.get("adapters_only") else None
