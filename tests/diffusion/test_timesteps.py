"""The timestep draw: uniform on any number of ranks, dealt out over strata."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from cogvideox.config import instantiate
from cogvideox.diffusion.timesteps import draw_stratified
from cogvideox.errors import UserError
from cogvideox.parallel import Group, Groups, install
from tests.diffusion.nodes import timesteps

RANKS = [1, 2, 9, 16, 40]
STRATA = [0, 1, 7, 40]


def draw_all_ranks(ranks: int, group_num: int, n: int, uniform_sampling: bool = True) -> torch.Tensor:
    """(ranks, n) timesteps, every rank with its own random stream."""
    draw = instantiate(timesteps(uniform_sampling=uniform_sampling, group_num=group_num))
    rows = []
    for rank in range(ranks):
        generator = torch.Generator().manual_seed(1000 * ranks + rank)
        rows.append(draw(n, generator=generator, data_group=Group(rank=rank, size=ranks)))
    return torch.stack(rows)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("group_num", STRATA)
def test_every_timestep_is_equally_likely(ranks, group_num):
    """Truth: identity, by a chi-square test over the 1000 timesteps with about 200 draws each."""
    t = draw_all_ranks(ranks, group_num, 200_000 // ranks)
    assert t.dtype == torch.int64 and t.min() == 0 and t.max() == 999
    assert chisquare(torch.bincount(t.flatten(), minlength=1000).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("ranks", RANKS)
def test_without_uniform_sampling_every_rank_draws_from_all(ranks):
    """Truth: identity, by a chi-square test per rank."""
    for row in draw_all_ranks(ranks, 40, 50_000, uniform_sampling=False):
        assert chisquare(torch.bincount(row, minlength=1000).numpy()).pvalue > 1e-5


@pytest.mark.parametrize("ranks", RANKS)
def test_without_group_num_each_rank_keeps_to_its_own_stratum(ranks):
    """Truth: identity. Rank r draws from [1000·r/ranks, 1000·(r + 1)/ranks) and reaches both ends."""
    for rank, row in enumerate(draw_all_ranks(ranks, 0, 20_000)):
        assert row.min() == 1000 * rank // ranks
        assert row.max() == -(-1000 * (rank + 1) // ranks) - 1


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("n", [1, 3])
def test_every_step_has_one_timestep_in_each_ranks_share(ranks, n):
    """Truth: identity. At each step, for each place in the batch, the ranks cover all noise levels evenly."""
    for step in torch.split(draw_all_ranks(ranks, 0, 300 * n), n, dim=1):
        for place in step.T:
            assert (place * ranks // 1000 - torch.arange(ranks)).abs().max() <= (0 if 1000 % ranks == 0 else 1)
            assert (place.sort().values == place).all()


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("group_num", [0, 1, 2, 3, 7, 8, 9, 16, 40, 1000])
def test_any_number_of_ranks_draws_with_any_number_of_strata(ranks, group_num):
    """Truth: identity. Nothing divides anything here, and every draw is a timestep."""
    for n in (1, 2, 5):
        t = draw_all_ranks(ranks, group_num, n)
        assert t.shape == (ranks, n) and t.min() >= 0 and t.max() < 1000


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("group_num", [0, 7, 40])
def test_shares_of_all_ranks_add_up_to_the_uniform_distribution(ranks, group_num, monkeypatch):
    """Truth: identity, exactly. With `torch.rand` replaced by a fine even grid of places, all timesteps come equally
    often: the number of points is a multiple of all that the formula divides by.
    """
    strata = group_num or ranks
    places, within = 4 * strata, 1000
    grid = torch.cartesian_prod(
        (torch.arange(places, dtype=torch.float64) + 0.5) / places,
        (torch.arange(within, dtype=torch.float64) + 0.5) / within,
    )
    monkeypatch.setattr(torch, "rand", lambda *size, **_: grid.T.reshape(size))
    t = torch.cat([draw_stratified(len(grid), 1000, group_num, Group(rank, ranks)) for rank in range(ranks)])
    assert (torch.bincount(t, minlength=1000) == ranks * len(grid) // 1000).all()


@pytest.mark.parametrize(("ranks", "group_num"), [(16, 4), (16, 16), (40, 40), (80, 40), (9, 3)])
def test_strata_equal_the_reference_where_its_division_works(ranks, group_num):
    """Truth: reference: stratum rank // (ranks / group_num) of equal width."""
    for rank, row in enumerate(draw_all_ranks(ranks, group_num, 2000)):
        stratum = rank // (ranks // group_num)
        assert row.min() >= 1000 * stratum // group_num
        assert row.max() < -(-1000 * (stratum + 1) // group_num)


@pytest.mark.parametrize(("ranks", "group_num"), [(1, 40), (2, 40), (9, 40), (16, 40), (9, 2), (41, 40)])
def test_shares_that_do_not_divide_cover_neighbouring_strata_only(ranks, group_num):
    """Truth: identity. A rank stays within the strata that its share [r, r + 1)/ranks touches."""
    for rank, row in enumerate(draw_all_ranks(ranks, group_num, 5000)):
        first = rank * group_num // ranks
        last = -(-(rank + 1) * group_num // ranks) - 1
        assert row.min() >= 1000 * first // group_num
        assert row.max() < -(-1000 * (last + 1) // group_num)


def test_group_comes_from_the_installed_data_parallel_group():
    """Truth: identity. With two ranks installed, rank 1 draws the noisy half only."""
    draw = instantiate(timesteps(uniform_sampling=True))
    before = install(Groups(data=Group(rank=1, size=2)))
    try:
        assert draw(1000).min() >= 500
    finally:
        install(before)
    assert draw(1000).min() < 500


def test_a_generator_makes_draws_repeatable():
    """Truth: round trip."""
    draws = [draw_stratified(8, 1000, 4, Group(1, 3), generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("group_num", [-1, 1001])
def test_impossible_group_num_is_named(group_num):
    """Truth: the message names key, value and limit."""
    with pytest.raises(UserError, match=rf"group_num is {group_num}.*1000"):
        instantiate(timesteps(group_num=group_num))


def test_levels_are_those_of_the_schedule():
    """Truth: identity. Index 0 is the cleanest, 999 pure noise."""
    draw = instantiate(timesteps())
    levels = draw.sqrt_alpha_bar(torch.tensor([0, 999]))
    assert levels.dtype == torch.float32 and levels[0] > 0.999 and levels[1] == 0
