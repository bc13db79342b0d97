"""The cache's store on storage that gives no answer. Truth: whatever hangs, a read ends at its limit (invariant)."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cogvideox.data import cache_store
from cogvideox.data.cache_store import CacheStore
from cogvideox.errors import UserError
from tests.data.test_cache_store import assert_holds, data_of, filled, key

T = TypeVar("T")


def hanging(of: Callable[..., T], hangs: Callable[..., bool]) -> tuple[Callable[..., T], threading.Event]:
    """`of`, but where `hangs(*given)` it does not end before the event is set."""
    until = threading.Event()

    def function(*given: Any) -> T:
        if hangs(*given):
            until.wait(30)
        return of(*given)

    return function, until


def test_storage_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Invariant: a read ends at the limit; what hangs is not asked again, the rest is read on, and once it answers
    again it is found again.
    """
    filled(tmp_path, 1, 2)
    hung = data_of(tmp_path).stem
    filled(tmp_path, 3)
    function, until = hanging(cache_store.read_entry, lambda data, key, entry: entry.shard == hung)
    monkeypatch.setattr(cache_store, "read_entry", function)
    store = pickle.loads(pickle.dumps(CacheStore(tmp_path, read_timeout_s=20.0)))
    assert store.keys() == {key(1), key(2), key(3)} and store.read_timeout_s == 20.0
    store.read_timeout_s = 0.1
    start = time.monotonic()
    assert store.get(key(1)) is None and store.get(key(2)) is None
    assert time.monotonic() - start < 15
    store.read_timeout_s = 20.0
    assert_holds(store, 3)
    (warning,) = caplog.messages
    assert f"{hung}.safetensors cannot be read (gave no answer within 0.1 s" in warning
    until.set()
    store.refresh()
    assert_holds(store, 1)


@pytest.mark.parametrize("what", ["shard_names", "read_index"])
def test_a_folder_that_hangs_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    filled(tmp_path, 1)
    store = CacheStore(tmp_path, read_timeout_s=20.0)
    assert_holds(store, 1)
    filled(tmp_path, 2)
    function, until = hanging(getattr(cache_store, what), lambda *given: True)
    monkeypatch.setattr(cache_store, what, function)
    store.read_timeout_s = 0.5
    with pytest.raises(UserError, match=r"cannot read the cache .*gave no answer within 0.5 s"):
        store.refresh()
    until.set()
