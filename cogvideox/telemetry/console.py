"""What a run says on the console."""

from __future__ import annotations

import logging
import re

from cogvideox.errors import shown

_LIKE_A_LINE = re.compile(r"\n(?=\d\d:\d\d:\d\d )")
# Of the packages that fetch shards: who they are to the storage, once a process.
CHATTY = ("botocore", "aiobotocore", "fsspec", "httpx")


class PlainFormatter(logging.Formatter):
    """The time of day and the message, as `errors.shown` has it: names and captions come from outside.

    A later line of a message that looks like a line of the log is indented, so that it cannot pass for one.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """One record's text, without a traceback."""
        record.message = _LIKE_A_LINE.sub("\n  ", shown(record.message))
        return super().formatMessage(record)


def log_to_console(speaks: bool) -> None:
    """Log from now on, with the time of day; warnings only on a rank that does not speak for the others."""
    level = logging.INFO if speaks else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
