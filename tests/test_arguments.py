"""`get_args`, from flags and files to the namespace. Truths: SAT's own parser (reference) for flags and defaults, the
stated precedence, and golden values; every bad input must be told in words, all of them at once."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from arguments import get_args
from cogvideox.config.flags import FLAGS
from cogvideox.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
VAE = "model.first_stage_config.params.ckpt_path"
T5 = "model.conditioner_config.params.emb_models.0.params.model_dir"
Run = Callable[..., argparse.Namespace]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with everything that the preflight looks for; the files are empty."""
    for folder in ("clips/videos", "t5", "weights/1"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("clips/videos/a.mp4", "3d-vae.pt", "weights/1/mp_rank_00_model_states.pt"):
        (tmp_path / file).touch()
    (tmp_path / "weights/latest").write_text("1")
    return tmp_path


@pytest.fixture
def run(place: Path) -> Run:
    """`get_args` on the quickstart config, whose assets are replaced by those of `place`, and more words."""
    found = [
        f"args.train_data=[{place}/clips]",
        f"{VAE}={place}/3d-vae.pt",
        f"{T5}={place}/t5",
        f"args.save={place}/runs",
    ]

    def call(*words: str, base: tuple[str, ...] = (QUICKSTART,)) -> argparse.Namespace:
        return get_args(["--base", *base, *found, *words])

    return call


def write(folder: Path, text: str, name: str = "more.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# --- flags -----------------------------------------------------------------------------------------------------------


def test_flags_and_defaults_are_those_of_sat() -> None:
    from cogvideox.sat_bridge import importing

    importing.prepare()
    from sat.arguments import add_data_args, add_evaluation_args, add_training_args

    parser = argparse.ArgumentParser()
    for add in (add_training_args, add_evaluation_args, add_data_args):
        add(parser)
    theirs = vars(parser.parse_args([]))
    changed = {"distributed_backend": None}  # theirs is nccl, whatever the hardware
    assert {key: FLAGS[key].default for key in theirs} == {**theirs, **changed}


def test_flags_of_the_reference_s_entry_point_are_there() -> None:
    names = """base model-parallel-size force-pretrain device debug log-image output-dir input-dir input-type input-file
        sampling-image-size final-size sdedit grid-num-rows force-inference lcm_steps sampling-num-frames sampling-fps
        only-save-latents only-log-video-latents latent-channels image2video deepspeed deepspeed_config"""
    assert {name.replace("-", "_") for name in names.split()} <= set(FLAGS)


def test_help_is_quick_and_importing_starts_nothing() -> None:
    code = "import sys, arguments; assert not {'torch', 'sat', 'deepspeed', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    with pytest.raises(SystemExit) as caught:
        get_args(["--help"])
    assert caught.value.code == 0


def test_booleans_are_real_and_dashes_do_not_matter(run: Run) -> None:
    args = run("--log-image", "false", "--wandb", "--only_log_video_latents=1", "--train_iters", "7", "--local_rank=0")
    assert (args.log_image, args.wandb, args.only_log_video_latents, args.train_iters) == (False, True, True, 7)


# --- precedence ------------------------------------------------------------------------------------------------------


def test_command_line_over_later_file_over_earlier_file_over_default(run: Run, place: Path) -> None:
    later = write(place, "args: {train_iters: 30, log_interval: 3, eval_iters: 2}\n")
    args = run("--train-iters", "5", "args.log_interval=4", base=(QUICKSTART, later))
    assert (args.train_iters, args.log_interval, args.eval_iters, args.warmup, args.split) == (
        5,
        4,
        2,
        0.02,
        "1000,1,1",
    )


def test_deepspeed_s_values_fill_args_and_flags_win_in_both_places(run: Run) -> None:
    args = run()
    assert (args.batch_size, args.lr, args.weight_decay, args.gradient_accumulation_steps) == (4, 1e-3, 1e-4, 1)
    args = run("--batch-size", "2", "--lr", "3e-4", "--zero-stage", "2", "--gradient-accumulation-steps", "3")
    section = args.deepspeed_config
    assert (args.batch_size, section["train_micro_batch_size_per_gpu"]) == (2, 2)
    assert (args.lr, section["optimizer"]["params"]["lr"]) == (3e-4, 3e-4)
    assert (args.zero_stage, section["zero_optimization"]["stage"]) == (2, 2)
    assert (args.gradient_accumulation_steps, section["gradient_accumulation_steps"]) == (3, 3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_without_a_deepspeed_section_it_is_built_from_args(run: Run, stage: int) -> None:
    args = run("deepspeed=null", "--zero-stage", str(stage), "--bf16", "--batch-size", "3", "--lr", "1e-2")
    section = args.deepspeed_config
    assert section["zero_optimization"]["stage"] == stage == args.zero_stage
    assert section["bf16"]["enabled"] is True and section["fp16"]["enabled"] is False
    assert section["train_micro_batch_size_per_gpu"] == 3
    assert section["optimizer"]["params"]["lr"] == 1e-2


def test_float32_under_zero_is_kept_and_said(run: Run) -> None:
    args = run("--zero-stage", "2")
    assert not args.fp16 and not args.bf16
    assert any("ZeRO 2 in float32" in note for note in args.config_notes)


def test_a_precision_flag_turns_the_file_s_other_precision_off(run: Run, place: Path) -> None:
    half = write(place, "deepspeed: {fp16: {enabled: true}}\n")
    args = run("--bf16", base=(QUICKSTART, half))
    assert args.bf16 and not args.fp16
    assert args.deepspeed_config["fp16"]["enabled"] is False and args.deepspeed_config["bf16"]["enabled"] is True


def test_scaler_keys_beside_fp16_are_moved_in_and_said(run: Run, place: Path) -> None:
    old = write(place, "deepspeed: {loss_scale: 0, loss_scale_window: 400, fp16: {enabled: false, loss_scale: 8}}\n")
    args = run(base=(QUICKSTART, old))
    assert args.deepspeed_config["fp16"] == {"enabled": False, "loss_scale": 8, "loss_scale_window": 400}
    assert "loss_scale" not in args.deepspeed_config
    assert any("loss_scale_window" in note for note in args.config_notes)


def test_a_deepspeed_json_file_lies_over_the_yaml_and_under_flags(run: Run, place: Path) -> None:
    path = write(place, '{"train_micro_batch_size_per_gpu": 5, "gradient_clipping": 0.7}', "ds.json")
    args = run("--deepspeed_config", path, "deepspeed.gradient_clipping=0.9")
    assert (args.batch_size, args.deepspeed_config["gradient_clipping"]) == (5, 0.9)


def test_defaults_that_depend(run: Run, place: Path) -> None:
    args = run("args.train_iters=null")
    assert args.train_iters == 10_000 and args.epochs is None
    assert args.summary_dir == args.save == f"{place}/runs"
    assert args.iterable_dataset_eval is False
    assert run("--iterable-dataset", "--iterable-dataset-eval", "false").iterable_dataset_eval is False
    assert run("args.train_iters=null", "--epochs", "2").train_iters is None


def test_flags_reach_the_transformer_s_own_arguments(run: Run) -> None:
    args = run("--checkpoint-activations")
    assert args.model_config["network_config"]["params"]["transformer_args"]["checkpoint_activations"] is True


def test_ranks_come_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    args = run("--model-parallel-size", "2")
    assert (args.rank, args.world_size, args.local_rank, args.model_parallel_size) == (3, 4, 0, 2)


def test_the_merged_config_says_everything_again(run: Run, place: Path) -> None:
    args = run("--lr", "3e-4", "--train-iters", "7", "model.network_config.params.num_layers=2")
    written = place / "training_config.yaml"
    OmegaConf.save(OmegaConf.create(args.merged_config), written)
    again = get_args(["--base", str(written)])
    same = vars(args).keys() - {"base", "config_notes", "merged_config"}
    assert {key: vars(again)[key] for key in same} == {key: vars(args)[key] for key in same}
    assert again.merged_config == args.merged_config


def test_data_parameters_have_the_types_that_the_data_set_asks_for(run: Run) -> None:
    params = run("data.params.fps=8.0").data_config["params"]
    assert params["fps"] == 8 and isinstance(params["video_size"], (list, tuple))


# --- old configs -----------------------------------------------------------------------------------------------------


def test_a_reference_style_config_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("clips/videos", "t5-v1_1-xxl", "transformer/1000"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("clips/videos/a.mp4", "3d-vae.pt", "transformer/1000/mp_rank_00_model_states.pt"):
        (tmp_path / file).touch()
    (tmp_path / "transformer/latest").write_text("1000\n")
    monkeypatch.chdir(tmp_path)
    args = get_args(["--base", *(str(ROOT / f"tests/config/old_{name}.yaml") for name in ("model", "task"))])
    assert (args.zero_stage, args.bf16, args.lr, args.batch_size) == (2, True, 1e-5, 2)
    assert args.deepspeed_config["fp16"]["loss_scale_window"] == 400
    notes = "\n".join(args.config_notes)
    for key in (
        "adm_in_channels",
        "weighting_config",
        "attn_resolutions",
        "resolution",
        "vocab_size",
        "augmentation_dropout",
    ):
        assert key in notes, key


# --- explain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ("--train-iters", "5", "--explain", "train_iters"),
            "args.train_iters = 5\n    set by command line: --train-iters 5",
        ),
        (("--explain", "args.warmup"), "args.warmup = 0.02\n    set by {config}:"),
        (("--explain", "eval_iters"), "args.eval_iters = 1\n    set by {config}:"),
        (("--explain", "split"), "args.split = 1000,1,1\n    set by default"),
        (
            ("data.params.fps=4", "--explain", "data.params.fps"),
            "set by command line: data.params.fps=4\n    over 8 of {config}:",
        ),
        (("--explain", "deepspeed.optimizer"), "deepspeed.optimizer.params.lr = 0.001"),
    ],
)
def test_explain_says_who_set_a_value(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], wanted: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 0
    printed = capsys.readouterr().out.replace(str(ROOT) + "/", "")
    assert wanted.format(config="configs/quickstart.yaml") in printed


def test_explain_of_an_unknown_key_names_the_nearest(run: Run) -> None:
    with pytest.raises(UserError, match=r"data\.params\.fps"):
        run("--explain", "data.params.fpss")


# --- bad input -------------------------------------------------------------------------------------------------------


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) <= 24 and "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--train-iter", "5"), ["--train-iter: unknown flag", "`--train-iters`"]),
        (("train_iters=5",), ["args.train_iters=5"]),
        (("--lr", "abc"), ["--lr abc", "a number"]),
        (("--wandb", "maybe"), ["--wandb maybe", "true or false"]),
        (("--seed", "0"), ["--seed 0", "at least 1"]),
        (("--batch-size", "0"), ["--batch-size 0", "at least 1"]),
        (("--mode", "fintune"), ["--mode fintune", "'finetune'"]),
        (("--epochs", "3"), ["args.train_iters", "600", "--epochs 3", "args.train_iters=null"]),
        (("--fp16", "--bf16"), ["--fp16 true", "--bf16 true", "turn one off"]),
        (("modle.x=1",), ["modle", "did you mean `model`"]),
        (("args.batchsize=1",), ["args.batchsize", "did you mean `batch_size`"]),
        (("model.scale_facto=1",), ["model.scale_facto", "did you mean `scale_factor`"]),
        (("data.params.fpss=8",), ["data.params.fpss", "did you mean `fps`"]),
        (("deepspeed.zero_optimisation.stage=2",), ["did you mean `zero_optimization`"]),
        (("deepspeed.zero_optimization.stag=2",), ["did you mean `stage`"]),
        (("deepspeed.optimizer.type=AdamWW",), ["AdamWW", "EmaAdamW"]),
        (("model.network_config.params.num_layers=two",), ["num_layers", "'two'", "a whole number"]),
        (("model.network_config.params.num_layer=2",), ["did you mean `num_layers`"]),
        (("model.network_config.params.hidden_size=null",), ["hidden_size", "a whole number"]),
        (("model.network_config.params.transformer_args.skipinit=true",), ["did you mean `skip_init`"]),
        (("model.network_config.params.modules.lora={r: 1}",), ["did you mean `lora_config`"]),
        ((f"{T5.replace('model_dir', 'modeldir')}=x",), ["did you mean `model_dir`"]),
        (("model.sampler_config.target=no.such.Thing",), ["model.sampler_config.target", "--allow-target no"]),
        (("model.sampler_config.target=cogvideox.diffusion.sampler.VideoDIMSampler",), ["`VideoDDIMSampler`"]),
        (("model.network_config=null",), ["model.network_config", "missing"]),
        (("model.network_config=5",), ["model.network_config", "target"]),
        (("data=null",), ["data", "configs/sft.yaml"]),
        (("--model-parallel-size", "3"), ["does not divide the 1 ranks", "4 attention heads"]),
        (("--train-data", "/nowhere"), ["no folder /nowhere", "--train-data"]),
        (("args.train_data=null",), ["--train-data DIR"]),
        ((f"{VAE}=/nowhere.pt",), ["no weight file /nowhere.pt", "ckpt_path"]),
        ((f"{T5}=/nowhere",), ["no text encoder folder /nowhere"]),
        (("--load", "/nowhere"), ["no /nowhere", "args.load=null"]),
        (("--train-data-weights", "1", "2"), ["2 weights for 1 folders"]),
        ((f"{T5.replace('model_dir', 'max_length')}=77",), ["77 text tokens", "text_length is 32"]),
        (("data.params.video_size=[100, 100]",), ["divisible by 16", "use [96, 96]"]),
        (("deepspeed.train_batch_size=99",), ["is 99", "is 4"]),
        (("--deepspeed-config", "/nowhere.json"), ["/nowhere.json"]),
        (("args.experiment_name=${oc.env:UNSET_NAME}",), ["UNSET_NAME", "${oc.env:NAME,default}"]),
    ],
)  # fmt: skip
def test_bad_input_names_key_and_remedy(run: Run, words: tuple[str, ...], parts: list[str]) -> None:
    text = message(lambda: run(*words))
    for part in parts:
        assert part in text, text


