"""Truths: each launcher's variables bring the ranks together, a run's folder is complete, errors are short."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.end_to_end.runs import CACHE, LORA, ROOT, Run, environment, one_error, run, train, write_config
from tests.end_to_end.warm_start import SLURM, run_warm
from train_video import map_launcher_variables

EVALUATED = {
    "args": {"train_iters": 2, "eval_interval": 2, "eval_batch_size": 2, "eval_iters": 2, "strict_eval": False}
}


def test_open_mpi_and_slurm_variables_are_mapped() -> None:
    mpi = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "RANK": "9"}
    map_launcher_variables(mpi)
    assert (mpi["RANK"], mpi["WORLD_SIZE"], mpi["LOCAL_RANK"]) == ("3", "4", "1")
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    map_launcher_variables(slurm)
    assert (slurm["RANK"], slurm["WORLD_SIZE"], slurm["LOCAL_RANK"]) == ("5", "8", "1")


def test_torchrun_wins_over_the_launcher_that_started_it() -> None:
    environ = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    before = dict(environ)
    map_launcher_variables(environ)
    assert environ == before
    alone = {"RANK": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    map_launcher_variables(alone)
    assert alone["RANK"] == "1" and "WORLD_SIZE" not in alone


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")
def test_mpirun_trains_on_two_ranks_until_it_is_signalled(tmp_path: Path) -> None:
    wrapper = {"model": {"network_wrapper": "tests.end_to_end.mishaps.MishapWrapper"}}
    config = write_config(tmp_path, {"args": {"train_iters": 50, "cache": CACHE}}, wrapper)
    root = ["--allow-run-as-root", "--oversubscribe", "-n", "2"]
    script = [sys.executable, str(ROOT / "train_video.py"), "--base", str(config), "--allow-target", "tests"]
    env = environment(2) | {"MISHAPS": "1 2 ^USR1"}
    done = run(["mpirun", *root, *script], tmp_path / "runs", env)
    assert done.status == 0, done.output[-3000:]
    at = len(done.losses)
    assert 2 <= at < 50 and f"stopped at iteration {at} of 50 by SIGUSR1, saved" in done.output
    assert (done.folder / "latest").read_text().strip() == str(at)


def test_slurms_variables_bring_two_processes_together(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"args": {"train_iters": 2}})
    env = environment(2) | {"SLURM_JOB_ID": "77"}
    assert not {"RANK", "WORLD_SIZE"} & env.keys()
    status, output = run_warm(["--base", str(config)], env, 2, tmp_path / "log", timeout_s=240, names=SLURM)
    assert status == 0, output[-3000:]
    done = Run(0, output, tmp_path / "runs")
    assert len(done.losses) == 2 and "2 data ranks" in output


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two ranks, ZeRO 3, an evaluation of two batches with samples. Under torchrun: `test_stopping`."""
    zero3 = {"deepspeed": {"zero_optimization": {"stage": 3}}}
    return train(tmp_path_factory.mktemp("evaluated"), EVALUATED, zero3, ranks=2)


def test_a_runs_folder_is_complete(evaluated: Run) -> None:
    assert evaluated.status == 0, evaluated.output[-3000:]
    folder = evaluated.folder
    for name in ("training_config.yaml", "metrics.jsonl", "latest", "report.html", "2/mp_rank_00_model_states.pt"):
        assert (folder / name).is_file(), name
    assert (folder / "latest").read_text() == "2"
    assert not list(folder.glob("*.incomplete"))
    assert yaml.safe_load((folder / "training_config.yaml").read_text())["args"]["train_iters"] == 2
    for key in ("inputs", "reconstructions", "samples"):
        assert len(list((folder / "video" / f"{key}_gs-000002").glob("*.mp4"))) >= 2, key
    captions = (folder / "video_texts" / "00000002").read_text().splitlines()
    assert len(captions) == len(list((folder / "video" / "samples_gs-000002").glob("*.mp4")))


def test_a_checkpoint_loads_without_running_code_and_holds_no_vae_or_text_encoder(evaluated: Run) -> None:
    content = torch.load(evaluated.checkpoint(2), map_location="cpu", weights_only=True)
    names = set(content["module"])
    assert all(name.startswith("model.diffusion_model.") for name in names) and len(names) > 30
    assert content["iteration"] == 2 and len(content["random_states"]) == 2


def test_evaluations_are_logged_as_val(evaluated: Run) -> None:
    from cogvideox.telemetry.metrics_file import read_metrics

    lines = read_metrics(evaluated.folder / "metrics.jsonl")
    (val,) = [line for line in lines if line.get("split") == "val"]
    assert val["iteration"] == 2 and 0 < val["loss"] < 10
    expected = {"loss", "lr", "grad_norm", "seconds_per_iteration", "samples_per_second", "tokens_per_second"}
    assert expected <= set(lines[0])


def test_only_latents_are_saved_when_asked(tmp_path: Path) -> None:
    done = train(tmp_path, EVALUATED, {"args": {"only_log_video_latents": True}})
    assert done.status == 0, done.output[-3000:]
    latents = torch.load(done.folder / "video/latents/latents_gs-000002/latent.pt", weights_only=True)
    assert latents.shape == (2, 2, 16, 2, 4)
    assert not list(done.folder.glob("video/**/*.mp4"))


def test_two_runs_in_one_minute_have_their_own_folders(tmp_path: Path) -> None:
    for _ in range(2):
        assert train(tmp_path, {"args": {"train_iters": 1}}).status == 0
    assert len([path for path in (tmp_path / "runs").iterdir() if path.is_dir()]) == 2


def test_a_weight_file_of_another_shape_is_one_clear_error_on_two_ranks(tmp_path: Path) -> None:
    base = train(tmp_path / "base", {"args": {"train_iters": 1}})
    wider = {"model": {"network_config": {"params": {"hidden_size": 192, "num_attention_heads": 3}}}}
    load = {"args": {"load": str(base.folder), "mode": "finetune"}}
    done = train(tmp_path / "wider", load, wider, ranks=2)
    one_error(done, "does not fit the transformer of the config")


def test_lora_on_everything_frozen_without_adapters_is_refused(tmp_path: Path) -> None:
    done = train(tmp_path, {"model": {"not_trainable_prefixes": LORA["model"]["not_trainable_prefixes"]}})
    one_error(done, "nothing to train")
