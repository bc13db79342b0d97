"""Names of LoRA matrices.

Truths checked: golden pairs, round trip, reference (the names that PEFT gives adapters on diffusers' model).
"""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from cogvideox.checkpoint.lora_names import from_peft, is_peft, is_sat_adapter, to_peft
from cogvideox.errors import UserError
from cogvideox.transformer.lora import is_adapter
from tests.transformer import five

PAIRS = {
    "transformer.layers.0.attention.query_key_value.matrix_A.0": "transformer_blocks.0.attn1.to_q.lora_A.weight",
    "transformer.layers.7.attention.query_key_value.matrix_B.1": "transformer_blocks.7.attn1.to_k.lora_B.weight",
    "transformer.layers.41.attention.query_key_value.matrix_A.2": "transformer_blocks.41.attn1.to_v.lora_A.weight",
    "transformer.layers.13.attention.dense.matrix_B.0": "transformer_blocks.13.attn1.to_out.0.lora_B.weight",
}


def sat_adapters(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    state = five.tiny_model(five.KINDS["5B"], {"r": 4}).to(dtype).state_dict()
    return {name: tensor for name, tensor in state.items() if is_adapter(name)}


def test_pairs() -> None:
    zero = torch.zeros(1)
    assert list(to_peft(dict.fromkeys(PAIRS, zero))) == [f"transformer.{name}" for name in PAIRS.values()]


@pytest.mark.parametrize("prefix", ["transformer.", "", "base_model.model."])
@pytest.mark.parametrize("adapter", ["", ".default"])
def test_each_way_that_peft_writes_them(prefix: str, adapter: str) -> None:
    zero = torch.zeros(1)
    theirs = [prefix + name.replace(".weight", f"{adapter}.weight") for name in PAIRS.values()]
    assert is_peft(theirs)
    assert list(from_peft(dict.fromkeys(theirs, zero))) == list(PAIRS)


def test_round_trip_is_the_same_tensors() -> None:
    ours = sat_adapters()
    back = from_peft(to_peft(ours))
    assert back.keys() == ours.keys() and len(ours) == 2 * 2 * 4
    assert all(back[name] is tensor for name, tensor in ours.items())
    assert all(is_sat_adapter(name) == is_adapter(name) for name in five.tiny_model(five.KINDS["5B"]).state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_power_of_two_goes_into_b_and_out_again(dtype: torch.dtype) -> None:
    ours = sat_adapters(dtype)
    theirs = to_peft(ours, 1 / 128)
    back = from_peft(theirs, 128.0)
    for name, tensor in ours.items():
        assert torch.equal(back[name], tensor.float() if ".matrix_B." in name else tensor)


def test_names_are_those_of_peft_on_diffusers_model() -> None:
    twin = CogVideoXTransformer3DModel(**five.diffusers_options(five.KINDS["5B"], five.TINY))
    twin.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    theirs = get_peft_model_state_dict(twin, adapter_name="default")
    ours = to_peft(sat_adapters())
    assert {name.removeprefix("transformer."): t.shape for name, t in ours.items()} == {
        name: t.shape for name, t in theirs.items()
    }


def test_what_has_no_place_is_named() -> None:
    zero = torch.zeros(1)
    strange = {f"transformer.transformer_blocks.0.ff.net.2.lora_{side}.weight": zero for side in "AB"}
    with pytest.raises(UserError, match=r"2 of 3 names are no adapters of attention.*ff.net.2.lora_A"):
        from_peft({**strange, "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": zero})
    with pytest.raises(UserError, match="query_key_value.matrix_A.3 is no LoRA matrix"):
        to_peft({"transformer.layers.0.attention.query_key_value.matrix_A.3": zero})
