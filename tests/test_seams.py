"""Where people's own code meets ours: every seam is called by the names and in the orders that the reference has.

Truths: the reference's signatures and dotted paths; identity (a call by place is the call by name).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from cogvideox.config import instantiate
from cogvideox.transformer.wrapper import NetworkWrapper
from tests.conftest import ROOT

B, T, C, H, W = 2, 2, 16, 4, 6
TOKENS, TEXT_WIDTH, WIDTH = 16, 64, 128
STEPS = 3


def old_model() -> dict[str, Any]:
    """`model:` of an old config with the reference's paths and nesting, at the smallest size."""
    model = yaml.safe_load((ROOT / "tests/config/old_model.yaml").read_text(encoding="utf-8"))["model"]
    network = model["network_config"]["params"]
    network |= {"num_layers": 2, "hidden_size": WIDTH, "num_attention_heads": 2, "time_embed_dim": 64}
    network |= {"num_frames": 5, "latent_width": W, "latent_height": H}
    modules = network["modules"]
    del modules["lora_config"]
    modules["pos_embed_config"]["params"]["text_length"] = TOKENS
    modules["patch_embed_config"]["params"]["text_hidden_size"] = TEXT_WIDTH
    embedder = model["conditioner_config"]["params"]["emb_models"][0]["params"]
    embedder |= {"model_dir": str(ROOT / "assets/quickstart/t5"), "max_length": TOKENS}
    autoencoder = model["first_stage_config"]["params"]
    del autoencoder["ckpt_path"]
    for coder in ("encoder_config", "decoder_config"):
        autoencoder[coder] = copy.deepcopy(autoencoder[coder])
        autoencoder[coder]["params"] |= {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    model["sampler_config"]["params"] |= {"num_steps": STEPS, "verbose": False}
    return model


def as_dict(model: dict[str, Any], key: str) -> dict[str, Any]:
    return model[key]


def as_dict_config(model: dict[str, Any], key: str) -> DictConfig:
    """A node inside a tree, one of whose values is a reference to another branch."""
    tree = OmegaConf.create({"model": model})
    for name in ("sampler_config", "loss_fn_config.params.sigma_sampler_config"):
        path = f"model.{name}.params.discretization_config"
        OmegaConf.update(tree, path, "${model.denoiser_config.params.discretization_config}", merge=False)
    return tree.model[key]


def dict_around_dict_config(model: dict[str, Any], key: str) -> dict[str, Any]:
    """What people write who put a node together from parts of a loaded config."""
    node = as_dict_config(model, key)
    return {"target": node.target, "params": node.params}


@pytest.fixture(scope="module", params=[as_dict, as_dict_config, dict_around_dict_config])
def build(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Builds `model:`'s node of a name."""

    def from_node(key: str) -> Any:
        torch.manual_seed(0)
        return instantiate(request.param(old_model(), key))

    return from_node


@pytest.fixture(scope="module")
def transformer() -> Any:
    """With random weights, so that every input counts. 32 input channels: latents and images."""
    from tests.transformer.tiny import fill_randomly

    config = old_model()["network_config"]
    config["params"]["in_channels"] = 2 * C
    network = instantiate(config).eval().requires_grad_(False)
    fill_randomly(network)
    return network


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Names and defaults of a method's parameters, in order, without those that ours adds at the end."""
    return [
        (name, None if p.default is inspect.Parameter.empty else p.default)
        for name, p in inspect.signature(function).parameters.items()
    ]


def test_the_order_of_parameters_is_the_references(build: Callable[[str], Any]) -> None:
    network, autoencoder = build("network_config"), build("first_stage_config")
    conditioner, sampler = build("conditioner_config"), build("sampler_config")
    expected = {
        network.forward: "x timesteps context y concat_images ofs kw",
        autoencoder.encode: "x",
        autoencoder.decode: "z",
        conditioner.forward: "batch",
        conditioner.get_unconditional_conditioning: "batch batch_uc force_uc_zero_embeddings",
        build("denoiser_config").forward: "network x sqrt_alpha_bar cond",
        build("loss_fn_config").forward: "network denoiser conditioner x batch",
        sampler.__call__: "denoiser noise cond uc num_steps scale scale_emb ofs",
    }
    for function, names in expected.items():
        found = [name for name, default in parameters(function) if default is None]
        assert found[: len(names.split())] == names.split(), function
    assert inspect.signature(network.forward).parameters["kw"].kind is inspect.Parameter.VAR_KEYWORD


def test_transformer(transformer: Any) -> None:
    x, t, context, images = (
        tensor(B, T, C, H, W),
        torch.tensor([3, 900]),
        tensor(B, TOKENS, TEXT_WIDTH),
        tensor(B, T, C, H, W, seed=1),
    )
    by_place = transformer(x, t, context, None, images)
    by_name = transformer(x=x, timesteps=t, context=context, y=None, concat_images=images, ofs=None)
    assert by_place.shape == (B, T, C, H, W)
    assert torch.equal(by_place, by_name)
    more = transformer(x, timesteps=t, context=context, concat_images=images, lr_input=x, scale_emb=t, idx=t)
    assert torch.equal(by_place, more), "what the network does not read changes nothing"
    of_one = transformer(x, timesteps=t, context=context, concat_images=images[:1])
    assert torch.equal(of_one, transformer(x, t, context, None, images[:1].expand_as(images)))


def test_autoencoder(build: Callable[[str], Any]) -> None:
    autoencoder = build("first_stage_config")
    clip = tensor(1, 3, 5, 16, 24).clamp(-1, 1)
    z = autoencoder.encode(clip)
    assert z.shape == (1, 16, 2, 2, 3)
    assert autoencoder.decode(z).shape == clip.shape


def test_conditioner(build: Callable[[str], Any]) -> None:
    conditioner = build("conditioner_config").eval()
    batch, other = {"txt": ["a red ball", "a dog"], "fps": 8}, {"txt": ["blurred", ""]}
    cond = conditioner(batch)
    assert cond.keys() == {"crossattn"} and cond["crossattn"].shape == (B, TOKENS, TEXT_WIDTH)
    c, uc = conditioner.get_unconditional_conditioning(batch, force_uc_zero_embeddings=["txt"])
    assert torch.equal(c["crossattn"], cond["crossattn"]) and not uc["crossattn"].any()
    c, uc = conditioner.get_unconditional_conditioning(batch, other)
    assert torch.equal(c["crossattn"], cond["crossattn"])
    assert torch.equal(uc["crossattn"], conditioner(other)["crossattn"])
    c, uc = conditioner.get_unconditional_conditioning(batch, batch_uc=None, force_uc_zero_embeddings=None)
    assert torch.equal(c["crossattn"], uc["crossattn"])


def a_network(x: torch.Tensor, t: torch.Tensor, c: dict[str, Any], **more: Any) -> torch.Tensor:
    """People's own network, by the signature of the reference's wrapper."""
    return torch.sin(x) + c["crossattn"].mean()


def test_denoiser(build: Callable[[str], Any]) -> None:
    denoiser = build("denoiser_config")
    x, cond, idx = tensor(B, T, C, H, W), {"crossattn": tensor(B, TOKENS, TEXT_WIDTH)}, torch.tensor([0, 999])
    level = denoiser.schedule(idx)
    x0 = denoiser(a_network, x, level, cond, idx=idx, concat_images=None)
    assert torch.equal(x0, denoiser(network=a_network, x=x, sqrt_alpha_bar=level, cond=cond, idx=idx))
    assert torch.equal(x0[1], -a_network(x, idx, cond)[1]), "pure noise: x₀ is −v"


def test_loss(build: Callable[[str], Any]) -> None:
    loss_fn, denoiser = build("loss_fn_config"), build("denoiser_config")
    cond = {"crossattn": tensor(B, TOKENS, TEXT_WIDTH)}
    batch = {"txt": ["a", "b"], "mp4": tensor(B, T, C, H, W)}
    loss = loss_fn(a_network, denoiser, lambda given: cond if given is batch else {}, batch["mp4"], batch)
    assert loss.shape == (B,) and loss.dtype == torch.float32 and loss.isfinite().all()


def test_sampler(build: Callable[[str], Any]) -> None:
    sampler, denoiser = build("sampler_config"), build("denoiser_config")
    noise, cond = tensor(B, T, C, H, W), {"crossattn": tensor(B, TOKENS, TEXT_WIDTH)}
    uc, told = {"crossattn": torch.zeros_like(cond["crossattn"])}, []

    def denoise(x: torch.Tensor, level: torch.Tensor, c: dict[str, Any], **more: Any) -> torch.Tensor:
        told.append(more)
        return denoiser(a_network, x, level, c, **more)

    def seeded(*args: Any, **kwargs: Any) -> torch.Tensor:
        torch.manual_seed(1)
        return sampler(*args, **kwargs)

    by_name = seeded(
        denoise, noise, cond, uc=uc, num_steps=2, scale=3.0, scale_emb=torch.ones(1), ofs=torch.tensor([2.0])
    )
    assert by_name.shape == noise.shape and by_name.isfinite().all()
    assert [set(more) for more in told] == [{"idx", "scale_emb", "ofs"}] * 2
    by_place = seeded(denoise, noise, cond, uc, 2, 3.0, torch.ones(1), torch.tensor([2.0]))
    assert torch.equal(by_place, by_name)
    told.clear()
    assert seeded(denoise, noise, cond).shape == noise.shape
    assert [set(more) for more in told] == [{"idx"}] * STEPS


def test_the_whole_chain_as_the_references_engine_calls_it(transformer: Any, build: Callable[[str], Any]) -> None:
    """Its `sample` binds images and hands on what the sampler adds; its `shared_step` puts images into the batch."""
    network = NetworkWrapper(transformer)
    denoiser, loss_fn, sampler = (build(f"{name}_config") for name in ("denoiser", "loss_fn", "sampler"))
    cond = {"crossattn": tensor(B, TOKENS, TEXT_WIDTH)}
    uc = {"crossattn": torch.zeros_like(cond["crossattn"])}
    images = tensor(B, T, C, H, W, seed=2)

    def denoise(x: torch.Tensor, level: torch.Tensor, c: dict[str, Any], **more: Any) -> torch.Tensor:
        return denoiser(network, x, level, c, concat_images=images, **more)

    def sample(denoise: Any, **extra: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        both = ({**c, **extra} for c in (cond, uc))
        return sampler(denoise, tensor(B, T, C, H, W), *both, scale=2.0, scale_emb=None)

    bound = sample(denoise)
    in_cond = sample(lambda x, level, c, **more: denoiser(network, x, level, c, **more), concat=images)
    assert bound.shape == (B, T, C, H, W) and torch.equal(bound, in_cond)
    assert not torch.equal(bound, sample(lambda *a, **k: denoiser(network, *a, concat_images=0 * images, **k)))
    batch = {"txt": ["a", "b"], "concat_images": images}
    loss = loss_fn(network, denoiser, lambda _: cond, tensor(B, T, C, H, W), batch)
    assert loss.shape == (B,) and loss.isfinite().all()
