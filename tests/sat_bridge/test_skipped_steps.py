"""Bad steps at every stage of ZeRO, in float32 and bfloat16. Truth: identity of the training's state, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideox.sat_bridge.gradients import Outcome, outcome_of
from tests.end_to_end.warm_start import free_port, warm_context
from tests.sat_bridge.skipping_ranks import on_ranks


def test_a_bad_step_changes_nothing_at_any_stage(tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    arguments = [(rank, port, str(log), "compare", [0, 1, 2, 3]) for rank in range(2)]
    processes = [warm_context().Process(target=on_ranks, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0], log.read_text(errors="replace")[-4000:]


@pytest.mark.parametrize(
    ("applied", "scale", "least", "outcome"),
    [
        (True, None, None, Outcome.APPLIED),
        (True, 1024.0, 1.0, Outcome.APPLIED),
        (False, 1024.0, 1.0, Outcome.OVERFLOW),
        (False, 2.0, 1.0, Outcome.OVERFLOW),
        (False, 1.0, 1.0, Outcome.BAD),  # it cannot fall any further: it is not its doing
        (False, None, None, Outcome.BAD),  # no loss scale, or one that does not move
    ],
)
def test_fp16_overflows_are_told_from_what_is_not_finite(
    applied: bool, scale: float | None, least: float | None, outcome: Outcome
) -> None:
    assert outcome_of(applied, scale, least) is outcome
