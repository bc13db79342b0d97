"""Every config that is shipped is complete and fits the classes that will read it.

Truths: the numbers of the published models (golden values), and the classes' own signatures."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from arguments import get_args
from cogvideox.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FULL = ("cogvideox_2b", "cogvideox_5b", "cogvideox_5b_i2v", "cogvideox1.5_5b", "cogvideox1.5_5b_i2v")
MODELS = (*FULL, *(f"{name}_lora" for name in FULL))
ROTARY, SINCOS = "Rotary3DPositionEmbeddingMixin", "Basic3DPositionEmbeddingMixin"
# Where the configs' comments say that the weights are: transformer, VAE.
WEIGHTS = {
    "cogvideox_2b": ("CogVideoX-2b-sat/transformer", "CogVideoX-2b-sat/vae"),
    "cogvideox_5b": ("CogVideoX-5b-sat/transformer", "CogVideoX-5b-sat/vae"),
    "cogvideox_5b_i2v": ("CogVideoX-5b-I2V-sat/transformer", "CogVideoX-5b-I2V-sat/vae"),
    "cogvideox1.5_5b": ("CogVideoX1.5-5B-SAT/transformer_t2v", "CogVideoX1.5-5B-SAT/vae"),
    "cogvideox1.5_5b_i2v": ("CogVideoX1.5-5B-SAT/transformer_i2v", "CogVideoX1.5-5B-SAT/vae"),
}

# Of the transformer, as the diffusers package counts them.
PARAMETERS = {
    "cogvideox_2b": 1_693_783_872,
    "cogvideox_5b": 5_570_283_072,
    "cogvideox_5b_i2v": 5_570_479_680,
    "cogvideox1.5_5b": 5_570_676_352,
    "cogvideox1.5_5b_i2v": 5_571_594_880,
}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout that the configs' comments describe, with empty files."""
    for transformer, vae in WEIGHTS.values():
        (tmp_path / transformer / "1").mkdir(parents=True)
        (tmp_path / transformer / "1/mp_rank_00_model_states.pt").write_bytes(b"PK\x03\x04")
        (tmp_path / transformer / "latest").write_text("1")
        (tmp_path / vae).mkdir(exist_ok=True)
        (tmp_path / vae / "3d-vae.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "t5-v1_1-xxl").mkdir()
    (tmp_path / "clips/videos").mkdir(parents=True)
    (tmp_path / "clips/videos/a.mp4").touch()
    monkeypatch.setenv("COGVIDEOX_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("COGVIDEOX_DATA", str(tmp_path / "clips"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def task_of(model: str) -> str:
    return "sft1.5" if "1.5" in model else "sft"


def read(*names: str, words: tuple[str, ...] = ()) -> argparse.Namespace:
    return get_args(["--base", *(str(ROOT / f"configs/{name}.yaml") for name in names), *words])


def test_all_files_are_covered_here() -> None:
    found = {path.stem for path in (ROOT / "configs").glob("*.yaml")} - {"inference"}  # a task of sample_video.py
    assert found == {*MODELS, "sft", "sft1.5", "lora", "quickstart"}


ORDERS = [(name, task_of(name)) for name in MODELS]
ORDERS += [("sft", "cogvideox_5b_lora"), ("cogvideox1.5_5b", "lora", "sft1.5"), ("cogvideox1.5_5b_lora", "sft")]


@pytest.mark.parametrize("names", ORDERS)
def test_a_model_and_the_task_make_a_complete_config_in_any_order(weights: Path, names: tuple[str, ...]) -> None:
    is_2b = any("2b" in name for name in names)
    args = read(*names, words=("--bf16",) if is_2b else ())  # fp16, the 2B model's, needs a GPU
    is_lora = any("lora" in name for name in names)
    assert args.bf16
    assert args.lr == (1e-3 if is_lora else 1e-5)
    assert not args.force_train, "the weights under adapters are to be whole; adapters may be missing anyway"
    assert args.mode == "finetune" and args.zero_stage == 2
    assert not args.config_notes or is_2b, "a shipped file has nothing to be ignored"


@pytest.mark.parametrize("name", FULL)
def test_each_model_starts_from_its_own_weights(weights: Path, name: str) -> None:
    transformer, vae = WEIGHTS[name]
    for kind in (name, f"{name}_lora"):
        args = read(kind, task_of(name), words=("--bf16",))
        assert args.load == str(weights / transformer)
        assert args.model_config["first_stage_config"]["params"]["ckpt_path"] == str(weights / vae / "3d-vae.pt")


@pytest.mark.parametrize("name", FULL)
def test_missing_weights_are_told_with_the_command_that_fetches_that_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from cogvideox.checkpoint.published import MODELS as PUBLISHED

    monkeypatch.setenv("COGVIDEOX_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError) as caught:
        read(name, task_of(name), words=("--bf16",))
    (model,) = (key for key, published in PUBLISHED.items() if published.config == f"{name}.yaml")
    assert PUBLISHED[model].task == f"{task_of(name)}.yaml"
    assert str(caught.value).count(f"`python tools/fetch_weights.py {model}`") == 2, "transformer and VAE"


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "scale", "shift", "positions"),
    [
        ("cogvideox_2b", 30, 1920, 30, 1.15258426, 3.0, SINCOS),
        *((name, 42, 3072, 48, 0.7, 1.0, ROTARY) for name in FULL[1:]),
    ],
)
def test_the_published_models_numbers(
    weights: Path, name: str, layers: int, hidden: int, heads: int, scale: float, shift: float, positions: str
) -> None:
    model = read(name, task_of(name), words=("--bf16",)).model_config
    network = model["network_config"]["params"]
    assert (network["num_layers"], network["hidden_size"], network["num_attention_heads"]) == (layers, hidden, heads)
    assert network["time_embed_dim"] == 512 and network["out_channels"] == 16
    pos_embed = network["modules"]["pos_embed_config"]
    assert pos_embed["target"].endswith(positions)
    assert pos_embed["params"].get("height_interpolation", 1.0) == (1.875 if name.endswith("2b") else 1.0)
    assert pos_embed["params"].get("learnable_pos_embed", False) == (name == "cogvideox_5b_i2v")
    assert model["scale_factor"] == scale
    for part in ("denoiser_config", "sampler_config"):
        assert model[part]["params"]["discretization_config"]["params"]["shift_scale"] == shift
    draw = model["loss_fn_config"]["params"]["sigma_sampler_config"]["params"]
    assert draw["discretization_config"]["params"]["shift_scale"] == shift
    assert model["sampler_config"]["params"]["guider_config"]["params"] == {"scale": 6.0, "exp": 5.0, "num_steps": 50}
    coder = model["first_stage_config"]["params"]["encoder_config"]["params"]
    assert (coder["ch"], coder["ch_mult"], coder["num_res_blocks"], coder["z_channels"]) == (128, [1, 2, 2, 4], 3, 16)


@pytest.mark.parametrize("name", FULL)
def test_what_version_and_kind_decide(weights: Path, name: str) -> None:
    args = read(name, task_of(name), words=("--bf16",))
    model, data = args.model_config, args.data_config["params"]
    network = model["network_config"]["params"]
    is_1_5, is_i2v = "1.5" in name, name.endswith("i2v")
    sizes = tuple(network[key] for key in ("num_frames", "latent_width", "latent_height", "patch_size"))
    assert sizes == ((81, 300, 300, [2, 2, 2]) if is_1_5 else (49, 90, 60, 2))
    text_length = 224 if is_1_5 else 226
    assert network["modules"]["pos_embed_config"]["params"]["text_length"] == text_length
    assert model["conditioner_config"]["params"]["emb_models"][0]["params"]["max_length"] == text_length
    assert network["in_channels"] == (32 if is_i2v else 16)
    given = (model.get("noised_image_input", False), model.get("noised_image_dropout", 0.0))
    assert given == ((True, 0.05) if is_i2v else (False, 0.0))
    ofs = (network.get("ofs_embed_dim"), network.get("ofs"), model.get("image_scale_factor"))
    assert ofs == ((512, 2.0, 1.0) if is_1_5 and is_i2v else (None, None, None))
    task = (list(data["video_size"]), data["fps"], data["max_num_frames"])
    assert task == (([768, 1360], 16, 81) if is_1_5 else ([480, 720], 8, 49))


@pytest.mark.parametrize("name", FULL)
def test_lora_adds_adapters_and_changes_nothing_else(weights: Path, name: str) -> None:
    full, lora = (read(kind, task_of(name), words=("--bf16",)) for kind in (name, f"{name}_lora"))
    modules = lora.model_config["network_config"]["params"]["modules"]
    assert modules.pop("lora_config") == {
        "target": "sat.model.finetune.lora2.LoraMixin",
        "params": {"r": 256 if name == "cogvideox_5b_i2v" else 128, "lora_alpha": 1},
    }
    assert lora.model_config.pop("not_trainable_prefixes") == ["all"]
    assert lora.model_config == full.model_config


def test_the_2b_model_trains_in_fp16_and_the_others_in_bf16(weights: Path) -> None:
    import yaml

    for size, wanted in (("2b", "fp16"), ("5b", "bf16")):
        section = yaml.safe_load((ROOT / f"configs/cogvideox_{size}.yaml").read_text())["deepspeed"]
        assert [name for name in ("fp16", "bf16") if section[name]["enabled"]] == [wanted]
    assert all(read(name, task_of(name)).bf16 for name in MODELS if "2b" not in name)


@pytest.mark.parametrize("name", FULL)
def test_real_sizes_have_the_published_number_of_parameters_and_the_adapters_that_are_stated(
    weights: Path, name: str
) -> None:
    import torch

    from cogvideox.config import instantiate
    from cogvideox.transformer.lora import is_adapter

    network = read(f"{name}_lora", task_of(name), words=("--bf16",)).model_config["network_config"]
    with torch.device("meta"):
        sizes = {key: value.numel() for key, value in instantiate(network).named_parameters()}
    adapters = sum(size for key, size in sizes.items() if is_adapter(key))
    table = sizes.get("mixins.pos_embed.pos_embedding", 0)  # diffusers does not count it
    assert sum(sizes.values()) - adapters - table == PARAMETERS[name]
    assert table == {"cogvideox_2b": 17_776 * 1920, "cogvideox_5b_i2v": 17_776 * 3072}.get(name, 0)
    stated = "cogvideox_5b_i2v_lora" if name == "cogvideox_5b_i2v" else "lora"
    text = (ROOT / f"configs/{stated}.yaml").read_text()
    assert f"{adapters / 1e6:.0f} M" in text and f"{adapters * 20 / 1e9:.1f} GB" in text


def test_the_quickstart_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = read("quickstart")
    assert args.train_data == [str(ROOT / "assets/quickstart/clips")]
    assert args.save == str(ROOT / "runs/quickstart")
    clips = list((ROOT / "assets/quickstart/clips/videos").glob("*.mp4"))
    assert args.eval_batch_size == len(clips)
    assert not args.config_notes
