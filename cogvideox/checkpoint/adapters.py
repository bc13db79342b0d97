"""LoRA adapters in state dicts with SAT's names: adding them to the weights, and what they count with.

Shapes: r rank, I and O a part's inputs and outputs, P parts of a linear (3 for `query_key_value`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.checkpoint.lora_names import PIPELINE_PREFIX, PREFIXES, is_sat_adapter
from cogvideox.errors import UserError

ORIGINAL = ".original."
PARTS = {"query_key_value": 3, "dense": 1}
PEFT_PREFIX = PREFIXES[1]
PEFT_CONFIG = "adapter_config.json"  # stands beside the files that PEFT itself writes
PEFT_CONFIG_BYTES = 10**6  # more than any has
METADATA = "lora_adapter_metadata"  # diffusers' key in a safetensors header: PEFT's LoraConfig as JSON
RECORD = "sat_lora"  # ours: rank, alpha and type that the adapters had in SAT


def without_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Base weights under a plain model's names: `….original.weight` is `….weight`."""
    return {name.replace(ORIGINAL, "."): tensor for name, tensor in state.items()}


# LoRA (Hu et al. 2021), equation 3: W + (alpha / r) B A.
def merge_adapters(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights of a plain model: each adapted weight (P O, I) plus `scale` times its parts' products, in float32.

    UserError: adapters without their weight, or half a pair.
    """
    merged = without_original({name: tensor for name, tensor in state.items() if not is_sat_adapter(name)})
    adapters = {name: tensor for name, tensor in state.items() if is_sat_adapter(name)}
    for linear in sorted({name.split(".matrix_")[0] for name in adapters}):
        weight = merged.get(f"{linear}.weight")
        if weight is None:
            raise UserError(
                f"there are adapters for {linear}, but its weight is not among the base weights: "
                "take those of this model"
            )
        parts = PARTS[linear.rpartition(".")[2]]
        delta = torch.cat([_delta(adapters, linear, part, piece) for part, piece in enumerate(weight.chunk(parts))])
        merged[f"{linear}.weight"] = (weight.float() + scale * delta).to(weight.dtype)
    return merged


def _delta(adapters: Mapping[str, Tensor], linear: str, part: int, weight: Tensor) -> Tensor:
    """B A of one part of a linear, for its (O, I) piece of the weight, in float32; zeros where it has no adapter."""
    a, b = (adapters.get(f"{linear}.matrix_{side}.{part}") for side in "AB")
    if a is None and b is None:
        return torch.zeros_like(weight, dtype=torch.float32)
    if a is None or b is None:
        raise UserError(f"{linear}: part {part} has one of matrix_A and matrix_B, not both: fetch the file again")
    if (b.shape[0], a.shape[1]) != weight.shape or b.shape[1] != a.shape[0]:
        raise UserError(
            f"{linear}: adapters {tuple(b.shape)} and {tuple(a.shape)} for a weight {tuple(weight.shape)}: "
            "take those of this model"
        )
    return b.to(weight.device).float() @ a.to(weight.device).float()


def rank_of(adapters: Mapping[str, Tensor]) -> int:
    """The one r of all the matrices. UserError: several, which SAT's LoRA does not have."""
    ranks = {
        tensor.shape[1] if ".matrix_B." in name or ".lora_B." in name else tensor.shape[0]
        for name, tensor in adapters.items()
    }
    if len(ranks) != 1:
        raise UserError(f"the adapters have ranks {sorted(ranks)}: one rank for all is needed here")
    return ranks.pop()


def peft_scale(state: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path) -> float:
    """alpha / r of a file with PEFT's names: by `adapter_config.json` beside it where the names are those that PEFT
    itself writes; else by the header, 1 where that says nothing, as diffusers reads it.

    UserError: PEFT's own file without its config; alpha / r differs from linear to linear, or goes by the root of r.
    """
    if any(name.startswith(PEFT_PREFIX) for name in state):
        return _scale_of_peft(state, file)
    if METADATA not in metadata:
        return 1.0
    config = _json(metadata[METADATA], str(file))
    settings = {name.removeprefix(PIPELINE_PREFIX): value for name, value in config.items()}
    where = f"{file}, in its metadata"
    _check_plain(settings, where)
    return _ratio(settings, where) if settings.keys() >= {"r", "lora_alpha"} else 1.0


def _scale_of_peft(state: Mapping[str, Tensor], file: Path) -> float:
    path = file.with_name(PEFT_CONFIG)
    if not path.is_file():
        raise UserError(
            f"{file} has the names of PEFT's own files ({PEFT_PREFIX}…), whose alpha is in {PEFT_CONFIG}, but there is "
            f"no {path}: copy it from where the file is from"
        )
    if path.stat().st_size > PEFT_CONFIG_BYTES:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes, at most {PEFT_CONFIG_BYTES:,} are read: "
            "it is no config, fetch it again"
        )
    settings = _json(path.read_text(encoding="utf-8", errors="replace"), str(path))
    if settings.get("peft_type", "LORA") != "LORA":
        raise UserError(
            f"{path}: peft_type {settings['peft_type']!r} is not supported, LORA is: take adapters of that kind"
        )
    _check_plain(settings, str(path))
    scale = _ratio(settings, str(path))
    matrices = {name: tensor for name, tensor in state.items() if ".lora_A." in name or ".lora_B." in name}
    if (rank := rank_of(matrices)) != settings["r"]:
        raise UserError(
            f"{path} has r {settings['r']}, but the adapters beside it have rank {rank}: take both from one place"
        )
    return scale


def _check_plain(settings: Mapping[str, Any], where: str) -> None:
    """UserError where adapters count otherwise than with one alpha / r."""
    for key in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora"):
        if settings.get(key):
            raise UserError(f"{where}: {key} is not supported: only adapters that all count with alpha / r are")


def _ratio(settings: Mapping[str, Any], where: str) -> float:
    """alpha / r. UserError: no numbers that make sense."""
    r, alpha = settings.get("r"), settings.get("lora_alpha")
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise UserError(f"{where}: r is {r!r}, not a whole number from 1 on")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise UserError(f"{where}: lora_alpha is {alpha!r}, not a positive number")
    return alpha / r


def describe_adapters(rank: int, alpha: float, dtype: torch.dtype) -> dict[str, str]:
    """The header of an exported file: what its adapters had in SAT. What diffusers wants to know it sees in the shapes,
    and takes a scale of 1.
    """
    record = {"r": rank, "lora_alpha": alpha, "dtype": str(dtype).removeprefix("torch.")}
    return {"format": "pt", RECORD: json.dumps(record)}


def recorded(metadata: Mapping[str, str], where: str) -> dict[str, Any] | None:
    """`r`, `lora_alpha` and `dtype` that exported adapters had in SAT, if this file was exported here."""
    return _json(metadata[RECORD], where) if RECORD in metadata else None


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: its settings are no JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: its settings are {type(content).__name__}, not an object: fetch it again")
    return content
