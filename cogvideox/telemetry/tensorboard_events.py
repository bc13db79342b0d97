"""TensorBoard scalars through tensorboardX's event file, written in the calling thread.

`tensorboardX.SummaryWriter` hands events to a thread by a bounded queue: when that thread dies (a full disk), the
training blocks in `put` for ever. A few scalars per log line need no thread, and here a failure reaches the caller.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLUSH_EVERY_S = 10.0


class TensorBoardEvents:
    """Event file in `folder`, opened by the first `write`. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._flushed_at_s = -FLUSH_EVERY_S

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one value per tag at `step`; flushed to disk at most every `FLUSH_EVERY_S` seconds."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._writer is None:
            self._writer = self._open(first_step=step)
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        now_s = time.monotonic()
        if now_s - self._flushed_at_s >= FLUSH_EVERY_S:
            self._writer.flush()
            self._flushed_at_s = now_s

    def _open(self, first_step: int) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        is_resumed = any(self._folder.glob("events.out.tfevents.*"))
        writer = EventsWriter(str(self._folder / "events"), filename_suffix=f".{time.time_ns()}")
        if is_resumed:
            # Has TensorBoard forget what the interrupted run wrote at this step and after it.
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))
        return writer

    def close(self) -> None:
        """Flush and close; a later `write` opens another file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
