"""Truth: golden values. A process's peak memory is its own, not that of the process that started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BYTES = 2**30
ASK = "from cogvideox.platform import peak_memory_bytes; print(peak_memory_bytes())"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system gives nothing better")
def test_a_large_parent_does_not_count() -> None:
    held = b"\1" * BYTES
    done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 2**25 < int(done.stdout) < len(held)
