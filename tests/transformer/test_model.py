"""Sizes, names, precision, recomputation, and what is refused. Each test says which truth it checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.transformer.layout import TokenLayout
from cogvideox.transformer.positions import rotary_3d
from cogvideox.transformer.wrapper import NetworkWrapper
from tests.transformer import tiny


def gradients(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    out = model(**inputs)
    out.square().mean().backward()
    return out.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rotary", [False, True])
def test_recomputing_activations_changes_nothing(rotary: bool) -> None:
    """Identity: bit-equal."""
    keep = tiny.model(rotary=rotary)
    recompute = tiny.model(rotary=rotary, transformer_args={"checkpoint_activations": True})
    out, grads = gradients(keep, tiny.inputs())
    out_again, grads_again = gradients(recompute, tiny.inputs())
    assert torch.equal(out, out_again)
    assert grads.keys() == grads_again.keys()
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)


@pytest.mark.parametrize("told", [2.0, 0.5])
def test_ofs_is_the_configs_where_the_caller_gives_none(told: float) -> None:
    """Identity: as if passed, for one sample or for each."""
    model = tiny.model(ofs_embed_dim=32, ofs=told)
    inputs, unsaid = tiny.inputs(), model(**tiny.inputs())
    for ofs in ([told], [told, told]):
        torch.testing.assert_close(model(**inputs, ofs=torch.tensor(ofs)), unsaid, rtol=0, atol=1e-5)
    assert (model(**inputs, ofs=torch.tensor([told, told + 1])) - unsaid).abs().max() > 1e-3, "it counts"
    if told == 2.0:
        assert torch.equal(unsaid, tiny.model(ofs_embed_dim=32)(**inputs)), "2.0 unless the config says otherwise"


def test_published_leftovers_are_accepted_and_dropped() -> None:
    """Round trip: a published checkpoint's Conv2d patch weight, unused embedding and tables."""
    source, loaded = tiny.model(seed=0), tiny.model(seed=5)
    state = dict(source.state_dict())
    patch = "mixins.patch_embed.proj.weight"
    state[patch] = state[patch].view(tiny.WIDTH, 4, 2, 2)
    state["transformer.position_embeddings.weight"] = torch.zeros(64, tiny.WIDTH)
    state["mixins.pos_embed.freqs_sin"] = state["mixins.pos_embed.freqs_cos"] = torch.zeros(5, 4, 6, 64)
    assert loaded.load_weights(state) == []
    assert torch.equal(loaded(**tiny.inputs()), source(**tiny.inputs()))


def test_a_frozen_position_table_of_another_size_or_none_is_made_anew() -> None:
    """Identity: the table is a formula."""
    source, loaded = tiny.model(rotary=False), tiny.model(rotary=False, seed=5)
    state = dict(source.state_dict())
    table = "mixins.pos_embed.pos_embedding"
    for other in (None, torch.zeros(1, 3, tiny.WIDTH)):
        loaded.load_weights(
            {k: v for k, v in state.items() if k != table} | ({table: other} if other is not None else {})
        )
        assert torch.equal(loaded(**tiny.inputs()), source(**tiny.inputs()))


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_is_near_float32(dtype: str, limit: float) -> None:
    """Reference: our own float32."""
    single, half = tiny.model(), tiny.DiffusionTransformer(**tiny.config(dtype=dtype))
    half.load_weights(single.state_dict())
    assert all(p.dtype == half.dtype for p in half.parameters())
    out, grads = gradients(single, tiny.inputs())
    out_half, grads_half = gradients(half, tiny.inputs())
    assert out_half.dtype == half.dtype
    assert (out_half.float() - out).abs().max() < limit * out.abs().max()
    for name, expected in grads.items():
        assert (grads_half[name].float() - expected).norm() < 0.2 * expected.norm() + 1e-6, name


def test_rotary_tables_stay_float32_when_the_model_is_cast() -> None:
    """Identity."""
    model = tiny.model()
    layout = TokenLayout(tiny.TEXT_TOKENS, 5, 4, 6, (1, 2, 2))
    before = model.mixins["pos_embed"].rotary(layout, torch.device("cpu"))
    model.bfloat16().half()
    model.to(torch.bfloat16)
    after = model.mixins["pos_embed"].rotary(layout, torch.device("cpu"))
    assert after.dtype == torch.complex64 and torch.equal(before, after)
    assert torch.equal(after, rotary_3d(layout, 64, 10000.0, (1.0, 1.0, 1.0)))


