"""Truth: reference. Output and every gradient equal those of diffusers' CogVideoXTransformer3DModel in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from peft import LoraConfig

from cogvideox.checkpoint.transformer_names import to_diffusers
from cogvideox.transformer.lora import is_adapter
from tests.transformer import five, tiny

LIMIT = 1e-5
LORA = {"r": 4, "lora_alpha": 6.0}
Gradients = dict[str, torch.Tensor]


def backward(out: torch.Tensor) -> None:
    """From a random cotangent, so that every output counts."""
    generator = torch.Generator().manual_seed(2)
    (out * torch.randn(out.shape, generator=generator) / out.numel() ** 0.5).sum().backward()


def gradients_of(model: torch.nn.Module) -> Gradients:
    """Of what trains; zeros where nothing arrived."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.detach() - expected.detach()).abs().max())


def differences(found: Gradients, expected: Gradients) -> dict[str, float]:
    """The largest difference in each gradient, of which none may be missing on either side or be nothing."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # softmax does not see what is added to all keys alike
        assert gradient.abs().max() > 100 * LIMIT or name.endswith("norm_k.bias"), f"{name}: no gradient to compare"
    return {name: difference(found[name], gradient) for name, gradient in expected.items()}


def assert_small(found: dict[str, float]) -> None:
    large = {name: value for name, value in found.items() if not value <= LIMIT}
    assert not large, large


def run_both(ours: Any, twin: Any, inputs: dict[str, Any]) -> dict[str, float]:
    """Both forward and backward: differences of the output and of the inputs' gradients."""
    outs, grads = [], []
    for run in (ours, partial(five.run_twin, twin)):
        given = {name: value.clone() for name, value in inputs.items()}
        for name in given.keys() & {"x", "context", "concat_images"}:
            given[name].requires_grad_()
        out = run(**given)
        backward(out)
        outs.append(out)
        grads.append({f"input {name}": value.grad for name, value in given.items() if value.requires_grad})
    assert outs[0].std() > 0.1
    return {"output": difference(*outs), **differences(*grads)}


def compare_full(kind: five.Kind, inputs: dict[str, Any]) -> dict[str, float]:
    """Every difference between the two models, all weights trained."""
    ours = five.tiny_model(kind)
    twin = five.tiny_twin(ours, kind)
    found = run_both(ours, twin, inputs)
    return {**found, **differences(to_diffusers(gradients_of(ours), ours.patch, kind.learned), gradients_of(twin))}


def compare_lora(kind: five.Kind, inputs: dict[str, Any]) -> dict[str, float]:
    """The same with adapters alone trained, PEFT's on diffusers' side."""
    ours = five.tiny_model(kind, LORA)
    twin = five.tiny_twin(ours, kind)
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(is_adapter(name))
    adapters = {under_peft(name): p for name, p in ours.named_parameters() if is_adapter(name)}
    add_adapters(twin, adapters)
    found = run_both(ours, twin, inputs)
    return {**found, **differences({under_peft(n): g for n, g in gradients_of(ours).items()}, gradients_of(twin))}


def add_adapters(twin: CogVideoXTransformer3DModel, adapters: dict[str, torch.Tensor]) -> None:
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    twin.add_adapter(LoraConfig(r=LORA["r"], lora_alpha=LORA["lora_alpha"], target_modules=targets))
    theirs = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    assert theirs.keys() == adapters.keys()
    for name, parameter in theirs.items():
        parameter.data.copy_(adapters[name])


def under_peft(name: str) -> str:
    """`transformer.layers.1.attention.dense.matrix_A.0` → what PEFT calls it in diffusers' model."""
    _, _, layer, _, linear, matrix, part = name.split(".")
    theirs = "to_out.0" if linear == "dense" else ("to_q", "to_k", "to_v")[int(part)]
    return f"transformer_blocks.{layer}.attn1.{theirs}.lora_{matrix[-1]}.default.weight"


@pytest.mark.parametrize("name", five.KINDS)
@pytest.mark.parametrize("compare", [compare_full, compare_lora], ids=["full", "lora"])
def test_each_published_model(name: str, compare: Any) -> None:
    kind = five.KINDS[name]
    assert_small(compare(kind, five.tiny_inputs(kind)))


@pytest.mark.parametrize("name", five.KINDS)
def test_a_batch_of_one(name: str) -> None:
    """It takes another path through the modulated norms."""
    kind = five.KINDS[name]
    assert_small(compare_full(kind, five.tiny_inputs(kind, batch=1)))


@pytest.mark.parametrize("name", ["1.5-5B", "1.5-5B-I2V"])
def test_smaller_pictures_of_1_5_are_cut_from_the_table(name: str) -> None:
    kind = five.KINDS[name]
    assert_small(compare_full(kind, five.tiny_inputs(kind, rows=4, columns=6)))


@pytest.mark.parametrize("rotary", [False, True], ids=["2b-like", "5b-like"])
@pytest.mark.parametrize(("frames", "rows", "columns"), [(1, 8, 12), (3, 4, 6)], ids=["image", "smaller"])
def test_other_sizes_of_1_0_count_from_zero(rotary: bool, frames: int, rows: int, columns: int) -> None:
    """diffusers' pipelines resample the rotary grid for sizes that are not native; here it counts from 0, as ours."""
    ours, inputs = tiny.model(rotary=rotary), tiny.inputs(2, frames, rows, columns)
    twin = tiny.diffusers_twin(ours, rotary)
    out, expected = ours(**inputs), tiny.run_twin(twin, **inputs)
    backward(out)
    backward(expected)
    assert difference(out, expected) <= LIMIT
    assert_small(differences(to_diffusers(gradients_of(ours), ours.patch), gradients_of(twin)))
