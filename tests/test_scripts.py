"""The launch scripts: which command they make of their arguments, which Python they choose, what they say and return.

Truth checked: identity (the command that is run), round trip (arguments and exit statuses come through unchanged).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SINGLE, MULTI = "finetune_single_gpu.sh", "finetune_multi_gpus.sh"
LAUNCHER_VARIABLES = ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")

STAND_IN = """
import os, sys
print("cwd", os.getcwd())
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], sys.argv[1:], flush=True)
sys.exit(int(os.environ.get("STAND_IN_STATUS", 0)))
"""


def bash(*command: str | Path, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES and not k.startswith("PYTORCH_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        ["bash", *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def planned(script: str, *arguments: str, cwd: Path = ROOT, **variables: str) -> list[str]:
    """The command that `script` would run, as words."""
    done = bash(ROOT / script, *arguments, cwd=cwd, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    plus, *words = shlex.split(done.stdout)
    assert plus == "+"
    return words


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the scripts whose train_video.py only reports how it was started and whose requirements are none."""
    folder = tmp_path / "a project"
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (SINGLE, MULTI):
        shutil.copy(ROOT / name, folder)
    (folder / "train_video.py").write_text(STAND_IN)
    (folder / "mine.yaml").write_text("args: {}\n")
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        (folder / name).write_text("# none\n")
    return folder


STOPPED_STAND_IN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(0)))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_signal_to_the_quickstarts_script_reaches_the_run_and_is_waited_for(project: Path) -> None:
    (project / "train_video.py").write_text(STOPPED_STAND_IN)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    command = ["bash", str(project / SINGLE)]
    with subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        while script.stdout.readline() != "ready\n":
            assert script.poll() is None
        script.terminate()
        assert script.wait(30) == 0  # not 1: no samples are looked for; not 143: the run is waited for


def test_single_without_arguments_is_the_quickstart() -> None:
    words = planned(SINGLE)
    assert words[:4] == ["WORLD_SIZE=1", "RANK=0", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=1"]
    assert words[5:8] == [str(ROOT / "train_video.py"), "--base", str(ROOT / "configs" / "quickstart.yaml")]


def test_leading_yaml_files_become_base_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "my own.yaml").write_text("args: {}\n")
    flags = ["--experiment-name", 'it\'s a "name" $HOME', "model.scale_factor=1", "later.yaml"]
    words = planned(SINGLE, "my own.yaml", "configs/cogvideox_2b.yaml", "--train-iters", "5", *flags, cwd=tmp_path)
    start = words.index("--base")
    # The caller's own file as given; a file of the project is found from any folder.
    assert words[start + 1 : start + 3] == ["my own.yaml", str(ROOT / "configs" / "cogvideox_2b.yaml")]
    assert words[start + 3] == "--seed"
    assert words[start + 5 :] == ["--train-iters", "5", *flags]


def test_flags_alone_change_the_quickstart() -> None:
    words = planned(SINGLE, "--train-iters", "5")
    assert after(words, "--base") == str(ROOT / "configs" / "quickstart.yaml")
    assert words[-2:] == ["--train-iters", "5"]


def test_base_given_as_a_flag_is_passed_on() -> None:
    assert planned(SINGLE, "--base", "a.yaml", "b.yaml")[-3:] == ["--base", "a.yaml", "b.yaml"]
    assert bash(ROOT / SINGLE, "a.yaml", "--base", "b.yaml", DRY_RUN="1").returncode == 2


