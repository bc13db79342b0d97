"""Truth: a mistake is told once, on one screen, with status 2 and no traceback, on one rank and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.end_to_end.runs import LORA, ROOT, environment, launcher, one_error, run, train, write_config


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mistake_in_the_configuration(tmp_path: Path, ranks: int) -> None:
    config = write_config(tmp_path, {"model": {"scale_factr": 1.0}})
    command = [*launcher(ranks), str(ROOT / "train_video.py"), "--base", str(config), "--fp16", "--bf16"]
    done = run(command, tmp_path / "runs", environment(ranks))
    one_error(done, "did you mean `scale_factor`", "turn one off")


def test_a_folder_whose_clips_are_all_broken(tmp_path: Path) -> None:
    videos, labels = tmp_path / "data" / "videos", tmp_path / "data" / "labels"
    videos.mkdir(parents=True)
    labels.mkdir()
    whole = (ROOT / "assets/quickstart/clips/videos/car_talk.mp4").read_bytes()
    broken = {"empty": b"", "text": b"no video at all", "truncated": whole[: len(whole) // 2]}
    for name, content in broken.items():
        (videos / f"{name}.mp4").write_bytes(content)
        (labels / f"{name}.txt").write_text("a caption")
    done = train(tmp_path, flags=("--train-data", str(tmp_path / "data")))
    one_error(done, *(f"{name}.mp4" for name in broken))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_vae_of_another_shape(tmp_path: Path, ranks: int) -> None:
    path = tmp_path / "vae.pt"
    state = torch.load(ROOT / "assets/quickstart/vae/3d-vae.pt", weights_only=True)["state_dict"]
    name = "encoder.conv_in.conv.weight"
    torch.save({"state_dict": state | {name: torch.zeros(7, 3, 3, 3, 3)}}, path)
    done = train(tmp_path, {"model": {"first_stage_config": {"params": {"ckpt_path": str(path)}}}}, ranks=ranks)
    one_error(done, str(path), name)


def test_fp16_on_a_cpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    one_error(train(tmp_path, flags=("--fp16",)), "float16 needs a GPU")


def test_a_save_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = train(tmp_path, {"args": {"save": str(tmp_path / "file" / "runs")}})
    one_error(done, "args.save")


def test_weights_that_would_run_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (print, ("code ran",))

    folder = tmp_path / "weights" / "1"
    folder.mkdir(parents=True)
    torch.save({"module": Code()}, folder / "mp_rank_00_model_states.pt")
    (tmp_path / "weights" / "latest").write_text("1")
    done = train(tmp_path, {"args": {"load": str(tmp_path / "weights"), "mode": "finetune"}})
    one_error(done, "refused")
    assert "code ran" not in done.output.replace("'code ran'", "")


def test_adapters_whose_base_is_unknown(tmp_path: Path) -> None:
    """They would go on random weights."""
    a_and_b = {"lora_A": torch.zeros(4, 128), "lora_B": torch.zeros(128, 4)}
    names = {f"transformer.transformer_blocks.0.attn1.to_out.0.{part}.weight": value for part, value in a_and_b.items()}
    save_file(names, tmp_path / "adapters.safetensors")
    load = {"args": {"load": str(tmp_path / "adapters.safetensors"), "mode": "finetune", "force_train": True}}
    one_error(train(tmp_path, load, LORA), "does not name the weights")
