"""The one door to the hardware: no other module writes the accelerator's name or calls its API."""

from cogvideox.platform.device import (
    autocast,
    available_memory,
    current_device,
    device_count,
    device_name,
    device_random_states,
    device_type,
    distributed_backend,
    elapsed_events,
    has_gpu,
    peak_memory_bytes,
    record_event,
    reset_peak_memory,
    restore_device_random_states,
    select_device,
    synchronize,
)

__all__ = [
    "autocast",
    "available_memory",
    "current_device",
    "device_count",
    "device_name",
    "device_random_states",
    "device_type",
    "distributed_backend",
    "elapsed_events",
    "has_gpu",
    "peak_memory_bytes",
    "record_event",
    "reset_peak_memory",
    "restore_device_random_states",
    "select_device",
    "synchronize",
]
