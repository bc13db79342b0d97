"""Truth: round trip, and reference (diffusers' own parameter names)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from cogvideox.checkpoint.transformer_names import POSITIONS, missing_names, to_diffusers, to_sat
from cogvideox.errors import UserError

MODELS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "1.0": ({}, (1, 2, 2)),
    "1.5-i2v": ({"patch_size_t": 2, "ofs_embed_dim": 16}, (2, 2, 2)),
    "1.0-i2v": ({"use_learned_positional_embeddings": True}, (1, 2, 2)),
}


def random_state(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=8,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=3,
        use_rotary_positional_embeddings=True,
        **options,
    )
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_exact(name: str) -> None:
    options, patch = MODELS[name]
    state = random_state(options)
    sat = to_sat(state)
    back = to_diffusers(sat, patch, learned_positions="use_learned_positional_embeddings" in options)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_chunks_of_adaln_and_of_query_key_value() -> None:
    state = random_state({})
    sat = to_sat(state)
    chunks = sat["mixins.adaln_layer.adaLN_modulations.1.1.weight"].chunk(12)
    first = state["transformer_blocks.1.norm1.linear.weight"].chunk(6)
    second = state["transformer_blocks.1.norm2.linear.weight"].chunk(6)
    for found, expected in zip(chunks, (*first[:3], *second[:3], *first[3:], *second[3:]), strict=True):
        assert torch.equal(found, expected)
    parts = [state[f"transformer_blocks.0.attn1.to_{letter}.bias"] for letter in "qkv"]
    assert torch.equal(sat["transformer.layers.0.attention.query_key_value.bias"], torch.cat(parts))


def test_leftovers_of_published_files_are_dropped() -> None:
    sat = to_sat(random_state({}))
    extra = {"transformer.position_embeddings.weight": torch.zeros(1), "mixins.pos_embed.freqs_cos": torch.zeros(1)}
    assert to_diffusers({**sat, **extra}, (1, 2, 2)).keys() == to_diffusers(sat, (1, 2, 2)).keys()


@pytest.mark.parametrize("convert", [to_sat, lambda state: to_diffusers(state, (1, 2, 2))])
def test_unknown_names_are_refused(convert: Any) -> None:
    with pytest.raises(UserError, match="stranger"):
        convert({"stranger": torch.zeros(1)})


def test_what_a_whole_transformer_has() -> None:
    sat = to_sat(random_state({"patch_size_t": 2, "ofs_embed_dim": 16}))
    assert missing_names(sat, learned_positions=False) == []
    assert missing_names(sat, learned_positions=True) == [POSITIONS]
    del sat["ofs_embed.2.bias"], sat["transformer.layers.1.mlp.dense_4h_to_h.weight"]
    assert missing_names(sat, False) == ["ofs_embed.2.bias", "transformer.layers.1.mlp.dense_4h_to_h.weight"]
    assert missing_names({name: t for name, t in sat.items() if "ofs" not in name}, False)[:1] != ["ofs_embed.2.bias"]
