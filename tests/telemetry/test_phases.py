"""Truth: identities. Phases last as long as what they hold; disabled, nothing is recorded."""

from __future__ import annotations

import time

import pytest
import torch

from cogvideox.platform import current_device, device_count
from cogvideox.telemetry import phases as module
from cogvideox.telemetry.phases import PhaseClock, phases


def test_seconds_add_up_per_name_and_draining_starts_anew() -> None:
    clock = PhaseClock()
    clock.enable()
    for _ in range(2):
        with clock("vae"):
            time.sleep(0.02)
    with clock("forward"):
        pass
    totals = clock.totals()
    assert list(totals) == ["vae", "forward"]
    assert 0.04 <= totals["vae"] < 0.5
    assert totals["forward"] < 0.02
    assert clock.totals() == {}


def test_an_inner_phase_counts_in_the_outer_too() -> None:
    clock = PhaseClock()
    clock.enable()
    with clock("forward"), clock("vae"):
        time.sleep(0.01)
    totals = clock.totals()
    assert totals["forward"] >= totals["vae"] >= 0.01


def test_a_phase_left_by_an_exception_counts() -> None:
    clock = PhaseClock()
    clock.enable()
    with pytest.raises(KeyError), clock("backward"):
        raise KeyError
    assert list(clock.totals()) == ["backward"]


def test_disabled_asks_nothing_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("a disabled clock recorded an event")

    monkeypatch.setattr(module, "record_event", refuse)
    clock = PhaseClock()
    assert clock("vae") is clock("forward")
    with clock("vae"), clock("vae"):
        pass
    assert clock.totals() == {}


def test_the_shared_clock_is_off_until_it_is_enabled() -> None:
    assert isinstance(phases, PhaseClock)
    with phases("vae"):
        pass
    assert phases.totals() == {}
    phases.enable()
    try:
        with phases("vae"):
            pass
        assert list(phases.totals()) == ["vae"]
    finally:
        phases.disable()


@pytest.mark.gpu
@pytest.mark.skipif(device_count() == 0, reason="needs a GPU")
def test_a_gpu_phase_lasts_as_long_as_the_kernels_not_their_launch() -> None:
    x = torch.randn(8192, 8192, device=current_device())
    clock = PhaseClock()
    clock.enable()
    start_s = time.perf_counter()
    with clock("forward"):
        for _ in range(20):
            x = x @ x
    launched_s = time.perf_counter() - start_s
    seconds = clock.totals()["forward"]
    assert seconds > launched_s
    assert seconds <= time.perf_counter() - start_s
