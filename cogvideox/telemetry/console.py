"""What a run says on the console."""

from __future__ import annotations

import logging

# Of the packages that fetch shards: who they are to the storage, once a process.
CHATTY = ("botocore", "aiobotocore", "fsspec", "httpx")


def log_to_console(speaks: bool) -> None:
    """Log from now on, with the time of day; warnings only on a rank that does not speak for the others."""
    level = logging.INFO if speaks else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
