"""Device selection, memory and timing for the two devices we run on: a CUDA GPU and the CPU."""

from __future__ import annotations

import os
import resource
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch


def device_type() -> str:
    """`"cuda"` where torch sees a CUDA GPU, else `"cpu"`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_gpu() -> bool:
    """Whether new tensors go to a GPU."""
    return torch.cuda.is_available()


def device_count() -> int:
    """Number of GPUs that this process sees; 0 on a CPU-only machine."""
    return torch.cuda.device_count()


def device_name() -> str:
    """The GPU's name as its driver gives it; "cpu" without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def current_device() -> torch.device:
    """The device that new tensors of this process belong on."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def select_device(local_rank: int) -> torch.device:
    """Make GPU `local_rank` the current one (nothing to select on a CPU) and return the device."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    return current_device()


def distributed_backend() -> str:
    """The torch.distributed backend for this hardware: NCCL between GPUs, gloo between CPUs."""
    return "nccl" if torch.cuda.is_available() and torch.distributed.is_nccl_available() else "gloo"


def synchronize() -> None:
    """Wait until the device has finished all queued work; on a CPU there is nothing to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak_memory() -> None:
    """Start a new peak measurement (GPU only; a process's peak resident set cannot be reset)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Peak bytes allocated on the GPU since the last reset, or the process's peak resident set on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:  # Linux's getrusage counts what the process was before it became this program: a fork of its parent
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def available_memory() -> int:
    """Bytes of the host's memory that can be had without swapping; as much as there is where nobody says."""
    try:
        status = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(status.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to `dtype` on this device; `None` or float32 turns autocast off inside the block."""
    if dtype is None or dtype == torch.float32:
        return torch.autocast(device_type(), enabled=False)
    return torch.autocast(device_type(), dtype=dtype)


def record_event() -> torch.cuda.Event | float:
    """A point in the device's timeline: a CUDA event (no host sync), or the wall clock in seconds."""
    if torch.cuda.is_available():
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    return time.perf_counter()


def elapsed_events(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    """Seconds between two points of `record_event`; waits for the later one if it is on a GPU."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    end.synchronize()
    return start.elapsed_time(end) / 1000.0


def device_random_states() -> list[torch.Tensor]:
    """The random state of this process's GPU, in a list; none on a CPU, whose state is torch's own."""
    return [torch.cuda.get_rng_state(current_device())] if torch.cuda.is_initialized() else []


def restore_device_random_states(states: list[torch.Tensor]) -> None:
    """Put back what `device_random_states` gave, on whichever GPU is this process's now; nothing to do on a CPU."""
    if torch.cuda.is_available() and states:
        torch.cuda.set_rng_state(states[0].cpu(), current_device())
