"""Weights told apart by looking at them.

Truths checked: identity (what was put in is found), golden messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cogvideox.checkpoint.lora_names import to_peft
from cogvideox.checkpoint.opening import open_weights
from cogvideox.checkpoint.transformer_names import to_diffusers
from cogvideox.checkpoint.vae_names import diffusers_from_sat
from cogvideox.errors import UserError
from cogvideox.transformer.lora import is_adapter
from tests.checkpoint.files import LORA, adapters_folder, assert_equal, run_folder
from tests.transformer import five
from tests.vae.small import build


def seen(path: Path, ema: bool = False) -> tuple[str, str]:
    weights = open_weights(path, ema)
    return weights.kind, weights.layout


def test_transformers(tmp_path: Path) -> None:
    model = run_folder(tmp_path / "run", "5B")
    weights = open_weights(tmp_path / "run")
    assert (weights.kind, weights.layout, weights.base, weights.averaged) == ("transformer", "SAT", None, False)
    assert_equal(weights.shards[0], model.state_dict())
    assert weights.beside("training_config.yaml") == tmp_path / "run" / "training_config.yaml"
    file = tmp_path / "run" / "1000" / "mp_rank_00_model_states.pt"
    assert seen(file.parent) == seen(file) == ("transformer", "SAT")
    assert open_weights(file).beside("training_config.yaml") == tmp_path / "run" / "training_config.yaml"
    save_file(to_diffusers(model.state_dict(), (1, 2, 2)), tmp_path / "single.safetensors")
    assert seen(tmp_path / "single.safetensors") == ("transformer", "diffusers")


def test_adapters(tmp_path: Path) -> None:
    model = adapters_folder(tmp_path / "run", "5B", base=tmp_path / "base")
    assert seen(tmp_path / "run") == ("adapters", "SAT")
    assert open_weights(tmp_path / "run").base == tmp_path / "base"
    adapters = {name: tensor for name, tensor in model.state_dict().items() if is_adapter(name)}
    save_file(to_peft(adapters), tmp_path / "lora.safetensors")
    assert seen(tmp_path / "lora.safetensors") == ("adapters", "PEFT")
    run_folder(tmp_path / "whole", "5B", LORA)
    assert seen(tmp_path / "whole") == ("transformer", "SAT")


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_vaes(tmp_path: Path, prefix: str) -> None:
    state = build().state_dict()
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}, tmp_path / "3d-vae.pt")
    assert seen(tmp_path / "3d-vae.pt") == seen(tmp_path) == ("VAE", "SAT")
    assert_equal(open_weights(tmp_path).shards[0], state)
    save_file(diffusers_from_sat(state), tmp_path / "diffusion_pytorch_model.safetensors")
    assert seen(tmp_path) == ("VAE", "diffusers")


def test_other_networks_in_a_file_are_told(tmp_path: Path) -> None:
    state = {f"model.diffusion_model.{n}": t for n, t in five.tiny_model(five.KINDS["2B"]).state_dict().items()}
    strange = {"first_stage_model.encoder.conv_in.conv.weight": torch.zeros(1), "conditioner.x": torch.zeros(1)}
    torch.save({"module": {**state, **strange}}, tmp_path / "w.pt")
    weights = open_weights(tmp_path / "w.pt")
    assert sorted(weights.left_out) == ["conditioner.x", "first_stage_model.encoder.conv_in.conv.weight"]
    assert not any(name.startswith(("first_stage_model.", "conditioner.")) for name in weights.shards[0])


def test_several_ranks_are_all_there(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", "5B")
    file = tmp_path / "run" / "1000" / "mp_rank_00_model_states.pt"
    (file.parent / "mp_rank_01_model_states.pt").write_bytes(file.read_bytes())
    assert len(open_weights(tmp_path / "run").shards) == len(open_weights(file.parent).shards) == 2


def test_averages(tmp_path: Path) -> None:
    model: Any = run_folder(tmp_path / "run", "5B")
    with pytest.raises(UserError, match="no averaged weights"):
        open_weights(tmp_path / "run", ema=True)
    averages = {"model.diffusion_model.time_embed.0.bias": torch.full((32,), 5.0)}
    file = tmp_path / "run" / "1000" / "mp_rank_00_model_states.pt"
    torch.save({"module": averages, "iteration": 1000}, file.with_name("mp_rank_00_ema_states.pt"))
    for path in (tmp_path / "run", file.parent, file):
        weights = open_weights(path, ema=True)
        assert weights.averaged
        assert_equal(weights.shards[0], {**model.state_dict(), "time_embed.0.bias": torch.full((32,), 5.0)})
        assert_equal(open_weights(path).shards[0], model.state_dict())


def test_something_else(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="holds neither a CogVideoX transformer nor its VAE nor LoRA.*conv.weight"):
        open_weights(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no such weight file"):
        open_weights(tmp_path / "nothing")
