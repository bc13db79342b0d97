"""The entry's flags. Truths: SAT's own parser (reference), and the names of the reference's flags (golden values)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from cogvideox.config.flags import FLAGS

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, "--train-iters"),
        (["--base", "configs/quickstart.yaml", "--explain", "train_iters"], 0, "args.train_iters = "),
        (["--base", "configs/quickstart.yaml", "--train-iter", "5", "model.x=1"], 2, "did you mean `--train-iters`"),
    ],
)
def test_help_and_config_errors_do_not_wait_for_heavy_imports(words: list[str], status: int, said: str) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'sat', 'deepspeed', 'transformers'}\n"
        "atexit.register(lambda: print('imported:', sorted(heavy & set(sys.modules))))\n"
        "import train_video\n"
        "sys.exit(train_video.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
