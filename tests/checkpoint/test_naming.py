"""The transformer's weights under its own names.

Truths checked: round trip, identity (a file of adapters counts as it says, whatever the config's scale is).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cogvideox.checkpoint.lora_names import to_peft
from cogvideox.checkpoint.naming import NETWORK_PREFIX, network_names
from cogvideox.checkpoint.reading import read_state_dict
from cogvideox.checkpoint.transformer_names import to_diffusers
from cogvideox.errors import UserError
from cogvideox.transformer.lora import is_adapter
from tests.checkpoint.files import assert_equal
from tests.transformer import five


def test_each_layout() -> None:
    model = five.tiny_model(five.KINDS["5B-I2V"])
    state = model.state_dict()
    assert_equal(network_names(state), state)
    assert_equal(network_names({NETWORK_PREFIX + name: tensor for name, tensor in state.items()}), state)
    assert_equal(network_names(to_diffusers(state, (1, 2, 2), learned_positions=True)), state)
    others = {"first_stage_model.a": torch.zeros(1), "conditioner.b": torch.zeros(1)}
    assert_equal(network_names({**state, **others}), state)


@pytest.mark.parametrize("alpha_in_header", [False, True])
def test_adapters_of_peft_count_as_their_file_says(tmp_path: Path, alpha_in_header: bool) -> None:
    """Two models, of other alpha, give the same from one file."""
    source = five.tiny_model(five.KINDS["5B"], {"r": 4, "lora_alpha": 6.0})
    adapters = {name: tensor for name, tensor in source.state_dict().items() if is_adapter(name)}
    config = {"transformer.r": 4, "transformer.lora_alpha": 6.0}
    metadata = {"lora_adapter_metadata": json.dumps(config)} if alpha_in_header else {}
    save_file(to_peft(adapters, 1.0 if alpha_in_header else 1.5), tmp_path / "lora.safetensors", metadata)
    target = five.tiny_model(five.KINDS["5B"], {"r": 4, "lora_alpha": 1.0})
    given = network_names(read_state_dict(tmp_path / "lora.safetensors"), adapter_scaling=0.25)
    assert all(is_adapter(name) for name in given)
    assert target.load_state_dict(given, strict=False).unexpected_keys == []
    inputs = five.tiny_inputs(five.KINDS["5B"])
    torch.testing.assert_close(target(**inputs), source(**inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("odd", [{"alpha_pattern": {"to_q": 3}}, {"use_rslora": True}])
def test_scales_that_differ_are_refused(tmp_path: Path, odd: dict[str, object]) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in odd.items()})}
    name = "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"
    save_file({name: torch.zeros(2, 2)}, tmp_path / "lora.safetensors", metadata)
    with pytest.raises(UserError, match=f"in its metadata: {next(iter(odd))} is not supported"):
        read_state_dict(tmp_path / "lora.safetensors")