def test_a_missing_base_file(place: Path) -> None:
    text = message(lambda: get_args(["--base", str(ROOT / "configs/quikstart.yaml")]))
    assert "quikstart.yaml" in text and "quickstart.yaml" in text.replace("quikstart", "")
    assert "--base" in message(lambda: get_args([]))


def test_faults_in_a_file_are_named_with_file_and_line(run: Run, place: Path) -> None:
    bad = write(
        place, "args:\n  log_interval: often\n  bf16: true\n  fp16: true\n  epochs: 2\nmodel:\n  scale_factr: 1\n"
    )
    text = message(lambda: run(base=(QUICKSTART, bad)))
    for line, part in {2: "'often'", 4: "fp16", 5: "epochs", 7: "`scale_factor`"}.items():
        assert any(f"{bad}:{line}" in each and part in each for each in text.splitlines()), text


def test_a_folder_without_clips_and_a_place_that_is_none(run: Run, place: Path) -> None:
    (place / "empty").mkdir()
    text = message(
        lambda: run("--train-data", f"{place}/empty", "--save", f"{place}/3d-vae.pt/runs", "--load", f"{place}/t5")
    )
    assert "holds no .mp4 file" in text
    assert f"{place}/3d-vae.pt is not a folder" in text
    assert "neither `latest`" in text
    assert run("--load", f"{place}/weights").load == f"{place}/weights"
    (place / "weights/latest").write_text("2")
    assert "names '2'" in message(lambda: run("--load", f"{place}/weights"))


def test_everything_is_told_at_once_and_before_torch_is_imported(place: Path) -> None:
    code = (
        "import sys, arguments\n"
        "from cogvideox.errors import UserError\n"
        "try: arguments.get_args(sys.argv[1:])\n"
        "except UserError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    words = ["--base", QUICKSTART, "--seed", "0", "model.x=1", "data.params.y=1", "--train-data", "/nowhere", "--zap"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[0].endswith("problems with the configuration:")
    for part in ("--seed 0", "model.x", "data.params.y", "/nowhere", "--zap"):
        assert part in done.stdout


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="tells what a machine without a GPU says")
def test_fp16_and_nccl_need_a_gpu(run: Run) -> None:
    text = message(lambda: run("--fp16", "--distributed-backend", "nccl"))
    assert "float16 needs a GPU" in text and "use gloo" in text


def test_a_rank_beyond_the_world(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    assert "rank 2 of a world of 1" in message(run)
    monkeypatch.setenv("RANK", "two")
    assert "RANK=two" in message(run)
