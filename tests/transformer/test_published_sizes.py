"""At the real sizes, on the meta device: the number of parameters, and that each name of diffusers' has its place.

Truths: golden values (the table of published models), reference (the names and shapes of diffusers' own classes).
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from cogvideox.checkpoint.transformer_names import to_diffusers, to_sat
from tests.transformer import five

POSITIONS = "mixins.pos_embed.pos_embedding"
# What the published models are said to have. diffusers counts parameters; its position tables are buffers.
PARAMETERS = {
    "2B": 1_693_783_872,
    "5B": 5_570_283_072,
    "5B-I2V": 5_570_479_680,
    "1.5-5B": 5_570_676_352,
    "1.5-5B-I2V": 5_571_594_880,
}
# The position tables that are parameters in the SAT files, and here: 226 text tokens, then 13 × 30 × 45 of video. That
# of 2B is a frozen formula, which diffusers computes and leaves out of its files; that of 5B-I2V is learned, and is in
# both. SAT's own word and position embeddings, which its transformer builds and no CogVideoX reads, are not built.
TABLES = {"2B": (226 + 13 * 30 * 45) * 1920, "5B-I2V": (226 + 13 * 30 * 45) * 3072}


@cache
def ours(name: str) -> five.DiffusionTransformer:
    with torch.device("meta"):
        return five.DiffusionTransformer(**five.params_of(five.KINDS[name], five.REAL[name]))


@cache
def theirs(name: str) -> CogVideoXTransformer3DModel:
    with torch.device("meta"):
        return CogVideoXTransformer3DModel(**five.diffusers_options(five.KINDS[name], five.REAL[name]))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_to_the_last_digit(name: str) -> None:
    sizes = {n: p.numel() for n, p in ours(name).named_parameters()}
    assert all(p.device.type == "meta" for p in ours(name).parameters())
    assert sum(sizes.values()) == PARAMETERS[name] + TABLES.get(name, 0)
    assert sizes.get(POSITIONS, 0) == TABLES.get(name, 0)
    assert sum(p.numel() for p in theirs(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_only_the_table_of_2b_is_frozen(name: str) -> None:
    frozen = {n for n, p in ours(name).named_parameters() if not p.requires_grad}
    assert frozen == ({POSITIONS} if name == "2B" else set())


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_name_of_diffusers_is_one_of_ours_and_none_is_left_over(name: str) -> None:
    state = theirs(name).state_dict()
    found = {n: tuple(t.shape) for n, t in to_sat(state).items()}
    expected = {n: tuple(t.shape) for n, t in ours(name).state_dict().items()}
    if name == "2B":
        assert expected.pop(POSITIONS) == (1, 226 + 17_550, 1920)
    assert found == expected
    back = to_diffusers(ours(name).state_dict(), ours(name).patch, five.KINDS[name].learned)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in state.items()}
