"""Grids beyond the position table: refused, or squeezed into it where the config says `interpolate`.

Truth: identity. A table for n places, asked for 2n − 1, has its own values at every other one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.transformer.layout import TokenLayout
from tests.transformer import tiny

OWN = (tiny.FRAMES, tiny.ROWS // 2, tiny.COLUMNS // 2)
KINDS = ["sincos", "rotary", "learned"]
CPU = torch.device("cpu")


def positions(kind: str, **params: Any) -> Any:
    config = tiny.config(rotary=kind != "sincos")
    node = config["modules"]["pos_embed_config"]["params"]
    node |= params | ({"learnable_pos_embed": True} if kind == "learned" else {})
    model = tiny.DiffusionTransformer(**config)
    tiny.fill_randomly(model)
    return model.mixins["pos_embed"]


def layout_of(grid: tuple[int, int, int]) -> TokenLayout:
    return TokenLayout(tiny.TEXT_TOKENS, *grid, (1, 2, 2))


def values(mixin: Any, kind: str, grid: tuple[int, int, int]) -> torch.Tensor:
    """What the video tokens get, (t, h, w, …)."""
    if kind == "rotary":
        return mixin.rotary(layout_of(grid), CPU)[tiny.TEXT_TOKENS :].unflatten(0, grid)
    return mixin.position_embedding_forward(None, layout=layout_of(grid))[1][0].unflatten(0, grid)


def twice(n: int) -> int:
    return 2 * n - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_axis_beyond_the_table(kind: str, axis: int) -> None:
    mixin = positions(kind, interpolate=True)
    own = values(mixin, kind, OWN)
    grid = tuple(twice(n) if i == axis else n for i, n in enumerate(OWN))
    found = values(mixin, kind, grid).movedim(axis, 0)
    torch.testing.assert_close(found[::2], own.movedim(axis, 0), rtol=0, atol=1e-6)
    between = found[1::2]
    assert ((between - found[:-1:2]).abs().amax() > 1e-3) and ((between - found[2::2]).abs().amax() > 1e-3)
    if kind == "learned":
        torch.testing.assert_close(between, (found[:-1:2] + found[2::2]) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_longer_and_smaller_at_once(kind: str) -> None:
    """Axes within the table are cut from it, as without interpolation."""
    mixin = positions(kind, interpolate=True)
    found = values(mixin, kind, (twice(OWN[0]), 2, OWN[2] - 1))
    own = values(mixin, kind, OWN)[:, :2, : OWN[2] - 1]
    torch.testing.assert_close(found[::2], own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [OWN, (1, 2, 3)])
def test_within_the_table_it_changes_nothing(kind: str, grid: tuple[int, int, int]) -> None:
    plain, asked = positions(kind), positions(kind, interpolate=True)
    assert torch.equal(values(plain, kind, grid), values(asked, kind, grid))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_beyond_the_table_is_refused_unasked(kind: str, axis: int) -> None:
    grid = tuple(n + (i == axis) for i, n in enumerate(OWN))
    with pytest.raises(UserError, match=r"positions go up to 5 x 4 x 6.*interpolate: true"):
        values(positions(kind), "sincos" if kind == "sincos" else "rotary", grid)


def test_a_resized_learned_table_learns() -> None:
    mixin = positions("learned", interpolate=True)
    values(mixin, "learned", tuple(twice(n) for n in OWN)).sum().backward()
    rows = mixin.pos_embedding.grad[0]
    assert (rows[tiny.TEXT_TOKENS :] > 0).all() and not rows[: tiny.TEXT_TOKENS].any()


def test_the_table_of_1_5_counts_whole_patches_of_time() -> None:
    """Golden values: 81 frames are 21 latents, in 11 patches of 2; 49 are 13, in 7."""
    for frames, patches in ((81, 11), (49, 7), (85, 11)):
        model = tiny.DiffusionTransformer(**tiny.config(patch_size=[2, 2, 2], num_frames=frames))
        assert model.mixins["pos_embed"].grid == (patches, *OWN[1:])
