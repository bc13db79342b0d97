"""Truth: round trip through the real wandb: an offline run's own record holds every value of every step, no secret."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from wandb.proto.wandb_internal_pb2 import Record

from cogvideox.telemetry.sinks import RunLogger, WandbSettings

BLOCK, WHOLE, LAST = 32 * 1024, 1, 4
WRITTEN_WITHIN_S = 20
SECRETS = ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
HUSH = "5ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4"


def test_offline_run_keeps_evaluation_and_videos_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in SECRETS:
        monkeypatch.setenv(name, HUSH)
    video = tmp_path / "a.mp4"
    imageio.mimwrite(video, np.zeros((2, 16, 16, 3), np.uint8), fps=8)
    log = RunLogger(tmp_path, tensorboard=False, wandb=WandbSettings("films", "first", tmp_path))
    log.iteration(5, {"loss": 0.5})
    log.videos(5, {"samples_video_0": video}, fps=8)
    log.evaluation(5, {"loss": 0.7}, split="val")
    log.iteration(10, {"loss": 0.4})
    log.close()
    rows = written(tmp_path, steps=2)
    assert sorted(rows) == [5, 10]
    assert {"Train/train_loss", "Train/valid_loss", "samples_video_0.path"} <= set(rows[5])
    assert rows[10]["Train/train_loss"] == 0.4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3 and not [path for path in files if HUSH.encode() in path.read_bytes()]
    (offline,) = tmp_path.glob("wandb/offline-run-*")
    assert offline.name.endswith((tmp_path / "wandb_run_id").read_text().strip())


def written(folder: Path, steps: int) -> dict[int, dict]:
    """Its history, once it has `steps` steps: wandb's own process may write the last of it after the run has ended."""
    end = time.monotonic() + WRITTEN_WITHIN_S
    while True:
        rows = history(next(folder.glob("wandb/offline-run-*/run-*.wandb")))
        if len(rows) >= steps or time.monotonic() > end:
            return rows
        time.sleep(0.1)


def history(path: Path) -> dict[int, dict]:
    """Step → values, from a run file's history records."""
    rows: dict[int, dict] = {}
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows[record.history.step.num] = row
    return rows


def records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log after 7 bytes of wandb's own: 32 KiB blocks, each piece with crc, length, type."""
    offset, record = 7, b""
    while offset + 7 <= len(data):
        if BLOCK - offset % BLOCK < 7:
            offset += BLOCK - offset % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (WHOLE, LAST):
            yield record
            record = b""
