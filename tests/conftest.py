"""Shared set-up: the repository root on the import path, and few threads per test process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that no process is left with it alone at the end: whole runs, then tools."""
    order = ("end_to_end", "tools")
    items.sort(
        key=lambda item: next((place for place, name in enumerate(order) if name in item.path.parts), len(order))
    )
