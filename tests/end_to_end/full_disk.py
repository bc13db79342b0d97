"""A network wrapper with whose construction the disk is full for the checkpoint of iteration 4."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from cogvideox.checkpoint import durable
from cogvideox.transformer.wrapper import NetworkWrapper


class FullDisk(NetworkWrapper):
    """The product's wrapper."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        real = durable.open_file

        def open_file(path: Path) -> Any:
            if path.parent.name == "4.incomplete" and "optim_states" in path.name:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return real(path)

        durable.open_file = open_file
