"""Names of LoRA matrices: SAT's, and those of PEFT that diffusers' `load_lora_weights` reads, one row a linear.

Shapes: r rank, I and O the linear's inputs and outputs. SAT `matrix_A.{p}` (r, I) and `matrix_B.{p}` (O, r) of part p
are PEFT's `lora_A.weight` and `lora_B.weight` of the linear that holds that part alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from cogvideox.errors import UserError

# (SAT's linear, its part) and diffusers' linear; `{}` stands for the layer.
ROWS: tuple[tuple[str, int, str], ...] = (
    ("transformer.layers.{}.attention.query_key_value", 0, "transformer_blocks.{}.attn1.to_q"),
    ("transformer.layers.{}.attention.query_key_value", 1, "transformer_blocks.{}.attn1.to_k"),
    ("transformer.layers.{}.attention.query_key_value", 2, "transformer_blocks.{}.attn1.to_v"),
    ("transformer.layers.{}.attention.dense", 0, "transformer_blocks.{}.attn1.to_out.0"),
)

PIPELINE_PREFIX = "transformer."  # which part of a pipeline the adapters are for
PREFIXES = (PIPELINE_PREFIX, "base_model.model.")  # PEFT's own files have the second, one that belongs to no pipeline

# An adapter's name may stand between: `lora_A.default.weight`.
_PEFT = re.compile(r"(?P<linear>.+)\.lora_(?P<side>[AB])(?:\.(?!weight$)\w+)?\.weight")
_SAT = re.compile(r"(?P<linear>.+)\.matrix_(?P<side>[AB])\.(?P<part>\d+)")
_NUMBER = re.compile(r"(?<=transformer\.layers\.)\d+|(?<=transformer_blocks\.)\d+")


def is_sat_adapter(name: str) -> bool:
    """Whether this is SAT's name of a LoRA matrix."""
    return _SAT.fullmatch(name) is not None


def is_peft(names: Iterable[str]) -> bool:
    """Whether there are LoRA matrices under PEFT's names among these."""
    return any(".lora_A." in name or ".lora_B." in name for name in names)


def holds_adapters_alone(names: Iterable[str]) -> bool:
    """Whether these are the names of LoRA matrices, SAT's or PEFT's, without the weights that they are added to."""
    names = list(names)
    return is_peft(names) or all(map(is_sat_adapter, names))


def to_peft(sat: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """SAT's adapters under PEFT's names, as the transformer's part of a pipeline.

    `scale` (alpha / r) goes into B, in float32, because most readers of such files take alpha for r: then the file
    counts the same everywhere. UserError: a name that no row knows.
    """
    return {_peft_name(name): scaled_b(name, tensor, scale) for name, tensor in sat.items()}


def from_peft(peft: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """PEFT's adapters under SAT's names, B times `scale`: alpha / r in the file over alpha / r in the config.

    UserError: a name that no row knows, as of an adapter outside attention, for which SAT has no place.
    """
    result = {}
    strange = []
    for name, tensor in peft.items():
        translated = _sat_name(name)
        if translated is None:
            strange.append(name)
        else:
            result[translated] = scaled_b(translated, tensor, scale)
    if strange:
        some = ", ".join(strange[:3])
        raise UserError(
            f"{len(strange)} of {len(peft)} names are no adapters of attention's linears (to_q, to_k, to_v, to_out.0), "
            f"the only ones that can be loaded here: {some}"
        )
    return result


def scaled_b(sat_or_peft_name: str, tensor: Tensor, scale: float) -> Tensor:
    """The tensor itself, or, for a B and another scale than 1, the product in float32."""
    is_b = ".matrix_B." in sat_or_peft_name or ".lora_B." in sat_or_peft_name
    return tensor.float() * scale if is_b and scale != 1 else tensor


def _peft_name(name: str) -> str:
    match = _SAT.fullmatch(name)
    for sat, part, diffusers in ROWS:
        if match and int(match["part"]) == part and _NUMBER.sub("{}", match["linear"]) == sat:
            layer = _NUMBER.search(name)
            assert layer is not None
            return f"{PIPELINE_PREFIX}{diffusers.format(layer[0])}.lora_{match['side']}.weight"
    raise UserError(f"{name} is no LoRA matrix of a CogVideoX transformer in SAT's layout: name another file")


def _sat_name(name: str) -> str | None:
    bare = name
    for prefix in PREFIXES:
        if prefix != PIPELINE_PREFIX or bare.startswith("transformer.transformer_blocks."):
            bare = bare.removeprefix(prefix)
    match = _PEFT.fullmatch(bare)
    for sat, part, diffusers in ROWS:
        if match and _NUMBER.sub("{}", match["linear"]) == diffusers:
            layer = _NUMBER.search(bare)
            assert layer is not None
            return f"{sat.format(layer[0])}.matrix_{match['side']}.{part}"
    return None
