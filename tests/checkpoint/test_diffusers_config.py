"""config.json of diffusers' classes, and every name of the published models at their real sizes.

Truths checked: golden values (the published packages'), reference (diffusers' classes, on the meta device).
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

from cogvideox.checkpoint.diffusers_config import (
    check_transformer,
    image_scale_note,
    published_transformer,
    transformer_from_training,
    vae_config,
    vae_settings_from_training,
)
from cogvideox.checkpoint.published import MODELS, recognize
from cogvideox.checkpoint.transformer_names import missing_names, to_diffusers, to_sat
from cogvideox.errors import UserError
from tests.transformer import five
from tests.vae.small import build_diffusers
from tools.convert_description import model_node

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Parameters and keys of each package; the learned table of 5b-i2v is a buffer, not counted.
PARAMETERS = {
    "2b": 1_693_783_872,
    "5b": 5_570_283_072,
    "5b-i2v": 5_570_479_680,
    "1.5-5b": 5_570_676_352,
    "1.5-5b-i2v": 5_571_594_880,
}


def diffusers_model(model: str) -> CogVideoXTransformer3DModel:
    with torch.device("meta"):
        return CogVideoXTransformer3DModel.from_config(published_transformer(model))


@pytest.mark.parametrize("model", MODELS)
def test_every_key_of_the_real_model_maps(model: str) -> None:
    theirs = diffusers_model(model)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == PARAMETERS[model]
    config = published_transformer(model)
    sat = to_sat(theirs.state_dict())
    assert missing_names(sat, learned_positions=model == "5b-i2v") == []
    assert recognize(sat) == model
    check_transformer(config, sat, "the package")
    patch = (config["patch_size_t"] or 1, 2, 2)
    back = to_diffusers(sat, patch, config["use_learned_positional_embeddings"])
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in back.items()} == shapes


@pytest.mark.parametrize("model", MODELS)
def test_our_configs_give_the_published_values(model: str) -> None:
    node = model_node([str(CONFIGS / MODELS[model].config)])
    assert transformer_from_training(node, "config") == published_transformer(model)
    settings = vae_settings_from_training(node)
    # 1.5-5b-i2v trains on plain latents of the image, as SAT's package: diffusers has no name for that.
    assert settings == dict(MODELS[model].vae) | {"invert_scale_latents": False}
    notes = [image_scale_note(node, inverted) for inverted in (None, False, True)]
    if model == "1.5-5b-i2v":
        assert node["image_scale_factor"] == 1.0 and MODELS[model].vae["invert_scale_latents"]
        assert all(note is not None and "model.image_scale_factor=1.4286" in note for note in notes)
    else:
        assert notes[0] is None and notes[1] is None


@pytest.mark.parametrize(
    ("image_scale", "inverted", "by"),
    [
        (None, False, None),
        (0.7, False, None),
        (0.7, True, "1.4286"),
        (1.4286, True, None),
        (1 / 0.7, True, None),
        (1.4286, False, "0.7"),
        (1.0, False, "0.7"),
        (1.0, True, "1.4286"),
        (1.0, None, "0.7, or by 1.4286 where"),
        (1.4286, None, None),
    ],
)
def test_what_the_pipeline_multiplies_image_latents_by(
    image_scale: float | None, inverted: bool | None, by: str | None
) -> None:
    """diffusers' pipeline: times scaling_factor, or over it with `invert_scale_latents`."""
    model = {"scale_factor": 0.7, "image_scale_factor": image_scale}
    note = image_scale_note(model, inverted)
    assert note is None if by is None else f"multiplies the image's latents by {by} " in str(note)
    written = vae_settings_from_training(model)
    assert written["invert_scale_latents"] is (image_scale is not None and image_scale > 1.4)


@pytest.mark.parametrize("name", ["transformer", "vae"])
def test_config_json_has_every_option_of_the_class(name: str) -> None:
    classes: dict[str, tuple[Any, dict[str, Any]]] = {
        "transformer": (CogVideoXTransformer3DModel, published_transformer("5b")),
        "vae": (AutoencoderKLCogVideoX, vae_config(build_diffusers().state_dict(), MODELS["5b"].vae)),
    }
    cls, config = classes[name]
    options = set(inspect.signature(cls.__init__).parameters) - {"self"}
    assert {key for key in config if not key.startswith("_")} == options
    assert config["_class_name"] == cls.__name__


def test_vae_of_the_published_size() -> None:
    with torch.device("meta"):
        theirs = AutoencoderKLCogVideoX()
    config = vae_config(theirs.state_dict(), MODELS["2b"].vae)
    assert {key: theirs.config[key] for key in config if not key.startswith("_")} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.items() if key[0] != "_"
    }


@pytest.mark.parametrize("name", five.KINDS)
def test_sizes_of_any_config(name: str) -> None:
    params = five.params_of(five.KINDS[name], five.TINY)
    config = transformer_from_training({"network_config": {"params": params}}, "tiny.yaml")
    expected = five.diffusers_options(five.KINDS[name], five.TINY)
    assert {key: config[key] for key in expected} == expected


def test_weights_of_another_model_are_refused() -> None:
    sat = to_sat(diffusers_model("5b").state_dict())
    with pytest.raises(UserError, match="not of the model that my.yaml describes: it has num_layers 30,"):
        check_transformer(published_transformer("2b"), sat, "my.yaml")
    with pytest.raises(UserError, match="learned positions 17776, the weights 0"):
        check_transformer(published_transformer("5b-i2v") | {"in_channels": 16}, sat, "my.yaml")
    assert recognize(to_sat(CogVideoXTransformer3DModel(num_layers=1, num_attention_heads=1).state_dict())) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [1, 2, 4]}, "square patches only"),
        ({"modules": {"x": 1}}, "model.network_config.params.modules.pos_embed_config is not there"),
    ],
)
def test_what_diffusers_cannot_be_told(changes: dict[str, Any], message: str) -> None:
    params = five.params_of(five.KINDS["2B"], five.TINY) | changes
    with pytest.raises(UserError, match=message):
        transformer_from_training({"network_config": {"params": params}}, "tiny.yaml")


def test_a_config_without_a_size() -> None:
    params = five.params_of(five.KINDS["2B"], five.TINY)
    del params["num_frames"], params["hidden_size"]
    with pytest.raises(UserError, match="params.num_frames, model.network_config.params.hidden_size not there"):
        transformer_from_training({"network_config": {"params": params}}, "tiny.yaml")


def test_one_interpolation_for_rows_and_columns() -> None:
    params = five.params_of(five.KINDS["2B"], five.TINY)
    params["modules"]["pos_embed_config"]["params"]["width_interpolation"] = 1.0
    with pytest.raises(UserError, match="height_interpolation 1.875 and width_interpolation 1.0"):
        transformer_from_training({"network_config": {"params": params}}, "tiny.yaml")
