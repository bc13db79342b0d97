"""Names of the transformer's weights: SAT's (which ours are) and the diffusers package's, one row each.

Where the layouts differ, a SAT parameter is cut along its first axis into equal pieces, and a row says which pieces
each diffusers parameter takes. Both directions read the same rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from cogvideox.errors import UserError

PATCH_WEIGHT = "patch_embed.proj.weight"
POSITIONS = "mixins.pos_embed.pos_embedding"


@dataclass(frozen=True)
class Row:
    """A SAT name and the diffusers names that share its pieces; `{}` stands for the layer, `*` for weight and bias."""

    sat: str
    shares: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def pieces(self) -> int:
        return sum(len(taken) for _, taken in self.shares)


def _same(sat: str, diffusers: str) -> Row:
    return Row(sat, ((diffusers, (0,)),))


_LAYER, _BLOCK, _ADALN = "transformer.layers.{}", "transformer_blocks.{}", "mixins.adaln_layer"

ROWS: tuple[Row, ...] = (
    _same("time_embed.0.*", "time_embedding.linear_1.*"),
    _same("time_embed.2.*", "time_embedding.linear_2.*"),
    _same("ofs_embed.0.*", "ofs_embedding.linear_1.*"),
    _same("ofs_embed.2.*", "ofs_embedding.linear_2.*"),
    _same(POSITIONS, "patch_embed.pos_embedding"),
    _same("mixins.patch_embed.proj.*", "patch_embed.proj.*"),
    _same("mixins.patch_embed.text_proj.*", "patch_embed.text_proj.*"),
    Row(
        f"{_ADALN}.adaLN_modulations.{{}}.1.*",
        (
            (f"{_BLOCK}.norm1.linear.*", (0, 1, 2, 6, 7, 8)),
            (f"{_BLOCK}.norm2.linear.*", (3, 4, 5, 9, 10, 11)),
        ),
    ),
    _same(f"{_ADALN}.query_layernorm_list.{{}}.*", f"{_BLOCK}.attn1.norm_q.*"),
    _same(f"{_ADALN}.key_layernorm_list.{{}}.*", f"{_BLOCK}.attn1.norm_k.*"),
    _same(f"{_LAYER}.input_layernorm.*", f"{_BLOCK}.norm1.norm.*"),
    _same(f"{_LAYER}.post_attention_layernorm.*", f"{_BLOCK}.norm2.norm.*"),
    Row(
        f"{_LAYER}.attention.query_key_value.*",
        (
            (f"{_BLOCK}.attn1.to_q.*", (0,)),
            (f"{_BLOCK}.attn1.to_k.*", (1,)),
            (f"{_BLOCK}.attn1.to_v.*", (2,)),
        ),
    ),
    _same(f"{_LAYER}.attention.dense.*", f"{_BLOCK}.attn1.to_out.0.*"),
    _same(f"{_LAYER}.mlp.dense_h_to_4h.*", f"{_BLOCK}.ff.net.0.proj.*"),
    _same(f"{_LAYER}.mlp.dense_4h_to_h.*", f"{_BLOCK}.ff.net.2.*"),
    _same("transformer.final_layernorm.*", "norm_final.*"),
    _same("mixins.final_layer.norm_final.*", "norm_out.norm.*"),
    _same("mixins.final_layer.adaLN_modulation.1.*", "norm_out.linear.*"),
    _same("mixins.final_layer.linear.*", "proj_out.*"),
)

# In SAT's files and of no use: tables that a formula gives, and embeddings that the model does not read.
SAT_ONLY = (
    "transformer.word_embeddings.weight",
    "transformer.position_embeddings.weight",
    "mixins.pos_embed.freqs_sin",
    "mixins.pos_embed.freqs_cos",
)


@dataclass(frozen=True)
class _Filled:
    """A row for one layer and one of weight and bias, with its names in full."""

    sat: str
    shares: tuple[tuple[str, tuple[int, ...]], ...]
    pieces: int


def _fill(rows: Iterable[Row], layers: int) -> list[_Filled]:
    def names(template: str) -> list[tuple[str, str]]:
        return [
            (str(layer), kind)
            for layer in (range(layers) if "{}" in template else [""])
            for kind in (("weight", "bias") if "*" in template else [""])
        ]

    def full(template: str, layer: str, kind: str) -> str:
        return template.replace("{}", layer).replace("*", kind)

    return [
        _Filled(full(row.sat, *at), tuple((full(name, *at), taken) for name, taken in row.shares), row.pieces)
        for row in rows
        for at in names(row.sat)
    ]


def to_diffusers(
    sat: Mapping[str, torch.Tensor], patch_size: tuple[int, int, int], learned_positions: bool = False
) -> dict[str, torch.Tensor]:
    """SAT's parameters under diffusers' names; for a temporal patch of 1 the patch linear becomes a Conv2d weight.

    Position tables go along only where they are learned (5B-I2V): the frozen ones of 2B diffusers computes.
    Raises UserError on a name that no row knows.
    """
    left = {name: tensor for name, tensor in sat.items() if name not in SAT_ONLY}
    if not learned_positions:
        left.pop(POSITIONS, None)
    result: dict[str, torch.Tensor] = {}
    for row in _fill(ROWS, _count_layers(left, "transformer.layers.")):
        if row.sat in left:
            pieces = left.pop(row.sat).chunk(row.pieces)
            for name, taken in row.shares:
                result[name] = torch.cat([pieces[i] for i in taken]) if len(taken) > 1 else pieces[taken[0]]
    _none_left(left, "SAT")
    weight = result.get(PATCH_WEIGHT)
    if weight is not None and weight.ndim == 2 and patch_size[0] == 1:
        result[PATCH_WEIGHT] = weight.reshape(weight.shape[0], -1, *patch_size[1:])
    return result


def to_sat(diffusers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' parameters under SAT's names, the inverse of `to_diffusers`. Raises UserError on an unknown name."""
    left = dict(diffusers)
    result: dict[str, torch.Tensor] = {}
    for row in _fill(ROWS, _count_layers(left, "transformer_blocks.")):
        if all(name in left for name, _ in row.shares):
            pieces: dict[int, torch.Tensor] = {}
            for name, taken in row.shares:
                pieces.update(zip(taken, left.pop(name).chunk(len(taken)), strict=True))
            ordered = [pieces[i] for i in range(row.pieces)]
            result[row.sat] = torch.cat(ordered) if row.pieces > 1 else ordered[0]
    _none_left(left, "diffusers")
    weight = f"mixins.{PATCH_WEIGHT}"
    if weight in result:
        result[weight] = result[weight].flatten(1)
    return result


def missing_names(sat: Collection[str], learned_positions: bool) -> list[str]:
    """What a whole transformer has and these names (SAT's) lack; positions count only where they are learned, and
    `ofs_embed` only where there is some of it.
    """
    wanted = [row.sat for row in _fill(ROWS, _count_layers(sat, "transformer.layers."))]
    has_ofs = any(name.startswith("ofs_embed.") for name in sat)
    return [
        name
        for name in wanted
        if name not in sat
        and (learned_positions or name != POSITIONS)
        and (has_ofs or not name.startswith("ofs_embed."))
    ]


def _count_layers(names: Iterable[str], prefix: str) -> int:
    numbers = [int(name[len(prefix) :].split(".")[0]) for name in names if name.startswith(prefix)]
    return max(numbers, default=-1) + 1


def _none_left(left: Mapping[str, torch.Tensor], layout: str) -> None:
    if left:
        some = ", ".join(sorted(left)[:3])
        raise UserError(
            f"{len(left)} weights are not those of a CogVideoX transformer in {layout}'s layout ({some}): "
            "name another file"
        )
