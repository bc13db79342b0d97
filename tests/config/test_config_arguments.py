"""From flags and files to the namespace. Truths: the stated precedence (golden values), and the round trip through the
merged config that a run writes down."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from arguments import get_args
from cogvideox.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
Run = Callable[..., argparse.Namespace]
Write = Callable[..., str]
Tree = dict[str, Any]


def test_booleans_are_real_and_dashes_do_not_matter(run: Run) -> None:
    args = run("--log-image", "false", "--wandb", "--only_log_video_latents=1", "--train_iters", "7", "--local_rank=0")
    assert (args.log_image, args.wandb, args.only_log_video_latents, args.train_iters) == (False, True, True, 7)


def test_command_line_over_later_file_over_earlier_file_over_default(run: Run, write: Write, quickstart: Tree) -> None:
    later = write("args: {train_iters: 30, log_interval: 3, eval_iters: 2}\n")
    args = run("--train-iters", "5", "args.log_interval=4", base=(QUICKSTART, later))
    assert (args.train_iters, args.log_interval, args.eval_iters, args.split) == (5, 4, 2, "1000,1,1")
    assert args.lr_decay_ratio == quickstart["args"]["lr_decay_ratio"]


def test_deepspeed_s_values_fill_args_and_flags_win_in_both_places(run: Run, quickstart: Tree) -> None:
    args = run()
    assert args.batch_size == quickstart["deepspeed"]["train_micro_batch_size_per_gpu"]
    assert args.gradient_accumulation_steps == quickstart["deepspeed"]["gradient_accumulation_steps"]
    params = quickstart["deepspeed"]["optimizer"]["params"]
    assert (args.lr, args.weight_decay) == (params["lr"], params["weight_decay"])
    args = run("--batch-size", "2", "--lr", "3e-4", "--zero-stage", "2", "--gradient-accumulation-steps", "3")
    section = args.deepspeed_config
    assert (args.batch_size, section["train_micro_batch_size_per_gpu"]) == (2, 2)
    assert (args.lr, section["optimizer"]["params"]["lr"]) == (3e-4, 3e-4)
    assert (args.zero_stage, section["zero_optimization"]["stage"]) == (2, 2)
    assert (args.gradient_accumulation_steps, section["gradient_accumulation_steps"]) == (3, 3)


def test_where_to_resume_is_of_one_start_and_not_written_down(run: Run, place: Path) -> None:
    assert run().resume is None
    for folder in ("auto", f"{place}/weights"):
        args = run("--resume", folder)
        assert args.resume == folder and "resume" not in args.merged_config["args"]


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


def test_a_precision_flag_turns_the_file_s_other_precision_off(run: Run, write: Write) -> None:
    half = write("deepspeed: {fp16: {enabled: true}}\n")
    args = run("--bf16", base=(QUICKSTART, half))
    assert args.bf16 and not args.fp16
    assert args.deepspeed_config["fp16"]["enabled"] is False and args.deepspeed_config["bf16"]["enabled"] is True


def test_scaler_keys_beside_fp16_are_moved_in_and_said(run: Run, write: Write) -> None:
    old = write("deepspeed: {loss_scale: 0, loss_scale_window: 400, fp16: {enabled: false, loss_scale: 8}}\n")
    args = run(base=(QUICKSTART, old))
    assert args.deepspeed_config["fp16"] == {"enabled": False, "loss_scale": 8, "loss_scale_window": 400}
    assert "loss_scale" not in args.deepspeed_config
    assert any("loss_scale_window" in note for note in args.config_notes)


def test_a_deepspeed_json_file_lies_over_the_yaml_and_under_flags(run: Run, write: Write) -> None:
    path = write('{"train_micro_batch_size_per_gpu": 5, "gradient_clipping": 0.7}', "ds.json")
    args = run("--deepspeed_config", path, "deepspeed.gradient_clipping=0.9")
    assert (args.batch_size, args.deepspeed_config["gradient_clipping"]) == (5, 0.9)


def test_defaults_that_depend(run: Run, place: Path) -> None:
    args = run("args.train_iters=null")
    assert args.train_iters == 10_000 and args.epochs is None
    assert args.summary_dir == args.save == f"{place}/runs"
    assert args.iterable_dataset_eval is False
    assert run("args.train_iters=null", "--epochs", "2").train_iters is None
    assert run("--epochs", "2").train_iters is None  # the flag wins over the file's


def test_ranks_come_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    args = run("--model-parallel-size", "2")
    assert (args.rank, args.world_size, args.local_rank, args.model_parallel_size) == (3, 4, 0, 2)


def test_a_list_can_be_none(run: Run) -> None:
    assert run("--valid-data", "null").valid_data is None


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


def test_a_reference_style_config_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("clips/videos", "t5-v1_1-xxl", "transformer/1000"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("clips/videos/a.mp4", "3d-vae.pt", "transformer/1000/mp_rank_00_model_states.pt"):
        (tmp_path / file).write_bytes(b"PK\x03\x04")
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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ("--train-iters", "5", "--explain", "train_iters"),
            "args.train_iters = 5\n    set by command line: --train-iters 5",
        ),
        (("--explain", "args.save_interval"), "args.save_interval = "),
        (("--explain", "eval_iters"), "args.eval_iters = 1\n    set by {config}:"),
        (("--explain", "split"), "args.split = 1000,1,1\n    set by default"),
        (
            ("data.params.fps=4", "--explain", "data.params.fps"),
            "set by command line: data.params.fps=4\n    over 8 of {config}:",
        ),
        (("--explain", "deepspeed.optimizer"), "deepspeed.optimizer.params.lr = "),
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
