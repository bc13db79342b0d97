"""Truths: scaling is applied once, frozen networks stay out of checkpoints yet follow casts, the loss is the room's."""

from __future__ import annotations

import pytest
import torch

from cogvideox.checkpoint.loading import StartingWeights
from cogvideox.errors import UserError
from tests.engine import FRAMES, HEIGHT, WIDTH, build_engine, make_batch

LORA = {"target": "sat.model.finetune.lora2.LoraMixin", "params": {"r": 2}}


@pytest.fixture(scope="module")
def engine():  # noqa: ANN201
    return build_engine(scale_factor=0.5)


def test_latents_are_the_vaes_times_the_scale_factor(engine) -> None:  # noqa: ANN001
    clips = make_batch()["mp4"]
    torch.manual_seed(3)
    z = engine.encode_clips(clips)
    torch.manual_seed(3)
    with torch.no_grad():
        raw = engine.first_stage_model.encode(clips.transpose(1, 2))
    assert z.shape == (2, 2, 16, HEIGHT // 8, WIDTH // 8)
    assert torch.equal(z, 0.5 * raw.transpose(1, 2))
    with torch.no_grad():
        decoded = engine.first_stage_model.decode(raw)
    assert torch.allclose(engine.decode_clips(z), decoded.transpose(1, 2), atol=1e-6)


def test_shared_step_is_the_loss_of_the_encoded_batch(engine) -> None:  # noqa: ANN001
    batch = make_batch()
    engine.train()
    torch.manual_seed(4)
    loss, metrics = engine.shared_step(batch)
    torch.manual_seed(4)
    z = engine.encode_clips(batch["mp4"])
    expected = engine.loss_fn(engine.model, engine.denoiser, engine.conditioner, z, batch).mean()
    assert torch.equal(loss, expected) and torch.equal(metrics["loss"], loss)
    loss.backward()
    assert all(parameter.grad is not None for parameter in engine.parameters() if parameter.requires_grad)
    engine.zero_grad()


def test_samples_have_the_frames_of_the_input(engine) -> None:  # noqa: ANN001
    videos = engine.eval().log_video(make_batch(3), N=2)
    assert {key: tuple(value.shape) for key, value in videos.items()} == dict.fromkeys(
        ("inputs", "reconstructions", "samples"), (2, FRAMES, 3, HEIGHT, WIDTH)
    )
    latents = engine.log_video(make_batch(), only_log_video_latents=True)
    assert latents.keys() == {"latents"} and latents["latents"].shape == (2, 2, 16, HEIGHT // 8, WIDTH // 8)


def test_frozen_networks_stay_out_of_the_module_tree_and_follow_casts() -> None:
    engine = build_engine(torch.bfloat16)
    assert all(name.startswith("model.diffusion_model.") for name, _ in engine.named_parameters())
    for module in (engine.first_stage_model, engine.conditioner):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert not any(parameter.requires_grad for parameter in module.parameters())
    engine.train()
    assert not engine.first_stage_model.training and engine.conditioner.training


def test_only_adapters_train_where_all_is_frozen() -> None:
    engine = build_engine(not_trainable_prefixes=["all"])
    with pytest.raises(UserError, match="nothing to train"):
        engine.disable_untrainable_params()
    adapted = _with_lora(build_engine)
    adapted.disable_untrainable_params()
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trainable and all("matrix_" in name for name in trainable) and adapted.trains_adapters_only


def _with_lora(build):  # noqa: ANN001, ANN202
    from tests.engine import model_config

    network = model_config()["network_config"]
    network["params"]["modules"]["lora_config"] = LORA
    return build(not_trainable_prefixes=["all"], network_config=network)


def test_weights_load_with_and_without_their_prefix_and_pass_over_the_vae(engine) -> None:  # noqa: ANN001
    from pathlib import Path

    state = {name: tensor + 1 for name, tensor in engine.state_dict().items()}
    for names in (lambda name: name, lambda name: name.removeprefix("model.diffusion_model.")):
        other = build_engine()
        given = {names(name): tensor for name, tensor in state.items()} | {"first_stage_model.x": torch.zeros(1)}
        other.load_weights(StartingWeights(given, Path("here")), allow_missing=False)
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(UserError, match="here does not fit"):
        other.load_weights(StartingWeights({"unknown": torch.zeros(1)}, Path("here")), allow_missing=False)


def test_weights_load_from_diffusers_names(engine) -> None:  # noqa: ANN001
    from pathlib import Path

    from cogvideox.checkpoint.transformer_names import to_diffusers

    state = {name: tensor + 1 for name, tensor in engine.network.state_dict().items() if "pos_embedding" not in name}
    other = build_engine()
    given = to_diffusers(state, engine.network.patch)
    other.load_weights(StartingWeights(given, Path("here")), allow_missing=False)
    loaded = other.network.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())
