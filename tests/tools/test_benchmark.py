"""tools/benchmark.py. Each test says which truth it checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cogvideox.errors import UserError
from tools import benchmark
from tools.benchmark_sizes import SIZES
from tools.benchmark_step import PHASES, step_config, summarize_steps


def test_medium_is_what_the_numbers_are_about() -> None:
    """Golden values."""
    medium = SIZES["medium"]
    assert (medium.hidden, medium.layers, medium.heads, medium.time_embed) == (512, 8, 8, 512)
    assert (medium.text_tokens, medium.text_width, medium.latent) == (226, 256, (13, 12, 18))


@pytest.mark.slow
def test_transformer_against_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Identity: the ratio is that of the medians which stand beside it."""
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
def test_step(tmp_path: Path) -> None:
    """Identity: phases and what is outside of them make up a step."""
    report = tmp_path / "report.json"
    command = ["step", "--model", "tiny", "--dtype", "fp32", "--json", str(report), "--device", "cpu"]
    assert benchmark.main(command) == 0
    (result,) = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert all(result["phases_s"][name] > 0 for name in PHASES)
    assert 0 <= result["outside_share"] < 1


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
