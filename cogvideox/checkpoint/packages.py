"""The files that converted weights are written as: diffusers' folder, SAT's folder, a VAE file, a LoRA file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from cogvideox.checkpoint.converting import Conversion
from cogvideox.checkpoint.placing import Layout, placed
from cogvideox.checkpoint.streaming import Planned, in_shards, write_safetensors, write_torch

WEIGHTS = "diffusion_pytorch_model"
LORA = "pytorch_lora_weights.safetensors"
SAT_STEP = "1"
SAT_FILE = "mp_rank_00_model_states.pt"
VAE_FILE = "3d-vae.pt"
DIFFUSERS_LAYOUT = Layout(
    rf"config\.json|{WEIGHTS}(-\d{{5}}-of-\d{{5}})?\.safetensors|{WEIGHTS}\.safetensors\.index\.json"
)
SAT_LAYOUT = Layout(rf"latest|{SAT_STEP}/{re.escape(SAT_FILE)}")
VAE_LAYOUT = Layout(r".+\.pt", is_folder=False)
LORA_LAYOUT = Layout(r".+\.safetensors", is_folder=False)
FORMAT = {"format": "pt"}  # diffusers asks for this in the header

# Called around the tensors on their way to the file, as for a progress bar.
Watch = Callable[[Iterator[tuple[str, Tensor]]], Iterable[tuple[str, Tensor]]]


def size(plan: Iterable[Planned]) -> int:
    """Bytes of all tensors."""
    return sum(planned.bytes for planned in plan)


def write_diffusers(
    target: Path,
    conversion: Conversion,
    config: Mapping[str, Any],
    max_shard_bytes: int,
    replace: bool = False,
    watch: Watch = iter,
) -> list[str]:
    """A folder for `from_pretrained`: config.json and the weights, in several files where one would be too large.

    Returns the names of the weight files. UserError: as for `placed`.
    """
    plan = conversion.plan()
    shards = list(in_shards(plan, max_shard_bytes))
    names = [f"{WEIGHTS}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{WEIGHTS}.safetensors"]
    with placed(target, DIFFUSERS_LAYOUT, replace, size(plan)) as folder:
        folder.mkdir()
        tensors = iter(watch(conversion.tensors()))
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(folder / name, shard, islice(tensors, len(shard)), FORMAT)
        if len(shards) > 1:
            _write_json(folder / f"{WEIGHTS}.safetensors.index.json", _index(names, shards))
        _write_json(folder / "config.json", config)
    return names


def _index(names: Sequence[str], shards: Sequence[Sequence[Planned]]) -> dict[str, Any]:
    where = {planned.name: name for name, shard in zip(names, shards, strict=True) for planned in shard}
    total = sum(size(shard) for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_sat(
    target: Path,
    conversion: Conversion,
    beside: Mapping[str, Any] | None = None,
    replace: bool = False,
    watch: Watch = iter,
) -> list[str]:
    """A folder for SAT's `load`: `latest`, and the weights as the module of one checkpoint with `beside` in it."""
    plan = conversion.plan()
    with placed(target, SAT_LAYOUT, replace, size(plan)) as folder:
        (folder / SAT_STEP).mkdir(parents=True)
        write_torch(folder / SAT_STEP / SAT_FILE, plan, watch(conversion.tensors()), "module", beside)
        (folder / "latest").write_text(SAT_STEP, encoding="utf-8")
    return [f"{SAT_STEP}/{SAT_FILE}"]


def write_vae(target: Path, conversion: Conversion, replace: bool = False, watch: Watch = iter) -> list[str]:
    """A VAE file as published: `target` itself where it is named .pt, else a `3d-vae.pt` in that folder."""
    path = target if target.suffix == ".pt" else target / VAE_FILE
    plan = conversion.plan()
    with placed(path, VAE_LAYOUT, replace, size(plan)) as file:
        write_torch(file, plan, watch(conversion.tensors()), "state_dict")
    return [path.name]


def write_lora(
    target: Path, conversion: Conversion, metadata: Mapping[str, str], replace: bool = False, watch: Watch = iter
) -> list[str]:
    """A LoRA file: `target` itself where it is named .safetensors, else under the name that pipelines look for."""
    path = target if target.suffix == ".safetensors" else target / LORA
    plan = conversion.plan()
    with placed(path, LORA_LAYOUT, replace, size(plan)) as file:
        write_safetensors(file, plan, watch(conversion.tensors()), metadata)
    return [path.name]
