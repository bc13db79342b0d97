"""`--split`. Truths: golden values; what is no split is told with the other problems, before anything is built."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from cogvideox.config.split import shares_of
from cogvideox.errors import UserError


@pytest.mark.parametrize(
    ("split", "shares"),
    [
        ("90,5,5", [90, 5, 5]),
        ("8/1/1", [8, 1, 1]),
        ("1", [1, 0, 0]),
        ("0.75", [0.75, 0.25, 0]),
        ("1e3, 1", [1e3, 1, 0]),
    ],
)
def test_shares(split: str, shares: list[float]) -> None:
    assert shares_of(split) == shares


@pytest.mark.parametrize("split", ["90,5,x", "", "0,1", "9,-1", "nan,1", "inf", "1,1,1,1", "90%"])
def test_what_is_no_split_is_a_config_error(run: Callable[..., argparse.Namespace], split: str) -> None:
    with pytest.raises(UserError, match="up to three shares .* write it as in `--split 90,5,5`") as caught:
        run("--split", split, "--batch-size", "0.5")
    assert "--batch-size" in str(caught.value)
