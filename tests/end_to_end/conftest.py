"""What tests of whole runs share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A change to a config: the run trains from a cache, which the first one that has this fills.

    For runs in which what comes before the network is not what is tested: it takes more than half of a step.
    """
    return {"args": {"cache": str(tmp_path_factory.mktemp("cache"))}}
