"""A batch on its way from the loader to every rank that needs it.

A batch is a dict of tensors and lists: `mp4` (B,F,C,H,W) float in [-1, 1], `txt` a list of B captions, `num_frames` and
`fps` (B,) int64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import current_device


def to_device(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tensors on this rank's device."""
    device = current_device()
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


def broadcast_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch of the first rank of the model parallel group, on every rank of it; others pass an empty dict.

    Shapes, dtypes and everything that is not a tensor travel first, then each tensor without a copy on the host.
    """
    group = current().model
    if group.size == 1:
        return batch
    outline = {
        key: (value.shape, value.dtype) if isinstance(value, torch.Tensor) else value for key, value in batch.items()
    }
    outline = group.broadcast_object(outline)
    device = current_device()
    for key, entry in outline.items():
        if isinstance(entry, tuple):
            tensor = (
                batch[key].contiguous() if group.rank == 0 else torch.empty(entry[0], dtype=entry[1], device=device)
            )
            outline[key] = group.broadcast(tensor)
    return outline


def as_told(batches: Iterator[Any]) -> Iterator[Any]:
    """A DataLoader's batches; a UserError of a worker process as it was raised there, one for a worker that died."""
    try:
        yield from batches
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].rstrip()) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that reads clips has died ({str(error).splitlines()[0]}): if it was killed for memory, lower "
            "--num-workers or --prefetch-factor, or enlarge /dev/shm"
        ) from error
