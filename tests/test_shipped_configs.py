"""Every config that is shipped is complete and fits the classes that will read it.

Truths: the numbers of the published models (golden values), and the classes' own signatures."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pytest

from arguments import get_args

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("cogvideox_2b", "cogvideox_2b_lora", "cogvideox_5b", "cogvideox_5b_lora")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout that the configs' comments describe, with empty files."""
    for size in ("2b", "5b"):
        (tmp_path / f"CogVideoX-{size}-sat/transformer/1").mkdir(parents=True)
        (tmp_path / f"CogVideoX-{size}-sat/transformer/1/mp_rank_00_model_states.pt").touch()
        (tmp_path / f"CogVideoX-{size}-sat/transformer/latest").write_text("1")
        (tmp_path / f"CogVideoX-{size}-sat/vae").mkdir()
        (tmp_path / f"CogVideoX-{size}-sat/vae/3d-vae.pt").touch()
    (tmp_path / "t5-v1_1-xxl").mkdir()
    (tmp_path / "clips/videos").mkdir(parents=True)
    (tmp_path / "clips/videos/a.mp4").touch()
    monkeypatch.setenv("COGVIDEOX_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("COGVIDEOX_DATA", str(tmp_path / "clips"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*names: str, words: tuple[str, ...] = ()) -> argparse.Namespace:
    return get_args(["--base", *(str(ROOT / f"configs/{name}.yaml") for name in names), *words])


def test_all_files_are_covered_here() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {*MODELS, "sft", "quickstart"}


@pytest.mark.parametrize("names", [*itertools.product(MODELS, ["sft"]), ("sft", "cogvideox_5b")])
def test_a_model_and_the_task_make_a_complete_config_in_any_order(weights: Path, names: tuple[str, str]) -> None:
    is_2b = any("2b" in name for name in names)
    args = read(*names, words=("--bf16",) if is_2b else ())  # fp16, the 2B model's, needs a GPU
    is_lora = any("lora" in name for name in names)
    assert args.bf16
    assert args.lr == (1e-3 if is_lora else 1e-5)
    assert args.force_train == is_lora
    assert args.load.startswith(str(weights))
    assert args.mode == "finetune" and args.zero_stage == 2
    assert not args.config_notes or is_2b, "a shipped file has nothing to be ignored"


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "scale", "shift", "positions"),
    [
        ("cogvideox_2b", 30, 1920, 30, 1.15258426, 3.0, "Basic3DPositionEmbeddingMixin"),
        ("cogvideox_5b", 42, 3072, 48, 0.7, 1.0, "Rotary3DPositionEmbeddingMixin"),
    ],
)
def test_the_published_models_numbers(
    weights: Path, name: str, layers: int, hidden: int, heads: int, scale: float, shift: float, positions: str
) -> None:
    model = read(name, "sft", words=("--bf16",)).model_config
    network = model["network_config"]["params"]
    assert (network["num_layers"], network["hidden_size"], network["num_attention_heads"]) == (layers, hidden, heads)
    assert (network["time_embed_dim"], network["num_frames"], network["patch_size"]) == (512, 49, 2)
    assert (network["latent_width"], network["latent_height"], network["in_channels"]) == (90, 60, 16)
    pos_embed = network["modules"]["pos_embed_config"]
    assert pos_embed["target"].endswith(positions) and pos_embed["params"]["text_length"] == 226
    assert pos_embed["params"].get("height_interpolation", 1.0) == (1.875 if name.endswith("2b") else 1.0)
    assert model["scale_factor"] == scale
    for part in ("denoiser_config", "sampler_config"):
        assert model[part]["params"]["discretization_config"]["params"]["shift_scale"] == shift
    draw = model["loss_fn_config"]["params"]["sigma_sampler_config"]["params"]
    assert draw["discretization_config"]["params"]["shift_scale"] == shift
    assert model["sampler_config"]["params"]["guider_config"]["params"] == {"scale": 6.0, "exp": 5.0, "num_steps": 50}
    coder = model["first_stage_config"]["params"]["encoder_config"]["params"]
    assert (coder["ch"], coder["ch_mult"], coder["num_res_blocks"], coder["z_channels"]) == (128, [1, 2, 2, 4], 3, 16)
    assert model["conditioner_config"]["params"]["emb_models"][0]["params"]["max_length"] == 226


def test_the_2b_model_trains_in_fp16_and_the_5b_in_bf16() -> None:
    texts = {size: (ROOT / f"configs/cogvideox_{size}.yaml").read_text() for size in ("2b", "5b")}
    for size, wanted in (("2b", "fp16"), ("5b", "bf16")):
        import yaml

        section = yaml.safe_load(texts[size])["deepspeed"]
        assert [name for name in ("fp16", "bf16") if section[name]["enabled"]] == [wanted]


def test_the_quickstart_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = read("quickstart")
    assert args.train_data == [str(ROOT / "assets/quickstart/clips")]
    assert args.save == str(ROOT / "runs/quickstart")
    clips = list((ROOT / "assets/quickstart/clips/videos").glob("*.mp4"))
    assert args.eval_batch_size == len(clips)
    assert not args.config_notes
