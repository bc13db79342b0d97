"""tools/benchmark.py. Each test says which truth it checks."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cogvideox.errors import UserError
from tests.end_to_end.runs import environment
from tests.end_to_end.warm_start import run_warm, warm_context
from tools import benchmark, benchmark_cache, benchmark_step, benchmark_transformer, cache_latents
from tools.benchmark_sizes import SIZES
from tools.benchmark_step import PHASES, step_config, summarize_steps


def fill(arguments: list[str], log: Path) -> None:
    """tools/cache_latents.py in a process of its own."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(environment())
    sys.exit(cache_latents.main(arguments))


@pytest.fixture
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Our scripts run in processes that have everything imported; their names and their configs, as they were run."""
    scripts: dict[str, list[Any]] = {"names": [], "configs": []}

    def run(command: list[str], args: argparse.Namespace) -> None:
        script, *arguments = command
        log = tmp_path / f"{len(scripts['names'])}.log"
        scripts["names"].append(script)
        scripts["configs"].append(yaml.safe_load(Path(arguments[1]).read_text(encoding="utf-8")))
        if script == "train_video.py":
            status: int | None = run_warm(arguments, environment() | {"CUDA_VISIBLE_DEVICES": ""}, 1, log, 240)[0]
        else:
            process = warm_context().Process(target=fill, args=(arguments, log))
            process.start()
            process.join(240)
            status = process.exitcode
        assert status == 0, log.read_text()

    for module in (benchmark_step, benchmark_cache):
        monkeypatch.setattr(module, "run", run)
    return scripts


def test_medium_is_what_the_numbers_are_about() -> None:
    """Golden values."""
    medium = SIZES["medium"]
    assert (medium.hidden, medium.layers, medium.heads, medium.time_embed) == (512, 8, 8, 512)
    assert (medium.text_tokens, medium.text_width, medium.latent) == (226, 256, (13, 12, 18))


@pytest.mark.slow
def test_transformer_against_diffusers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identity: the ratio is that of the medians which stand beside it."""
    monkeypatch.setattr(benchmark_transformer, "get_context", lambda _: warm_context())  # has everything imported
    report = tmp_path / "out" / "report.json"
    command = ["transformer", "--model", "tiny", "--against", "diffusers", "--json", str(report), "--device", "cpu"]
    assert benchmark.main(command) == 0
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["command"] == f"python tools/benchmark.py {' '.join(command)}"
    assert written["versions"]["torch"] and written["versions"]["diffusers"] and written["cpu"]["model"]
    (result,) = written["results"]
    assert len(result["ours"]["seconds"]) == len(result["diffusers"]["seconds"]) == 5
    assert result["ratio"] == result["ours"]["median_s"] / result["diffusers"]["median_s"]
    assert result["ours"]["peak_memory_gib"] > 0
    assert "ours / diffusers" in capsys.readouterr().out


@pytest.mark.slow
def test_step(tmp_path: Path, warm: dict[str, list[Any]]) -> None:
    """Identity: phases and what is outside of them make up a step."""
    report = tmp_path / "report.json"
    command = ["step", "--model", "tiny", "--dtype", "fp32", "--json", str(report), "--device", "cpu"]
    assert benchmark.main(command) == 0
    (result,) = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert all(result["phases_s"][name] > 0 for name in PHASES)
    assert 0 <= result["outside_share"] < 1
    assert warm["names"] == ["train_video.py"]


@pytest.mark.slow
def test_cache(tmp_path: Path, warm: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """Identity: what is saved is what lies between the two runs; invariant: the cached one encodes nothing and loads
    neither encoder. What is left of their phases is the drawing of latents and the dropping of captions.
    """
    report = tmp_path / "report.json"
    sizes = ["--model", "tiny", "--text-encoder", "small", "--vae-channels", "32"]
    assert benchmark.main(["cache", *sizes, "--device", "cpu", "--json", str(report)]) == 0
    (result,) = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert warm["names"] == ["train_video.py", "tools/cache_latents.py", "train_video.py"]
    without, cached = result["without"], result["cached"]
    assert without["steps"] == cached["steps"] == 5
    assert all(without["phases_s"][phase] > 0 for phase in PHASES)
    assert all((cached["phases_s"][phase] < without["phases_s"][phase] / 10) for phase in ("vae", "text_encoder"))
    assert result["memory_saved_gib"] == without["peak_memory_gib"] - cached["peak_memory_gib"]
    assert result["steps_over"] == without["median_s"] / cached["median_s"] > 1 and result["fill_s"] > 0
    assert f"{result['memory_saved_gib']:.2f} GiB less" in capsys.readouterr().out
    assert "not loaded for them" in (tmp_path / "2.log").read_text() and "T5" not in (tmp_path / "2.log").read_text()
    assert [config["args"]["valid_data"] for config in warm["configs"]] == [None] * 3  # else the VAE is loaded for them


def test_summary_of_steps() -> None:
    """Golden values: the first two steps are warm-up, validations do not count."""
    step: dict[str, Any] = {f"seconds_{name}": 1.0 for name in PHASES} | {"peak_memory_gib": 2.0}
    lines = [step | {"seconds_per_iteration": seconds} for seconds in (90.0, 80.0, 10.0, 10.0, 8.0)]
    summary = summarize_steps([*lines, {"split": "val", "loss": 1.0}])
    assert summary["median_s"] == 10.0
    assert summary["outside_share"] == 0.5
    assert summary["steps"] == 3
    with pytest.raises(UserError, match="no iteration after its warm-up"):
        summarize_steps(lines[:2])


def test_step_runs_what_is_promised(tmp_path: Path) -> None:
    """Golden values: bf16, ZeRO 2, recomputation, a VAE of 32 channels and 1 residual block."""
    config = step_config(tmp_path, SIZES["medium"], "bf16", 7)
    network = config["model"]["network_config"]["params"]
    assert network["transformer_args"] == {"checkpoint_activations": True}
    vae = config["model"]["first_stage_config"]["params"]["encoder_config"]["params"]
    assert (vae["ch"], vae["num_res_blocks"]) == (32, 1)
    assert config["deepspeed"]["bf16"]["enabled"] and config["deepspeed"]["zero_optimization"]["stage"] == 2
    assert config["data"]["params"] == {"video_size": [96, 144], "max_num_frames": 49}


def test_few_runs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(["transformer", "--runs", "3"])
    assert exit_.value.code == 2
    assert "at least 5" in capsys.readouterr().err
