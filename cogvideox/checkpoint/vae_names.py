"""Names of the VAE's weights: the published SAT file's and the diffusers package's, row by row.

`{l}` is a level (0 = highest resolution), `{r}` the same counted from the lowest, as diffusers counts the decoder's;
`{b}` a block; `{rest}` any ending. A row's first column is SAT's, the second diffusers'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from cogvideox.errors import UserError

ROWS: tuple[tuple[str, str], ...] = (
    ("encoder.down.{l}.block.{b}.nin_shortcut.{rest}", "encoder.down_blocks.{l}.resnets.{b}.conv_shortcut.{rest}"),
    ("encoder.down.{l}.block.{b}.{rest}", "encoder.down_blocks.{l}.resnets.{b}.{rest}"),
    ("encoder.down.{l}.downsample.{rest}", "encoder.down_blocks.{l}.downsamplers.0.{rest}"),
    ("decoder.up.{l}.block.{b}.nin_shortcut.{rest}", "decoder.up_blocks.{r}.resnets.{b}.conv_shortcut.{rest}"),
    ("decoder.up.{l}.block.{b}.{rest}", "decoder.up_blocks.{r}.resnets.{b}.{rest}"),
    ("decoder.up.{l}.upsample.{rest}", "decoder.up_blocks.{r}.upsamplers.0.{rest}"),
    ("{side}.mid.block_1.{rest}", "{side}.mid_block.resnets.0.{rest}"),
    ("{side}.mid.block_2.{rest}", "{side}.mid_block.resnets.1.{rest}"),
    ("{side}.conv_in.{rest}", "{side}.conv_in.{rest}"),
    ("{side}.norm_out.{rest}", "{side}.norm_out.{rest}"),
    ("{side}.conv_out.{rest}", "{side}.conv_out.{rest}"),
)

_PATTERNS = {"l": r"\d+", "r": r"\d+", "b": r"\d+", "side": "encoder|decoder", "rest": ".+"}
SAT, DIFFUSERS = 0, 1


def is_diffusers_vae(names: Iterable[str]) -> bool:
    """Whether these are diffusers' names of this VAE."""
    return any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names)


def diffusers_from_sat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SAT's names → diffusers'; tensors are shared. `loss.` keys, which diffusers has no place for, are left out."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}
    return _rename(state, SAT, DIFFUSERS)


def sat_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers' names → SAT's; the tensors are shared. UserError on a name that is in neither column."""
    return _rename(state, DIFFUSERS, SAT)


def _rename(state: Mapping[str, Tensor], source: int, target: int) -> dict[str, Tensor]:
    levels = 1 + max((int(match[1]) for match in map(_LEVEL.match, state) if match), default=0)
    return {_translate(name, levels, source, target): tensor for name, tensor in state.items()}


_LEVEL = re.compile(r"(?:encoder\.down|encoder\.down_blocks|decoder\.up|decoder\.up_blocks)\.(\d+)\.")


def _translate(name: str, levels: int, source: int, target: int) -> str:
    for row in ROWS:
        match = _compiled(row[source]).fullmatch(name)
        if match:
            fields = match.groupdict()
            if "l" in fields:
                fields["r"] = str(levels - 1 - int(fields["l"]))
            elif "r" in fields:
                fields["l"] = str(levels - 1 - int(fields["r"]))
            return row[target].format(**fields)
    naming = ("SAT's", "diffusers'")[source]
    raise UserError(f"{name} is no weight of the VAE in {naming} naming: name the VAE's own file")


def _compiled(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for field, expression in _PATTERNS.items():
        pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{expression})")
    return re.compile(pattern)
