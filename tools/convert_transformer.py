"""A transformer on its way through convert_checkpoint.py, from SAT's names to either layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cogvideox.checkpoint.converting import Conversion
from cogvideox.checkpoint.diffusers_config import position_rows
from cogvideox.checkpoint.transformer_names import POSITIONS, missing_names, to_diffusers
from cogvideox.errors import UserError
from tools.convert_description import Description

# Half-precision rounding of values up to 1 is below it, another interpolation of the positions far above.
SAME_POSITIONS = 0.02


def to_diffusers_folder(sat: Conversion, description: Description) -> tuple[Conversion, dict[str, Any], list[str]]:
    """A whole transformer (SAT's names) in diffusers' layout, its config.json, and what to say about it.

    UserError: weights are missing, unknown, or not those of the config.
    """
    config, learned = _described(sat, description)
    patch = (config["patch_size_t"] or 1, config["patch_size"], config["patch_size"])
    said = [f"config.json from {description.where}"]
    if POSITIONS in sat.outline() and not learned:
        _check_positions(sat, config)
        said.append(f"left out: {POSITIONS}, which diffusers computes")
    if (note := description.image_scale_note(config)) is not None:
        said.append(note)
    return sat.then(lambda part: to_diffusers(part, patch, learned)), config, said


def to_sat_folder(sat: Conversion, description: Description) -> tuple[Conversion, list[str]]:
    """A whole transformer (SAT's names) for SAT: with the table of positions that 2B's files have.

    UserError: weights are missing or not those of the config.
    """
    config, _ = _described(sat, description)
    outline = sat.outline()
    if config["use_rotary_positional_embeddings"] or POSITIONS in outline:
        return sat, []
    table = _position_table(config).to(next(iter(outline.values())).dtype)
    return Conversion((*sat.parts, {POSITIONS: table}), _except(POSITIONS, sat), sat.dtype), [
        f"added: {POSITIONS}, computed for {config['sample_frames']} frames"
    ]


def _except(name: str, conversion: Conversion) -> Any:
    """`conversion.convert`, past which a part that has `name` goes as it is."""

    def convert(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(part) if name in part else conversion.convert(part)

    return convert


def _described(sat: Conversion, description: Description) -> tuple[dict[str, Any], bool]:
    outline = sat.outline()
    missing = missing_names(outline, learned_positions=False)
    if missing:
        some = ", ".join(missing[:3])
        raise UserError(f"{len(missing)} weights of the transformer are missing: {some}{', …' * (len(missing) > 3)}")
    to_diffusers(outline, (1, 1, 1))  # refuses what no row knows
    config = description.transformer(outline)
    return config, config["use_learned_positional_embeddings"]


def _check_positions(sat: Conversion, config: Mapping[str, Any]) -> None:
    """diffusers computes the table of positions: it must be the one in the weights."""
    table = next(part[POSITIONS] for part in map(sat.convert, sat.parts) if POSITIONS in part)
    if table.shape[1] != position_rows(config):
        return  # cut for clips of another size: the formula is the same
    difference = (table.float() - _position_table(config)).abs().max().item()
    if difference > SAME_POSITIONS:
        raise UserError(
            f"{POSITIONS} differs by {difference:.2g} from what diffusers computes with spatial_interpolation_scale "
            f"{config['spatial_interpolation_scale']}: give the config that the weights were trained with (--base)"
        )


def _position_table(config: Mapping[str, Any]) -> Tensor:
    """(1, text + video tokens, width) float32: zeros for the text, sines and cosines for the video."""
    from cogvideox.transformer.positions import sincos_3d  # imports SAT, which takes seconds

    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    rows, columns = (config[f"sample_{side}"] // config["patch_size"] for side in ("height", "width"))
    space, time = config["spatial_interpolation_scale"], config["temporal_interpolation_scale"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    video = sincos_3d((frames, rows, columns), width, (time, space, space))
    return torch.cat([torch.zeros(config["max_text_seq_length"], width), video])[None]
