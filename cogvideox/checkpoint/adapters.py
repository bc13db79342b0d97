"""LoRA adapters in state dicts with SAT's names: adding them to the weights, and what they count with.

Shapes: r rank, I and O a part's inputs and outputs, P parts of a linear (3 for `query_key_value`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cogvideox.checkpoint.lora_names import PIPELINE_PREFIX, is_sat_adapter
from cogvideox.errors import UserError

ORIGINAL = ".original."
PARTS = {"query_key_value": 3, "dense": 1}
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
            raise UserError(f"there are adapters for {linear}, but its weight is not among the base weights")
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
        raise UserError(f"{linear}: part {part} has one of matrix_A and matrix_B, not both")
    if (b.shape[0], a.shape[1]) != weight.shape or b.shape[1] != a.shape[0]:
        raise UserError(f"{linear}: adapters {tuple(b.shape)} and {tuple(a.shape)} for a weight {tuple(weight.shape)}")
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


def peft_scale(metadata: Mapping[str, str], where: str) -> float:
    """alpha / r of a PEFT file by its header, 1 where that says nothing, as diffusers reads it.

    UserError: it differs from linear to linear, or goes by the root of r.
    """
    if METADATA not in metadata:
        return 1.0
    config = _json(metadata[METADATA], where)
    settings = {name.removeprefix(PIPELINE_PREFIX): value for name, value in config.items()}
    if settings.get("alpha_pattern") or settings.get("rank_pattern") or settings.get("use_rslora"):
        raise UserError(f"{where}: alpha_pattern, rank_pattern and use_rslora in its metadata are not supported")
    return float(settings["lora_alpha"]) / float(settings["r"]) if settings.keys() >= {"r", "lora_alpha"} else 1.0


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
    except ValueError as error:
        raise UserError(f"{where}: its metadata is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: its metadata is {type(content).__name__}, not an object")
    return content
