"""Truths: what an image-to-video or 1.5 model is given besides the noised latents, and what is dropped again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.transformer.layout import TokenLayout
from diffusion_video import SATVideoDiffusionEngine
from tests.engine import FRAMES, HEIGHT, WIDTH, build_engine, make_batch, model_config

LATENT = (2, 16, HEIGHT // 8, WIDTH // 8)


def engine_of(kind: str, **changes: Any) -> SATVideoDiffusionEngine:
    """A tiny engine of the published kinds 2b, i2v (learned positions), 1.5 and 1.5-i2v."""
    config = model_config()["network_config"]
    params = config["params"]
    text_length = params["modules"]["pos_embed_config"]["params"]["text_length"]
    if kind != "2b":
        positions: dict[str, Any] = {"text_length": text_length, "hidden_size_head": 64}
        if kind == "i2v":
            positions["learnable_pos_embed"] = True
        target = "dit_video_concat.Rotary3DPositionEmbeddingMixin"
        params["modules"]["pos_embed_config"] = {"target": target, "params": positions}
    if "1.5" in kind:
        params |= {"patch_size": [2, 2, 2], "num_frames": 9}
    if "i2v" in kind:
        params["in_channels"] = 32
        changes = {"noised_image_input": True} | changes
    if kind == "1.5-i2v":
        params["ofs_embed_dim"] = params["time_embed_dim"]
    return build_engine(network_config=config, **changes)


class Seen:
    """Stands before the loss and keeps what it was called with."""

    def __init__(self, engine: SATVideoDiffusionEngine) -> None:
        self.loss_fn = engine.loss_fn
        engine.__dict__["loss_fn"] = self
        engine._modules.pop("loss_fn")

    def __call__(self, network: Any, denoiser: Any, conditioner: Any, x: torch.Tensor, batch: dict) -> torch.Tensor:
        self.x, self.batch = x, batch
        return self.loss_fn(network, denoiser, conditioner, x, batch)


@pytest.mark.parametrize("kind", ["2b", "i2v", "1.5", "1.5-i2v"])
def test_every_kind_trains_and_shows_samples_with_the_frames_of_the_input(kind: str) -> None:
    engine = engine_of(kind).train()
    batch = make_batch()
    batch["mp4"] = torch.cat([batch["mp4"], batch["mp4"][:, 1:]], dim=1) if "1.5" in kind else batch["mp4"]
    loss, _ = engine.shared_step(batch)
    loss.backward()
    trained = [name for name, parameter in engine.named_parameters() if parameter.requires_grad]
    assert all(engine.get_parameter(name).grad is not None for name in trained)
    assert any("ofs_embed" in name for name in trained) == (kind == "1.5-i2v")
    shapes = {key: tuple(value.shape) for key, value in engine.eval().log_video(batch).items()}
    assert set(shapes.values()) == {tuple(batch["mp4"].shape)}, shapes


def test_the_image_is_at_the_first_latent_frame_and_zero_elsewhere() -> None:
    engine = engine_of("i2v", scale_factor=0.5).train()
    seen, batch = Seen(engine), make_batch()
    torch.manual_seed(1)
    engine.shared_step(batch)
    images = seen.batch["concat_images"]
    assert images.shape == (2, *LATENT) and not images[:, 1:].any()
    torch.manual_seed(1)
    sigma = (-3 + 0.5 * torch.randn(2)).exp()
    noised = batch["mp4"][:, 0] + sigma[:, None, None, None] * torch.randn(2, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        expected = 0.5 * engine.first_stage_model.encode(noised[:, :, None])
    torch.testing.assert_close(images[:, 0], expected[:, :, 0])
    assert batch.keys() == make_batch().keys(), "the caller's batch is its own"


def test_the_image_is_everywhere_where_asked() -> None:
    engine = engine_of("i2v", noised_image_all_concat=True)
    seen = Seen(engine)
    engine.shared_step(make_batch())
    images = seen.batch["concat_images"]
    assert images[:, 0].any() and torch.equal(images[:, 0], images[:, 1])


def test_images_are_dropped_for_each_sample_in_training_only() -> None:
    engine = engine_of("i2v", noised_image_dropout=0.5)
    seen = Seen(engine)
    counts = []
    torch.manual_seed(0)
    for training in (True, False):
        engine.train(training)
        kept = []
        for _ in range(8):
            engine.shared_step(make_batch(4))
            kept.append([bool(sample.any()) for sample in seen.batch["concat_images"]])
        counts.append(sum(map(sum, kept)))
        assert any(len(set(row)) == 2 for row in kept) == training
    assert 8 <= counts[0] <= 24 and counts[1] == 32


def test_the_images_latents_have_a_scale_of_their_own() -> None:
    images = make_batch()["mp4"][:, 0]
    latents = {}
    for scale in (None, 1.0):
        engine = engine_of("1.5-i2v", scale_factor=0.7, image_scale_factor=scale)
        torch.manual_seed(2)
        latents[scale] = engine.encode_images(images)
    torch.testing.assert_close(latents[None], 0.7 * latents[1.0])


def test_an_odd_number_of_latents_is_padded_in_front_by_the_first() -> None:
    engine = engine_of("1.5-i2v")
    seen, batch = Seen(engine), make_batch()
    batch["mp4"] = torch.cat([batch["mp4"], batch["mp4"][:, 1:]], dim=1)  # 9 frames, 3 latents
    torch.manual_seed(5)
    engine.shared_step(batch)
    assert seen.x.shape == (2, 4, *LATENT[1:]) and torch.equal(seen.x[:, 0], seen.x[:, 1])
    assert not torch.equal(seen.x[:, 1], seen.x[:, 2])
    images = seen.batch["concat_images"]
    assert images.shape == seen.x.shape and images[:, 0].any() and not images[:, 1:].any()


def test_the_frame_that_pads_is_dropped_from_samples() -> None:
    engine = engine_of("1.5").eval()
    cond = {"crossattn": torch.zeros(1, 48, 64)}
    engine.sampler.num_steps = 2
    noise = torch.randn(1, 4, *LATENT[1:])
    samples = engine.sample(cond, batch_size=1, shape=(3, *LATENT[1:]), noise=noise, generator=torch.manual_seed(3))
    whole = engine.sample(cond, batch_size=1, shape=(4, *LATENT[1:]), noise=noise, generator=torch.manual_seed(3))
    assert samples.shape == (1, 3, *LATENT[1:]) and torch.equal(samples, whole[:, 1:])


def test_an_image_changes_the_samples_of_its_model_alone() -> None:
    engine = engine_of("i2v").eval()
    torch.nn.init.normal_(engine.network.mixins["final_layer"].linear.weight)
    cond = {"crossattn": torch.zeros(1, 48, 64)}
    noise = torch.randn(1, *LATENT)

    def samples(image: torch.Tensor | None) -> torch.Tensor:
        latents = None if image is None else image.expand(1, 1, *LATENT[1:])
        generator = torch.manual_seed(0)
        return engine.sample(cond, batch_size=1, shape=LATENT, noise=noise, image_latents=latents, generator=generator)

    assert not torch.allclose(samples(torch.tensor(1.0)), samples(torch.tensor(0.0)))
    with pytest.raises(UserError, match="noised_image_input"):
        samples(None)
    with pytest.raises(UserError, match="noised_image_input"):
        other = engine_of("1.5").eval()
        other.sample(cond, batch_size=1, shape=LATENT, image_latents=torch.zeros(1, 1, *LATENT[1:]))


def test_latents_as_input_are_scaled_and_not_encoded() -> None:
    engine = engine_of("2b", latent_input=True, scale_factor=0.5)
    seen = Seen(engine)
    latents = torch.randn(2, *LATENT)
    batch = make_batch() | {"mp4": latents}
    engine.shared_step(batch)
    assert torch.equal(seen.x, 0.5 * latents)
    videos = engine.eval().log_video(batch)
    assert videos["inputs"].shape == videos["samples"].shape == (2, FRAMES, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(videos["inputs"], videos["reconstructions"])
    with pytest.raises(UserError, match="latent_input"):
        engine_of("i2v", latent_input=True)


def test_a_coarse_copy_is_given_to_the_network_where_asked(caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of("2b", lr_scale=2.0)
    seen = Seen(engine)
    engine.shared_step(make_batch())
    assert seen.batch["lr_input"].shape == seen.x.shape and not torch.equal(seen.batch["lr_input"], seen.x)
    engine.shared_step(make_batch())
    assert caplog.text.count("does not read `lr_input`") == 1


def test_clips_are_encoded_a_few_at_a_time_where_asked() -> None:
    whole, parts = engine_of("2b"), engine_of("2b", en_and_decode_n_samples_a_time=1)
    clips = make_batch(3)["mp4"]
    z = torch.randn(3, *LATENT)
    torch.testing.assert_close(parts.decode_clips(z), whole.decode_clips(z), atol=1e-5, rtol=1e-5)
    calls = []
    encode = parts.first_stage_model.encode
    parts.first_stage_model.encode = lambda x: calls.append(len(x)) or encode(x)
    assert parts.encode_clips(clips).shape == (3, *LATENT) and calls == [1, 1, 1]


@pytest.mark.parametrize(
    ("size", "message"), [((6, 32, 48), "4k \\+ 1"), ((5, 32, 40), "patch_size"), ((5, 64, 48), "interpolate")]
)
def test_a_size_that_does_not_fit_is_refused(size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        engine_of("2b").latent_shape(*size)


@pytest.mark.parametrize("kind", ["2b", "i2v", "1.5"])
def test_positions_are_squeezed_where_asked(kind: str) -> None:
    """Identity: beyond the table the last position is the table's last; within it nothing changes."""
    engine = engine_of(kind)
    positions, patch = engine.network.mixins["pos_embed"], engine.network.patch
    if kind == "i2v":
        torch.nn.init.normal_(positions.pos_embedding)
    wide = TokenLayout(48, *(2 * size for size in positions.grid), patch)
    own = TokenLayout(48, *positions.grid, patch)
    before = told(positions, own)
    positions.interpolate = True
    assert engine.latent_shape(FRAMES, 2 * HEIGHT, 2 * WIDTH) == (2, 16, HEIGHT // 4, WIDTH // 4)
    assert torch.equal(told(positions, own), before)
    squeezed = told(positions, wide)
    assert len(squeezed) == wide.video_length
    torch.testing.assert_close(squeezed[-1], before[-1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(squeezed[1], before[1])


def told(positions: Any, layout: TokenLayout) -> torch.Tensor:
    """What the video tokens of a layout get, all kinds of positions side by side. (S, …)"""
    added, turned = (
        positions.position_embedding_forward(None, layout=layout)[1],
        positions.rotary(layout, torch.device("cpu")),
    )
    parts = [] if added is None else [added[0]]
    parts += [] if turned is None else [torch.view_as_real(turned[layout.text_length :]).flatten(1)]
    return torch.cat(parts, dim=1).detach()


def test_images_and_ofs_given_as_the_reference_does_are_the_same() -> None:
    """Identity: `concat` in the conditioning, `concat_images=` and `image_latents=`; 5B-I2V takes an `ofs` unread."""
    engine = engine_of("i2v").eval()
    torch.nn.init.normal_(engine.network.mixins["final_layer"].linear.weight)
    cond, noise = {"crossattn": torch.zeros(1, 48, 64)}, torch.randn(1, *LATENT)
    image = torch.randn(1, 1, *LATENT[1:])
    whole = torch.cat([image, torch.zeros(1, LATENT[0] - 1, *LATENT[1:])], dim=1)

    def samples(conditioning: dict[str, torch.Tensor], **given: Any) -> torch.Tensor:
        generator = torch.manual_seed(0)
        return engine.sample(conditioning, batch_size=1, shape=LATENT, noise=noise, generator=generator, **given)

    ours = samples(cond, image_latents=image)
    assert torch.equal(samples(cond, concat_images=whole), ours)
    assert torch.equal(samples(cond | {"concat": whole}, ofs=torch.tensor([2.0])), ours)


def test_a_given_start_is_kept_where_a_frame_is_added_in_front() -> None:
    engine = engine_of("1.5").eval()
    engine.sampler.fixed_frames = 1
    start = torch.randn(1, 1, *LATENT[1:])
    samples = engine.sample({"crossattn": torch.zeros(1, 48, 64)}, batch_size=1, shape=(3, *LATENT[1:]), prefix=start)
    assert torch.equal(samples[:, :1], start) and not torch.equal(samples[:, 1:2], start)


def test_fixed_frames_are_counted_after_the_frame_that_is_added_in_front() -> None:
    engine = engine_of("1.5")
    engine.loss_fn.fixed_frames = 1
    batch = make_batch()
    batch["mp4"] = torch.cat([batch["mp4"], batch["mp4"][:, 1:]], dim=1)  # 3 latents, 4 with the padding
    given: list[torch.Tensor] = []
    engine.model.register_forward_pre_hook(lambda _module, args: given.append(args[0]))
    seen = Seen(engine)
    engine.shared_step(batch)
    assert torch.equal(given[0][:, :2], seen.x[:, :2].float()) and not torch.equal(given[0][:, 2], seen.x[:, 2].float())
