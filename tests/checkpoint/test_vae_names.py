"""The VAE's name map.

Truths checked: reference (all of diffusers' names, at the published depth), round trip, golden pairs.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from cogvideox.checkpoint.vae_names import diffusers_from_sat, is_diffusers_vae, sat_from_diffusers
from cogvideox.errors import UserError
from tests.vae.small import build

PAIRS = {
    "encoder.conv_in.conv.weight": "encoder.conv_in.conv.weight",
    "encoder.down.1.block.0.nin_shortcut.bias": "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
    "encoder.down.2.block.1.conv1.conv.weight": "encoder.down_blocks.2.resnets.1.conv1.conv.weight",
    "encoder.down.0.downsample.conv.weight": "encoder.down_blocks.0.downsamplers.0.conv.weight",
    "encoder.mid.block_1.norm1.weight": "encoder.mid_block.resnets.0.norm1.weight",
    "decoder.mid.block_2.norm2.conv_y.conv.bias": "decoder.mid_block.resnets.1.norm2.conv_y.conv.bias",
    "decoder.up.3.block.0.norm1.norm_layer.weight": "decoder.up_blocks.0.resnets.0.norm1.norm_layer.weight",
    "decoder.up.0.block.3.conv2.conv.bias": "decoder.up_blocks.3.resnets.3.conv2.conv.bias",
    "decoder.up.1.upsample.conv.bias": "decoder.up_blocks.2.upsamplers.0.conv.bias",
    "decoder.norm_out.conv_b.conv.weight": "decoder.norm_out.conv_b.conv.weight",
    "decoder.conv_out.conv.bias": "decoder.conv_out.conv.bias",
}


def test_pairs():
    state = {name: torch.zeros(()) for name in PAIRS}
    assert list(diffusers_from_sat(state)) == list(PAIRS.values())


def test_all_of_the_published_names_round_trip():
    with torch.device("meta"):
        theirs, ours = AutoencoderKLCogVideoX().state_dict(), build((1, 2, 2, 4), blocks=3, ch=128).state_dict()
    renamed = sat_from_diffusers(theirs)
    assert {name: tensor.shape for name, tensor in renamed.items()} == {n: tensor.shape for n, tensor in ours.items()}
    assert diffusers_from_sat(renamed).keys() == theirs.keys()


def test_tensors_are_the_same_ones():
    state = build().state_dict()
    back = sat_from_diffusers(diffusers_from_sat(state))
    assert back.keys() == state.keys()
    assert all(back[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())


def test_the_two_are_told_apart():
    state = build().state_dict()
    assert not is_diffusers_vae(state)
    assert is_diffusers_vae(diffusers_from_sat(state))


def test_training_loss_is_left_out_and_strangers_are_named():
    assert diffusers_from_sat({"loss.logvar": torch.zeros(1)}) == {}
    with pytest.raises(UserError, match="encoder.quant.weight is no weight of the VAE in diffusers' naming"):
        sat_from_diffusers({"encoder.quant.weight": torch.zeros(1)})