@pytest.mark.parametrize("script", [SINGLE, MULTI])
def test_random_seeds_are_positive_and_differ(script: str, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("args:\n  lr: 1\n")
    seeds = [int(after(planned(script, "plain.yaml", cwd=tmp_path), "--seed")) for _ in range(8)]
    assert len(set(seeds)) > 1
    assert all(1 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("bits", [0, 2**31 - 2, 2**31 - 1, 2**32 - 1])
def test_the_seed_is_never_0(bits: int, tmp_path: Path) -> None:
    (tmp_path / "od").write_text(f"#!/bin/sh\necho ' {bits}'\n")
    (tmp_path / "od").chmod(0o755)
    (tmp_path / "plain.yaml").write_text("args:\n  lr: 1\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    seed = int(after(planned(SINGLE, "plain.yaml", cwd=tmp_path, PATH=path), "--seed"))
    assert 1 <= seed < 2**31


def test_a_seed_that_was_given_is_kept(tmp_path: Path) -> None:
    (tmp_path / "seeded.yaml").write_text("args:\n  seed: 7\n")
    (tmp_path / "plain.yaml").write_text("args:\n  lr: 1\n")
    for flags in (["--seed", "12"], ["--seed=12"]):
        words = planned(SINGLE, "plain.yaml", *flags, cwd=tmp_path)
        assert after(words, "--seed") == "12" and words.count("--seed") == 1
    assert "--seed" not in planned(SINGLE, "seeded.yaml", cwd=tmp_path)
    assert "--seed" not in planned(SINGLE, "plain.yaml", "args.seed=3", cwd=tmp_path)
    assert "--seed" not in planned(SINGLE, "plain.yaml", "--resume", "auto", cwd=tmp_path)  # the run has its own
    assert bash(ROOT / SINGLE, "plain.yaml", "--seed", DRY_RUN="1").returncode == 2


def test_multi_is_torchrun_on_one_machine() -> None:
    words = planned(MULTI, "--train-iters", "5")
    assert "--standalone" in words and "--nproc_per_node=2" in words
    assert any(word.startswith("OMP_NUM_THREADS=") for word in words)
    assert words[-2:] == ["--train-iters", "5"]
    assert "--nproc_per_node=3" in planned(MULTI, NPROC_PER_NODE="3")
    assert "OMP_NUM_THREADS" not in " ".join(planned(MULTI, OMP_NUM_THREADS="1"))
    assert "--master_port=1234" in planned(MULTI, MASTER_PORT="1234")


def test_multi_on_several_machines() -> None:
    variables = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-0"}
    words = planned(MULTI, "--seed", "3", **variables)
    expected = {"--nnodes=2", "--node_rank=1", "--master_addr=node-0", "--master_port=29500"}
    assert expected <= set(words) and "--standalone" not in words


def test_gpus_are_counted_and_each_gets_a_process(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf 'GPU 0: H\\n  MIG x\\nGPU 1: H\\nGPU 2: H\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = planned(MULTI, PATH=path, CUDA_VISIBLE_DEVICES="0,2")
    assert "--nproc_per_node=2" in words and "PYTORCH_ALLOC_CONF=expandable_segments:True" in words
    assert "PYTORCH_ALLOC_CONF" not in " ".join(planned(MULTI, PATH=path, CUDA_VISIBLE_DEVICES="-1"))
    assert "PYTORCH_ALLOC_CONF" not in " ".join(
        planned(MULTI, PATH=path, CUDA_VISIBLE_DEVICES="0", PYTORCH_ALLOC_CONF="x")
    )
    done = bash(ROOT / MULTI, PATH=path, CUDA_VISIBLE_DEVICES="0,2", NPROC_PER_NODE="3", DRY_RUN="1")
    assert done.returncode == 2 and "only 2 GPUs" in done.stderr
    uncounted = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = ["bash", str(ROOT / MULTI)]
    done = subprocess.run(command, env=uncounted | {"PATH": path, "DRY_RUN": "1"}, capture_output=True, text=True)
    assert "--nproc_per_node=3" in done.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE=0: it must be a whole number from 1"),
        ({"NPROC_PER_NODE": "two"}, "NPROC_PER_NODE=two"),
        ({"NPROC_PER_NODE": "08"}, "NPROC_PER_NODE=08"),
        ({"NNODES": "-1"}, "NNODES=-1"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "h"}, "NODE_RANK=2: it must be a whole number from 0 to 1"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000: it must be a whole number from 1 to 65535"),
        ({"NNODES": "2"}, "set MASTER_ADDR"),
        ({"NNODES": "2", "MASTER_ADDR": "h"}, "give --seed NUMBER, the same on every machine"),
    ],
)
def test_bad_launcher_values_are_named(variables: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("args:\n  lr: 1\n")
    done = bash(ROOT / MULTI, "plain.yaml", cwd=tmp_path, DRY_RUN="1", **variables)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", [SINGLE, MULTI])
def test_help_explains(script: str, tmp_path: Path) -> None:
    for flag in ("-h", "--help"):
        done = bash(ROOT / script, flag, cwd=tmp_path)
        assert done.returncode == 0
        assert "CONFIG.yaml" in done.stdout and "PYTHON" in done.stdout


@pytest.mark.parametrize("status", [0, 2, 7])
def test_single_passes_arguments_and_exit_status_through(project: Path, tmp_path: Path, status: int) -> None:
    (tmp_path / "here.yaml").write_text("args: {}\n")
    arguments = ["here.yaml", "--seed", "5", "--experiment-name", "two words"]
    done = bash(project / SINGLE, *arguments, cwd=tmp_path, PYTHON=sys.executable, STAND_IN_STATUS=str(status))
    assert done.returncode == status, done.stderr
    assert f"cwd {tmp_path}" in done.stdout.splitlines()
    assert "rank 0 of 1 ['--base', 'here.yaml', '--seed', '5', '--experiment-name', 'two words']" in done.stdout


@pytest.mark.parametrize("status", [0, 2, 7])
def test_multi_passes_arguments_and_exit_status_through(project: Path, status: int) -> None:
    flags = ["--experiment-name", "two words"]
    done = bash(project / MULTI, "mine.yaml", *flags, cwd=project, PYTHON=sys.executable, STAND_IN_STATUS=str(status))
    assert done.returncode == status, done.stderr
    started = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert started and all("'mine.yaml'" in line and "'two words'" in line for line in started)
    if status == 0:
        seeds = {line.split("'--seed', ")[1].split(",")[0] for line in started}
        assert len(started) == 2 and len(seeds) == 1
    assert "Traceback" not in done.stderr
    assert ("exitcode  : 7" in done.stderr) == (status == 7)


def test_quickstart_ends_by_comparing_the_samples_of_its_run(project: Path, tmp_path: Path) -> None:
    made = "import pathlib\nrun = pathlib.Path('runs/quickstart/mine-01')\nrun.mkdir(parents=True)\n"
    (project / "train_video.py").write_text(made + "(run / 'training_config.yaml').write_text('')\n")
    (project / "tools" / "compare_samples.py").write_text("import sys\nprint('compared', sys.argv[1])\nsys.exit(3)\n")
    done = bash(project / SINGLE, cwd=tmp_path, PYTHON=sys.executable)
    assert "The run: runs/quickstart/mine-01" in done.stdout and "compared runs/quickstart/mine-01" in done.stdout
    assert done.returncode == 3


def test_a_named_python_must_meet_the_requirements(project: Path) -> None:
    (project / "requirements.txt").write_text("no-such-package>=1\npytest>=999\n")
    done = bash(project / SINGLE, "mine.yaml", cwd=project, PYTHON=sys.executable)
    assert done.returncode == 2
    assert "no-such-package>=1 (not installed)" in done.stderr and "pytest>=999 (has " in done.stderr
    done = bash(project / SINGLE, "mine.yaml", cwd=project, PYTHON="/no/such/python")
    assert done.returncode == 2 and "no Python 3.10 or newer" in done.stderr


def test_an_active_environment_that_meets_the_requirements_is_used_as_it_is(project: Path) -> None:
    (project / "requirements.txt").write_text("pytest>=1\n")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = bash(project / SINGLE, "mine.yaml", cwd=project, PATH=path, VIRTUAL_ENV="", PYTHON="")
    assert done.returncode == 0, done.stderr
    assert not (project / ".venv").exists()


def write_wheel(folder: Path, name: str) -> None:
    """A wheel of an empty package, so that pip has something to install without a network."""
    folder.mkdir()
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def test_a_new_environment_is_made_once_even_by_two_scripts(project: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "tinything")
    (project / "requirements.txt").write_text("tinything>=1\n")
    (project / "train_video.py").write_text("import tinything, sys\nprint('ran with', sys.prefix)\n")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "HOME": str(tmp_path / "home")}
    base = {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin", **offline}
    command = ["bash", str(project / SINGLE), "mine.yaml"]
    first, second = (
        subprocess.Popen(command, cwd=project, env=base, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert all(f"ran with {project / '.venv'}" in out for out, _ in outputs)
    assert sum("Installing requirements.txt" in err for _, err in outputs) == 1
    third = subprocess.run(command, cwd=project, env=base, capture_output=True, text=True, timeout=60)
    assert third.returncode == 0 and "Installing" not in third.stderr

    (project / "requirements.txt").write_text("tinything>=1\nno-such-package>=1\n")
    failed = subprocess.run(command, cwd=project, env=base, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert f"see {project / '.venv' / 'install.log'}" in failed.stderr
    assert "No matching distribution found for no-such-package" in failed.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    scripts = [*ROOT.glob("*.sh"), *ROOT.glob("tools/*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
