"""The cache's store.

Truths checked: round trip (to the bit, in any process), invariant (whatever byte of
a shard is changed or cut off, no other content than what was put is ever given).
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cogvideox.data import cache_store
from cogvideox.data.cache_store import CacheStore
from cogvideox.errors import UserError


def content(number: int, floats: int = 24) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    values = torch.randn(floats, generator=generator)
    return {"moments": values.reshape(2, -1), "embedding": values[:3].to(torch.bfloat16)}


def key(number: int) -> str:
    return f"{number:032x}"


def assert_holds(store: CacheStore, number: int, floats: int = 24) -> None:
    found = store.get(key(number))
    assert found is not None and found.keys() == content(number, floats).keys()
    for name, tensor in content(number, floats).items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def filled(folder: Path, *numbers: int) -> CacheStore:
    store = CacheStore(folder)
    for number in numbers:
        store.put(key(number), content(number))
    store.flush()
    return store


def data_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def test_what_is_put_is_found_to_the_bit(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "ids": torch.arange(6).reshape(2, 3).t(),
        "nan": torch.tensor([float("nan"), -0.0]),
        "half": torch.ones(3, dtype=torch.float16)[1:],
    }
    store = CacheStore(tmp_path / "new" / "cache")
    store.put("ab", tensors)
    for each in (store, (store.flush(), store)[1], CacheStore(tmp_path / "new" / "cache")):
        found = each.get("ab")
        assert found is not None and found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    assert store.get("cd") is None and "cd" not in store and "ab" in store and store.keys() == {"ab"}
    assert store.bytes_used == sum(path.stat().st_size for path in store.folder.glob("*.safetensors"))


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """Golden values: jobs of several users share a cache."""
    before = os.umask(0o027)
    try:
        filled(tmp_path, 1)
    finally:
        os.umask(before)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.suffix != ".jsonl"}
    assert modes == {".safetensors": 0o640, ".json": 0o640}


def test_neither_what_was_put_nor_what_was_found_is_shared(tmp_path: Path) -> None:
    store, given = CacheStore(tmp_path), content(1)
    store.put(key(1), given)
    given["moments"].zero_()
    for flush in (False, True):
        store.flush() if flush else None
        store.get(key(1))["moments"].zero_()  # type: ignore[index]
        assert_holds(store, 1)


def test_shards_are_written_by_size_and_by_time(tmp_path: Path) -> None:
    by_size = CacheStore(tmp_path / "size", shard_bytes=300)
    for number in range(5):  # 102 bytes each
        by_size.put(key(number), content(number))
    assert len(list((tmp_path / "size").glob("*.json"))) == 1 and len(CacheStore(tmp_path / "size").keys()) == 3
    by_time = CacheStore(tmp_path / "time", shard_seconds=0.0)
    by_time.put(key(1), content(1))
    assert_holds(CacheStore(tmp_path / "time"), 1)


def test_what_others_finish_is_seen_after_a_refresh(tmp_path: Path) -> None:
    reader = filled(tmp_path, 1)
    other = filled(tmp_path, 2)
    assert reader.get(key(2)) is None and key(1) in other
    reader.refresh()
    assert_holds(reader, 2)
    for path in tmp_path.iterdir():
        path.unlink()
    reader.refresh()
    assert reader.get(key(1)) is None and reader.keys() == set() and reader.bytes_used == 0


def _read_in_child(store: CacheStore, numbers: list[int], pipe: object) -> None:
    found = [store.get(key(number)) for number in numbers]
    store.flush()  # what the parent has still to write is not the child's
    pipe.send([None if each is None else each["moments"].tolist() for each in found])  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_copy_in_another_process_reads_by_itself(tmp_path: Path, method: str) -> None:
    store = filled(tmp_path, 1)
    assert_holds(store, 1)  # a file is open
    store.put(key(2), content(2))
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_read_in_child, args=(store, [1, 2], theirs))
    child.start()
    assert ours.recv() == [content(1)["moments"].tolist(), None]
    child.join()
    assert child.exitcode == 0 and len(list(tmp_path.glob("*.json"))) == 1
    assert_holds(pickle.loads(pickle.dumps(store)), 1)
    store.close()
    assert_holds(CacheStore(tmp_path), 2)


def test_only_a_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store, "OPEN_SHARDS", 3)
    for number in range(12):
        filled(tmp_path, number)
    store = CacheStore(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for number in [*range(12), *range(12)]:
        assert_holds(store, number)
    assert len(store._open_shards) == 3 and len(os.listdir("/proc/self/fd")) <= before + 3
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(mapped) <= 3
    store.close()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path, 1, 2)
    path, whole = data_of(tmp_path), data_of(tmp_path).read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        store = CacheStore(tmp_path)
        assert key(1) not in store and store.get(key(2)) is None
    path.write_bytes(whole + b"\0")
    assert CacheStore(tmp_path).keys() == set()
    path.unlink()
    assert CacheStore(tmp_path).get(key(1)) is None


def test_a_file_that_is_cut_while_it_is_open_does_not_end_the_process(tmp_path: Path) -> None:
    store = filled(tmp_path, *range(100))
    assert_holds(store, 1)
    os.truncate(data_of(tmp_path), 100)
    assert store.get(key(99)) is None and key(1) not in store


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Of the data every byte, with a bit of it and with all: what is given is what was put, or nothing. Likewise of the
    index, where the bytes between two values do not matter.
    """
    filled(tmp_path, 1, 2)
    path, index = data_of(tmp_path), data_of(tmp_path).with_suffix(".json")
    for file in (path, index):
        whole = file.read_bytes()
        for place in range(len(whole)):
            for flip in (1 << place % 8, 0xFF):
                damaged = bytearray(whole)
                damaged[place] ^= flip
                file.write_bytes(damaged)
                store = CacheStore(tmp_path)
                entries = [store.get(key(number)) for number in (1, 2)]
                if file == path and place >= 8 + int.from_bytes(whole[:8], "little"):
                    assert [each is None for each in entries].count(True) == 1, place
                for number, entry in zip((1, 2), entries, strict=True):
                    for name, tensor in (entry or {}).items():
                        assert torch.equal(tensor, content(number)[name]), place
                path.with_suffix(".damaged").unlink(missing_ok=True)
        file.write_bytes(whole)


