"""Conversions layer by layer.

Truths checked: identity (the parts together are the whole; the plan is what comes), reference (the published sizes).
"""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from cogvideox.checkpoint.converting import Conversion, by_layer, merge_ranks
from cogvideox.checkpoint.diffusers_config import published_transformer
from cogvideox.checkpoint.packages import size
from cogvideox.checkpoint.published import MODELS
from cogvideox.checkpoint.transformer_names import to_diffusers, to_sat
from cogvideox.errors import UserError
from cogvideox.transformer.tensor_parallel import merge, shard
from tests.checkpoint.files import assert_equal
from tests.transformer import five


def test_layers_are_cut_under_both_naming_schemes() -> None:
    sat = five.tiny_model(five.KINDS["1.5-5B-I2V"]).state_dict()
    for state in (sat, to_diffusers(sat, (2, 2, 2))):
        parts = by_layer(state)
        assert len(parts) == 1 + five.TINY.layers
        assert {name: tensor for part in parts for name, tensor in part.items()}.keys() == state.keys()
        assert sum(len(part) for part in parts) == len(state)
        assert parts[1].keys() == {name.replace(".1.", ".0.", 1) for name in parts[2]}


@pytest.mark.parametrize("name", five.KINDS)
def test_layer_by_layer_is_the_same_as_at_once(name: str) -> None:
    kind = five.KINDS[name]
    sat = five.tiny_model(kind).state_dict()

    def convert(part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return to_diffusers(part, (kind.patch_t, 2, 2), kind.learned)

    conversion = Conversion(by_layer(sat), convert)
    whole = convert(dict(sat))
    assert_equal(dict(conversion.tensors()), whole)
    plan = {planned.name: (planned.shape, planned.dtype) for planned in conversion.plan()}
    assert plan == {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in whole.items()}
    assert_equal(dict(conversion.then(to_sat).tensors()), to_sat(whole))


@pytest.mark.parametrize("model", MODELS)
def test_real_sizes_are_planned_without_content(model: str) -> None:
    with torch.device("meta"):
        theirs = CogVideoXTransformer3DModel.from_config(published_transformer(model)).bfloat16()
    conversion = Conversion(by_layer(theirs.state_dict()), to_sat)
    assert size(conversion.plan()) == sum(tensor.nbytes for tensor in theirs.state_dict().values())


def test_only_floating_point_is_cast() -> None:
    conversion = Conversion(({"a": torch.ones(2), "n": torch.arange(3)},), dict, torch.bfloat16)
    assert_equal(dict(conversion.tensors()), {"a": torch.ones(2, dtype=torch.bfloat16), "n": torch.arange(3)})
    assert {each.name: each.dtype for each in conversion.plan()} == {"a": torch.bfloat16, "n": torch.int64}


def test_ranks_are_merged() -> None:
    state = five.tiny_model(five.KINDS["5B"], {"r": 4}).state_dict()
    shards = [{name: shard(name, tensor, rank, 2) for name, tensor in state.items()} for rank in range(2)]
    assert_equal(dict(merge_ranks(shards, merge).tensors()), state)
    del shards[1]["time_embed.0.bias"]
    with pytest.raises(UserError, match="ranks 0 and 1 hold different weights .time_embed.0.bias"):
        merge_ranks(shards, merge)
