"""Truths: every ZeRO stage, precision, kind of training and number of ranks runs; in float32 all stages agree. What a
run says of its checkpoints' size is their size.
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import pytest

from tests.end_to_end.runs import CACHED, LORA, OPEN_GATES, Run, train

STAGES = (0, 1, 2, 3)
ITERATIONS = 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    """Each run is made once, when the first test asks for it; from a cache."""

    @functools.cache
    def once(stage: int, precision: str, kind: str, ranks: int) -> Run:
        zero = {"stage": stage, "stage3_param_persistence_threshold": 0} if stage == 3 else {"stage": stage}
        deepspeed = {"zero_optimization": zero, "bf16": {"enabled": precision == "bf16"}}
        changes = [CACHED, {"deepspeed": deepspeed}, *([LORA, OPEN_GATES] if kind == "lora" else [])]
        folder: Path = tmp_path_factory.mktemp(f"{stage}-{precision}-{kind}-{ranks}")
        return train(folder, *changes, ranks=ranks, flags=("--seed", "5", "--allow-target", "tests"))

    return once


def check_size(run: Run) -> None:
    """The size that was told at the beginning."""
    told = re.search(r"1 more checkpoint of about ([0-9.]+) MiB", run.output)
    assert told is not None, run.output
    files = (run.folder / str(ITERATIONS)).iterdir()
    assert float(told[1]) * 2**20 == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)


@pytest.mark.parametrize(("ranks", "kind"), itertools.product((1, 2), ("lora", "full")))
def test_float32_losses_of_all_stages_agree(trained, ranks: int, kind: str) -> None:  # noqa: ANN001
    runs = {stage: trained(stage, "fp32", kind, ranks) for stage in STAGES}
    for stage, run in runs.items():
        assert run.status == 0, f"stage {stage}:\n{run.output[-3000:]}"
        assert len(run.losses) == ITERATIONS
        assert run.metrics[-1]["grad_norm"] > 0
        check_size(run)
    for stage in STAGES[1:]:
        assert runs[stage].losses == pytest.approx(runs[0].losses, rel=1e-4), f"stage {stage}"


@pytest.mark.parametrize(("ranks", "kind"), itertools.product((1, 2), ("lora", "full")))
def test_bfloat16_runs_at_all_stages_and_stays_near_float32(trained, ranks: int, kind: str) -> None:  # noqa: ANN001
    reference = trained(0, "fp32", kind, ranks)
    for stage in STAGES:
        run = trained(stage, "bf16", kind, ranks)
        assert run.status == 0, f"stage {stage}:\n{run.output[-3000:]}"
        assert len(run.losses) == ITERATIONS
        check_size(run)
        assert run.losses == pytest.approx(reference.losses, rel=1e-2), f"stage {stage}"
        assert run.losses == pytest.approx(trained(1, "bf16", kind, ranks).losses, rel=2e-3), f"stage {stage}"