def test_a_damaged_entry_is_told_once_and_put_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 1, 2)
    whole = bytearray(data_of(tmp_path).read_bytes())
    whole[-1] ^= 1
    data_of(tmp_path).write_bytes(whole)
    store = CacheStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = {number: store.get(key(number)) for number in (1, 2, 1, 2)}
    (lost,) = [number for number, each in found.items() if each is None]
    assert len(caplog.records) == 1 and "checksum" in caplog.text
    assert key(lost) not in store
    assert key(lost) not in CacheStore(tmp_path)  # without reading it: it was recorded
    store.put(key(lost), content(lost))
    store.flush()
    for each in (store, CacheStore(tmp_path)):
        assert_holds(each, 1)
        assert_holds(each, 2)


def test_of_two_copies_the_whole_one_is_found(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    damaged = data_of(tmp_path)
    filled(tmp_path, 1)
    whole = bytearray(damaged.read_bytes())
    whole[-1] ^= 1
    damaged.write_bytes(whole)
    for _ in range(2):
        assert_holds(CacheStore(tmp_path), 1)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "file_bytes": 5, "entries": [1]}', "[" * 100_000]
)
def test_a_damaged_index_counts_as_none(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    store = filled(tmp_path, 1)
    data_of(tmp_path).with_suffix(".json").write_text(text)
    store = CacheStore(tmp_path)
    assert store.get(key(1)) is None
    store.refresh()
    assert len(caplog.records) == 1


def test_what_is_left_over_is_removed_after_a_day_and_nothing_else(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    stem, other = "0123456789abcdef" * 2, "f" * 32
    gone = [f"{stem}.safetensors.partial", f"{stem}.json.partial", f"{stem}.safetensors"]
    kept = [f"{other}.safetensors.partial", f"{other}.safetensors", "mine.safetensors", "x.partial", "digests.jsonl"]
    for name in (*gone, *kept):
        (tmp_path / name).write_text(name)
    past = time.time() - 25 * 3600
    for path in tmp_path.iterdir():
        if not path.name.startswith(other):
            os.utime(path, (past, past))
    assert_holds(CacheStore(tmp_path), 1)
    assert not any((tmp_path / name).exists() for name in gone)
    assert all((tmp_path / name).exists() for name in kept)


def test_a_folder_that_cannot_be_written_to_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the cache"):
        CacheStore(tmp_path / "file").get(key(1))
    store = CacheStore(tmp_path / "cache")
    store.put(key(1), content(1))
    (tmp_path / "cache").rmdir()
    with pytest.raises(UserError, match="cannot write to the cache"):
        store.flush()


def test_an_index_names_what_its_data_have(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    index = json.loads(data_of(tmp_path).with_suffix(".json").read_text())
    (entry,) = index["entries"].values()
    assert index["file_bytes"] == data_of(tmp_path).stat().st_size and list(index["entries"]) == [key(1)]
    assert entry["tensors"] == {"moments": [2, 12], "embedding": [3]} and entry["bytes"] == 102
