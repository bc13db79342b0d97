"""Bad input. Truth: what must be in the message (golden values): where, key and remedy; and all of it at once."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arguments import get_args
from cogvideox.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
Run = Callable[..., argparse.Namespace]
Write = Callable[..., str]
EMBEDDER = "model.conditioner_config.params.emb_models.0"
VAE = "model.first_stage_config.params.ckpt_path"
T5 = f"{EMBEDDER}.params.model_dir"


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
        (("--seed", "9" * 23), ["--seed " + "9" * 23, "at most 9223372036854775807"]),
        (("--batch-size", "0"), ["--batch-size 0", "at least 1"]),
        (("--mode", "fintune"), ["--mode fintune", "'finetune'"]),
        (("--mode", "inference"), ["--mode inference", "only trains", "sample_video.py"]),
        (("--mode", "finetune"), ["--mode finetune", "`--load WEIGHTS`", "`--mode pretrain`"]),
        (("--warmup", "100"), ["--warmup 100", "at most 1"]),
        (("--eval-interval", "0"), ["at least 1", "args.eval_interval=null"]),
        (("--save-interval", "0"), ["at least 1", "as many as --train-iters"]),
        (("--epochs", "3", "--train-iters", "5"), ["args.train_iters", "--epochs 3", "args.train_iters=null"]),
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
        ((f"{EMBEDDER}.input_keys=[txt]",), ["input_keys", "did you mean `input_key`"]),
        ((f"{EMBEDDER}.legacy_ucg_value=x",), ["legacy_ucg_value", "unknown key"]),
        ((f"{EMBEDDER}.input_key=''",), ["input_key", "`input_key: txt`"]),
        ((f"{EMBEDDER}.ucg_rate=10",), ["ucg_rate", "0 to 1"]),
        ((f"{EMBEDDER}.is_trainable=true",), ["is_trainable", "neither trains nor saves", "set it to false"]),
        (("--resume", "/nowhere"), ["--resume /nowhere", "no folder", "`auto`"]),
        (("deepspeed.zero_optimization.offload_optimizer={device: nvme}",), ["nvme", "could not resume", "use cpu"]),
        (("--save-total-limit", "0"), ["--save-total-limit 0", "at least 1"]),
        (("--profiling", "-2"), ["--profiling -2", "at least -1"]),
        (("--train-data", "/nowhere"), ["folder /nowhere does not exist", "--train-data"]),
        (("args.train_data=null",), ["--train-data DIR"]),
        ((f"{VAE}=/nowhere.pt",), ["no /nowhere.pt", "ckpt_path"]),
        ((f"{T5}=/nowhere",), ["no text encoder folder /nowhere"]),
        (("--load", "/nowhere"), ["no /nowhere", "args.load=null"]),
        (("--train-data-weights", "1", "2"), ["2 weights for 1 folders"]),
        ((f"{T5.replace('model_dir', 'max_length')}=77",), ["77 text tokens", "text_length is"]),
        (("data.params.video_size=[100, 100]",), ["divisible by 16", "use [96, 96]"]),
        (("deepspeed.train_batch_size=99",), ["is 99", "remove it"]),
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


def test_faults_in_a_file_are_named_with_file_and_line(run: Run, write: Write) -> None:
    bad = write("args:\n  log_interval: often\n  bf16: true\n  fp16: true\n  epochs: 2\nmodel:\n  scale_factr: 1\n")
    text = message(lambda: run(base=(QUICKSTART, bad)))
    for line, part in {2: "'often'", 4: "fp16", 5: "epochs", 7: "`scale_factor`"}.items():
        assert any(f"{bad}:{line}" in each and part in each for each in text.splitlines()), text


def test_a_folder_without_clips_and_a_place_that_is_none(run: Run, place: Path) -> None:
    (place / "empty").mkdir()
    text = message(
        lambda: run("--train-data", f"{place}/empty", "--save", f"{place}/3d-vae.pt/runs", "--load", f"{place}/t5")
    )
    assert "empty holds no .mp4," in text and "no metadata.jsonl," in text and "no videos.txt" in text
    assert f"{place}/3d-vae.pt is not a folder" in text
    assert "neither `latest`" in text
    assert "holds no checkpoint" in message(lambda: run("--resume", f"{place}/empty"))
    assert run("--load", f"{place}/weights").load == f"{place}/weights"
    (place / "weights/latest").write_text("2")
    for flag in ("--load", "--resume"):
        assert "names '2'" in message(lambda flag=flag: run(flag, f"{place}/weights"))  # type: ignore[misc]


def test_what_a_download_left_in_a_weights_place_is_named_at_once(run: Run, place: Path) -> None:
    (place / "vae.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (place / "weights/1/mp_rank_00_model_states.pt").write_text("<!DOCTYPE html>")
    text = message(lambda: run("--load", f"{place}/weights", f"{VAE}={place}/vae.safetensors"))
    assert "is a Git LFS pointer" in text and "is a web page" in text and "tools/fetch_weights.py" in text


def test_model_parallel_ranks_divide_the_world(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    text = message(lambda: run("--model-parallel-size", "4"))
    assert "--model-parallel-size 4: 4 does not divide the 6 ranks" in text and "use one of 1, 2, 3, 6" in text
    assert "attention heads" not in text


def test_model_parallel_ranks_divide_the_heads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    text = message(lambda: run("--model-parallel-size", "3", "model.network_config.params.num_attention_heads=4"))
    assert "3 does not divide the 4 attention heads" in text and "use one of 1, 2, 4" in text
    assert "ranks of this run" not in text


def test_model_parallel_does_not_go_with_zero_3(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = message(lambda: run("--model-parallel-size", "2", "--zero-stage", "3"))
    assert "ZeRO 3" in text and "--zero-stage 2" in text and "--model-parallel-size 1" in text
    assert run("--model-parallel-size", "2", "--zero-stage", "2").model_parallel_size == 2
    assert run("--zero-stage", "3").zero_stage == 3


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
def test_fp16_nccl_and_the_profiler_need_a_gpu(run: Run) -> None:
    text = message(lambda: run("--fp16", "--distributed-backend", "nccl", "--profiling", "0"))
    assert "float16 needs a GPU" in text and "use gloo" in text
    assert "--profiling 0: CUDA's profiler needs a GPU" in text and "--profile-phases" in text


def test_a_rank_beyond_the_world(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    assert "rank 2 of a world of 1" in message(run)
    monkeypatch.setenv("RANK", "two")
    assert "RANK=two" in message(run)
