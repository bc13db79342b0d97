"""Values against annotations. Truth: golden values, as YAML users write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

import pytest

from cogvideox.config.fitting import Misfit, describe, fit
from cogvideox.config.nearest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (3, float, 3.0),
        (3.0, int, 3),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([1, 2], Sequence[int], [1, 2]),
        ([480, 720], list[int], [480, 720]),
        (2, int | Sequence[int], 2),
        ([1, 2, 2], int | Sequence[int], [1, 2, 2]),
        (None, Optional[str], None),  # noqa: UP045 (annotations of others are written so)
        ("pre", Literal["pre", "post"], "pre"),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        (True, bool | Literal["custom"], True),
        ("cpu", object(), "cpu"),
    ],
)
def test_values_that_fit_are_converted(value: Any, annotation: Any, result: Any) -> None:
    found = fit(value, annotation)
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("3", int),
        (3.5, int),
        (True, int),
        (1, bool),
        ("true", bool),
        (3, str),
        ("ab", list[str]),
        ([1, "b"], list[int]),
        ([1], tuple[int, int]),
        (None, int),
        ("sandwich", Literal["pre", "post"]),
        ([1], Mapping[str, Any]),
    ],
)
def test_values_that_do_not_fit_are_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(Misfit):
        fit(value, annotation)


def test_annotations_in_words() -> None:
    assert describe(int | None) == "a whole number or null"
    assert describe(list[int]) == "a list of: a whole number"
    assert describe(Literal["a", "b"]) == "one of 'a', 'b'"


def test_the_nearest_name() -> None:
    assert nearest("train_iter", ["train_iters", "train_data"]) == "train_iters"
    assert nearest("batchsize", ["batch_size", "eval_batch_size"]) == "batch_size"
    assert nearest("zzz", ["train_iters"]) is None
    assert did_you_mean("zzz", ["a", "b"]).endswith("a, b")
