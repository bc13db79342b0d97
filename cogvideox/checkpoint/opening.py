"""What a weight file or folder holds, found by looking: which network, under whose names, in how many pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from cogvideox.checkpoint.choosing import MODEL_FILES
from cogvideox.checkpoint.loading import checkpoint_folder, read_starting_weights
from cogvideox.checkpoint.lora_names import is_peft, is_sat_adapter
from cogvideox.checkpoint.naming import (
    NETWORK_PREFIX,
    OTHER_PREFIXES,
    VAE_PREFIX,
    is_diffusers_transformer,
    without_prefix,
)
from cogvideox.checkpoint.reading import read_metadata
from cogvideox.checkpoint.vae_names import is_diffusers_vae
from cogvideox.errors import UserError

Kind = Literal["transformer", "VAE", "adapters"]
Layout = Literal["SAT", "diffusers", "PEFT"]


@dataclass(frozen=True)
class Weights:
    """Mapped weights. `shards`: their state dicts, one for each model parallel rank that they are cut for, without the
    prefix of the network. `left_out`: names of other networks in the same file. `base`: where the weights are that
    adapters go with, if the file says so. `averaged`: what was trained is there as its running average.
    """

    path: Path
    kind: Kind
    layout: Layout
    shards: tuple[dict[str, Tensor], ...]
    left_out: tuple[str, ...] = ()
    base: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    averaged: bool = False

    def beside(self, name: str) -> Path | None:
        """The file `name` next to the weights or, for a single checkpoint of a run, in the run's folder."""
        folder = self.path if self.path.is_dir() else self.path.parent
        folders = [folder] if (folder / "latest").is_file() else [folder, folder.parent]
        return next((path / name for path in folders if (path / name).is_file()), None)


def open_weights(path: str | Path, ema: bool = False, part: Literal["vae"] | None = None) -> Weights:
    """Look at `path`: a SAT folder, a diffusers component's folder, a VAE or LoRA file, any single weight file.

    `ema` takes the running average where one was kept; `part` the VAE that a transformer's checkpoint holds besides, of
    which each rank has the whole. UserError: it holds none of these, or no average.
    """
    path = Path(path)
    folder = checkpoint_folder(path.parent if path.is_file() and path.match(MODEL_FILES) else path)
    if folder is None:
        ranks = [read_starting_weights(path, ema=ema)]
    else:
        count = len(list(folder.glob(MODEL_FILES)))
        ranks = [read_starting_weights(folder, rank, count, ema) for rank in range(count)]
    if part == "vae":
        ranks = [replace(ranks[0], state_dict=_vae_of(ranks[0].state_dict, path), base=None)]
    first = ranks[0]
    kind, layout = _recognize(first.state_dict, path)
    shards = tuple(_own(rank.state_dict, kind) for rank in ranks)
    left_out = tuple(name for name in first.state_dict if kind != "VAE" and name.startswith(OTHER_PREFIXES))
    return Weights(path, kind, layout, shards, left_out, first.base, read_metadata(path), ema)


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


def _vae_of(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    vae = {name: tensor for name, tensor in state.items() if name.startswith(VAE_PREFIX)}
    if not vae:
        raise UserError(f"{path} holds no VAE beside its other weights ({VAE_PREFIX}…): name the VAE's own file")
    return vae


def _own(state: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    if kind == "VAE":
        return {name.removeprefix(VAE_PREFIX): tensor for name, tensor in state.items()}
    return without_prefix(state)
