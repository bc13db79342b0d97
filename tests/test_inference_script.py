"""inference.sh: which command it makes of its arguments. Truth: identity (the command that is run)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.test_scripts import ROOT, STAND_IN, bash, planned

SCRIPT = "inference.sh"


def test_configs_become_base_and_the_rest_stays() -> None:
    words = planned(
        SCRIPT, "configs/quickstart.yaml", "configs/inference.yaml", "--prompt", "it's a dog", "args.seed=3"
    )
    assert words[:4] == ["WORLD_SIZE=1", "RANK=0", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=1"]
    script, *rest = words[5:]
    assert script == str(ROOT / "sample_video.py")
    configs = ["configs/quickstart.yaml", "configs/inference.yaml"]
    assert rest == ["--base", *configs, "--prompt", "it's a dog", "args.seed=3"]
    assert planned(SCRIPT, "--run", "a", "--interactive")[-3:] == ["--run", "a", "--interactive"]


def test_several_processes_are_torchrun_s() -> None:
    words = planned(SCRIPT, "--run", "a", NPROC_PER_NODE="3")
    assert "--standalone" in words and "--nproc_per_node=3" in words and words[-2:] == ["--run", "a"]
    done = bash(ROOT / SCRIPT, "--run", "a", NPROC_PER_NODE="none", DRY_RUN="1")
    assert done.returncode == 2 and "NPROC_PER_NODE=none" in done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the script beside a sample_video.py that only reports how it was started."""
    folder = tmp_path / "a project"
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "assets/quickstart/clips/labels", folder / "assets/quickstart/clips/labels")
    shutil.copy(ROOT / SCRIPT, folder)
    (folder / "sample_video.py").write_text(STAND_IN)
    (folder / "requirements.txt").write_text("")
    return folder


def test_no_argument_draws_the_captions_of_the_last_quickstart_run(project: Path, tmp_path: Path) -> None:
    done = bash(project / SCRIPT, cwd=tmp_path, PYTHON=sys.executable)
    assert done.returncode == 2 and "bash finetune_single_gpu.sh" in done.stderr
    for age, name in enumerate(("new", "old", "older")):
        folder = project / "runs/quickstart" / name
        folder.mkdir(parents=True)
        (folder / "latest").write_text("1")
        os.utime(folder / "latest", (1000 - age, 1000 - age))
    (project / "runs/quickstart/unfinished").mkdir()
    done = bash(project / SCRIPT, cwd=tmp_path, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    captions = [path.read_text().strip() for path in sorted((ROOT / "assets/quickstart/clips/labels").glob("*.txt"))]
    (started,) = [line for line in done.stdout.splitlines() if line.startswith("rank 0 of 1")]
    assert f"'--run', '{project}/runs/quickstart/new'" in started
    assert started.count("--prompt") == len(captions) and all(caption in started for caption in captions)


def test_help_and_exit_status(project: Path, tmp_path: Path) -> None:
    done = bash(ROOT / SCRIPT, "--help")
    assert done.returncode == 0 and "NPROC_PER_NODE" in done.stdout
    assert (
        bash(project / SCRIPT, "--run", "a", cwd=tmp_path, PYTHON=sys.executable, STAND_IN_STATUS="7").returncode == 7
    )
