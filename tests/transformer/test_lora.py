"""Truth: identities. What adapters must not change, and what they alone change."""

from __future__ import annotations

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.transformer.lora import is_adapter
from tests.transformer import tiny

INPUTS = tiny.inputs(2)


def lora_model(seed: int = 0, **options: object) -> tiny.DiffusionTransformer:
    return tiny.DiffusionTransformer(**tiny.config(lora={"r": 4, **options}))


def test_names_are_sats() -> None:
    names = {name for name in lora_model().state_dict() if name.startswith("transformer.layers.1.attention.")}
    prefix = "transformer.layers.1.attention."
    assert names == {
        f"{prefix}{linear}.{rest}"
        for linear, count in (("query_key_value", 3), ("dense", 1))
        for rest in ["original.weight", "original.bias"]
        + [f"matrix_{letter}.{i}" for letter in "AB" for i in range(count)]
    }


def test_fresh_adapters_change_nothing() -> None:
    plain, adapted = tiny.model(), lora_model()
    missing = adapted.load_weights(plain.state_dict())
    assert sorted(missing) == sorted(name for name in adapted.state_dict() if is_adapter(name))
    torch.testing.assert_close(adapted(**INPUTS), plain(**INPUTS), rtol=0, atol=1e-6)


def test_shapes_of_adapters() -> None:
    state = lora_model().state_dict()
    prefix = "transformer.layers.0.attention."
    for i in range(3):
        assert state[f"{prefix}query_key_value.matrix_A.{i}"].shape == (4, tiny.WIDTH)
        assert state[f"{prefix}query_key_value.matrix_B.{i}"].shape == (tiny.WIDTH, 4)
    assert state[f"{prefix}dense.matrix_A.0"].shape == (4, tiny.WIDTH)
    assert state[f"{prefix}dense.matrix_B.0"].shape == (tiny.WIDTH, 4)


def test_merged_equals_adapted() -> None:
    model = lora_model(lora_alpha=2.0)
    tiny.fill_randomly(model)
    before = model(**INPUTS)
    keys_of_plain = set(tiny.model().state_dict())
    model.mixins["lora"].merge_lora()
    torch.testing.assert_close(model(**INPUTS), before, rtol=0, atol=1e-5)
    assert set(model.state_dict()) == keys_of_plain


def test_adapters_round_trip_through_a_checkpoint() -> None:
    saved, loaded = lora_model(), lora_model()
    tiny.fill_randomly(saved)
    assert loaded.load_weights(saved.state_dict()) == []
    assert torch.equal(loaded(**INPUTS), saved(**INPUTS))


def test_only_adapters_get_gradients_when_the_rest_is_frozen() -> None:
    model = lora_model()
    tiny.fill_randomly(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
    model(**INPUTS).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == is_adapter(name), name
        if parameter.grad is not None:
            assert parameter.grad.abs().max() > 0, name


def test_gradients_equal_those_of_the_sum_of_matrices() -> None:
    model = lora_model(lora_alpha=3.0)
    tiny.fill_randomly(model)
    layer = model.transformer.layers[0].attention.query_key_value
    x = torch.randn(2, 5, tiny.WIDTH)
    cotangent = torch.randn(3, 2, 5, tiny.WIDTH)
    (torch.stack(layer(x)) * cotangent).sum().backward()
    found = [p.grad for p in (*layer.matrix_A, *layer.matrix_B)]
    expected_out = torch.stack(
        [
            x @ (w + 3.0 / 4 * b @ a).T + c
            for w, c, a, b in zip(
                layer.original.weight.chunk(3),
                layer.original.bias.chunk(3),
                layer.matrix_A,
                layer.matrix_B,
                strict=True,
            )
        ]
    )
    expected = torch.autograd.grad((expected_out * cotangent).sum(), [*layer.matrix_A, *layer.matrix_B])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_layer_range_limits_the_adapters() -> None:
    names = [name for name in lora_model(layer_range=[1]).state_dict() if is_adapter(name)]
    assert names and all(name.startswith("transformer.layers.1.") for name in names)


def test_dropout_acts_only_in_training() -> None:
    model = lora_model(lora_dropout=0.5)
    tiny.fill_randomly(model)
    assert not torch.equal(model(**INPUTS), model(**INPUTS))
    model.eval()
    assert torch.equal(model(**INPUTS), model(**INPUTS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r is 0"),
        ({"qlora": True}, "qlora"),
        ({"layer_range": [0, 7]}, "layers are 0 to 1"),
        ({"lora_dropout": 1.5}, "lora_dropout"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora_model(**options)


def test_some_adapters_of_a_model_are_refused() -> None:
    state = lora_model().state_dict()
    name = next(name for name in state if ".matrix_B." in name)
    del state[name]
    with pytest.raises(UserError, match=f"lacks 1 of the adapters.*{name}"):
        lora_model().load_weights(state, allow_missing=True)


def test_weights_that_stay_random_are_named(caplog: pytest.LogCaptureFixture) -> None:
    state = tiny.model().state_dict()
    del state["time_embed.0.weight"]
    lora_model().load_weights(state, "here", allow_missing=True)
    assert "here lacks 1 weights, which stay random (time_embed.0.weight)" in caplog.text
    caplog.clear()
    adapters = {name: tensor for name, tensor in lora_model().state_dict().items() if is_adapter(name)}
    lora_model().load_weights(adapters, allow_missing=True)
    assert not caplog.text, "adapters go on top of weights that are there"
