"""Truth: reference. Output and every gradient equal those of diffusers' CogVideoXTransformer3DModel in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cogvideox.checkpoint.transformer_names import to_diffusers
from tests.transformer import tiny

LIMIT = 1e-5


def gradients_of(model: torch.nn.Module, out: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    (out * torch.randn(out.shape, generator=generator) / out.numel() ** 0.5).sum().backward()
    zeros = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    return {n: zeros[n] if p.grad is None else p.grad for n, p in model.named_parameters()}


def check(ours: torch.nn.Module, twin: torch.nn.Module, inputs: dict[str, Any], learned: bool = False) -> None:
    ours_out = ours(**inputs)
    twin_out = tiny.run_twin(twin, **inputs)
    assert ours_out.shape == twin_out.shape
    assert (ours_out - twin_out).abs().max() <= LIMIT
    assert ours_out.std() > 0.1
    ours_grads = to_diffusers(gradients_of(ours, ours_out), ours.patch, learned)
    twin_grads = gradients_of(twin, twin_out)
    assert ours_grads.keys() >= twin_grads.keys()
    for name, expected in twin_grads.items():
        difference = (ours_grads[name] - expected).abs().max()
        assert difference <= LIMIT, f"{name}: {difference}"
        # softmax does not see what is added to all keys alike
        assert expected.abs().max() > 1e-6 or name.endswith("norm_k.bias"), f"{name}: no gradient to compare"


@pytest.mark.parametrize("rotary", [False, True], ids=["2b-like", "5b-like"])
@pytest.mark.parametrize("batch", [1, 2])
def test_native_size(rotary: bool, batch: int) -> None:
    ours = tiny.model(rotary=rotary)
    check(ours, tiny.diffusers_twin(ours, rotary), tiny.inputs(batch))


@pytest.mark.parametrize("rotary", [False, True], ids=["2b-like", "5b-like"])
@pytest.mark.parametrize(("frames", "rows", "columns"), [(1, 8, 12), (3, 4, 6)], ids=["image", "smaller"])
def test_other_sizes(rotary: bool, frames: int, rows: int, columns: int) -> None:
    ours = tiny.model(rotary=rotary)
    check(ours, tiny.diffusers_twin(ours, rotary), tiny.inputs(2, frames, rows, columns))


def test_temporal_patches_and_ofs_of_1_5() -> None:
    ours = tiny.model(rotary=True, patch_size=[2, 2, 2], ofs_embed_dim=32)
    twin = tiny.diffusers_twin(ours, True, patch_size_t=2, ofs_embed_dim=32)
    check(ours, twin, {**tiny.inputs(2, frames=4), "ofs": torch.tensor([2.0, 2.0])})


def test_learned_positions_of_5b_i2v() -> None:
    built = tiny.config(rotary=True)
    built["modules"]["pos_embed_config"]["params"]["learnable_pos_embed"] = True
    ours = tiny.DiffusionTransformer(**built)
    tiny.fill_randomly(ours)
    check(ours, tiny.diffusers_twin(ours, True, use_learned_positional_embeddings=True), tiny.inputs(2), learned=True)