def test_building_leaves_no_trace() -> None:
    """Identity: no process group is left, and the random state goes on from the seed as without SAT's reseeding."""
    torch.manual_seed(7)
    first = tiny.DiffusionTransformer(**tiny.config())
    torch.manual_seed(8)
    second = tiny.DiffusionTransformer(**tiny.config())
    assert not torch.distributed.is_initialized()
    weight = "transformer.layers.0.attention.dense.weight"
    assert not torch.equal(first.state_dict()[weight], second.state_dict()[weight])


def test_a_new_model_starts_with_identity_blocks() -> None:
    """Identity: with AdaLN-zero the text cannot reach the output yet."""
    model = tiny.DiffusionTransformer(**tiny.config())
    inputs = tiny.inputs()
    assert torch.equal(model(**inputs), model(**{**inputs, "context": inputs["context"] * 2}))


def test_samples_of_a_batch_do_not_mix() -> None:
    """Identity: a batch of two is two batches of one (they take different paths in the norms)."""
    model, both = tiny.model(), tiny.inputs(2)
    together = model(**both)
    for i in range(2):
        alone = model(**{name: value[i : i + 1] for name, value in both.items()})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_it_is_one_graph_for_torch_compile(lora: dict[str, Any] | None) -> None:
    """Identity: no graph breaks, the same output."""
    model = tiny.model(lora=lora)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(**tiny.inputs()), model(**tiny.inputs()))


def test_the_wrapper_joins_images_and_keeps_the_conditioning() -> None:
    """Identity: what it is given is what the model gets, doubled for guidance, and not changed."""
    model = tiny.model(in_channels=8)
    wrapper = NetworkWrapper(model)
    assert all(name.startswith("diffusion_model.") for name in wrapper.state_dict())
    inputs = tiny.inputs(2)
    images = torch.randn(1, *inputs["x"].shape[1:])
    cond = {"crossattn": inputs["context"], "concat": images}
    out = wrapper(inputs["x"], inputs["timesteps"], cond)
    joined = torch.cat([inputs["x"], images.repeat(2, 1, 1, 1, 1)], dim=2)
    assert torch.equal(out, model(**{**inputs, "x": joined}))
    assert cond["concat"] is images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_SwiGLU": True}, "use_SwiGLU"),
        ({"use_RMSNorm": True}, "use_RMSNorm"),
        ({"input_time": "concat"}, "input_time"),
        ({"num_classes": 10}, "num_classes"),
        ({"dtype": "fp8"}, "fp8"),
        ({"num_attention_heads": 3}, "128 does not divide by num_attention_heads 3"),
        ({"patch_size": [2, 2]}, "patch_size"),
        ({"ofs_embed_dim": 16}, "ofs_embed_dim 16"),
        ({"transformer_args": {"layernorm_order": "sandwich"}}, "sandwich"),
        ({"transformer_args": {"is_decoder": True}}, "is_decoder"),
        ({"transformer_args": {"hidden_dropout": 0.1}}, "hidden_dropout"),
        ({"transformer_args": {"model_parallel_size": 2}}, "model_parallel_size is 2"),
        ({"modules": {}}, "pos_embed_config is missing"),
    ],
)
def test_unsupported_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny.DiffusionTransformer(**tiny.config(**changes))


def cut(name: str, *index: Any) -> dict[str, torch.Tensor]:
    inputs = tiny.inputs()
    return {**inputs, name: inputs[name][index]}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (cut("x", 0), "expected .B, T, C, H, W."),
        (cut("x", slice(None), slice(None), slice(0, 3)), "C = 4"),
        (cut("x", slice(None), slice(None), slice(None), slice(0, 7)), r"patch_size\[1\] is 2: use 6 or 8"),
        (tiny.inputs(rows=16), "positions go up to 5 x 4 x 6"),
        (tiny.inputs(frames=6), "6 x 4 x 6"),
        (cut("context", slice(0, 1)), r"expected \(2, tokens, 24\)"),
        (cut("context", slice(None), slice(None), slice(0, 5)), "text_hidden_size"),
    ],
)
@pytest.mark.parametrize("rotary", [False, True])
def test_shapes_that_do_not_fit_are_refused(inputs: dict[str, Any], message: str, rotary: bool) -> None:
    with pytest.raises(UserError, match=message):
        tiny.model(rotary=rotary)(**inputs)


def test_weights_that_do_not_fit_are_refused() -> None:
    model = tiny.model()
    state = dict(model.state_dict())
    name = "transformer.layers.0.attention.dense.weight"
    with pytest.raises(UserError, match=r"1 parameters missing \(" + name):
        model.load_weights({k: v for k, v in state.items() if k != name})
    with pytest.raises(UserError, match=r"1 unknown \(extra"):
        model.load_weights({**state, "extra": torch.zeros(1)})
    with pytest.raises(UserError, match="size mismatch"):
        model.load_weights({**state, name: torch.zeros(2, 2)})
