"""The error that is meant for people: a mistake in what they gave us, never one of ours; and text made fit to be shown.

Messages and logs quote names, captions and addresses that come from outside. `shown` is what becomes of such a text
before anybody sees it: no password in it, and nothing that a terminal would obey.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
# scheme://user:password@host, where passwords may hold a slash (those of S3 do), and scheme://token@host.
_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/@:'\"]*:(?!\d+/)[^\s@'\"]+|[^\s/@'\"]+)@")
# ?X-Amz-Signature=…, &token=…, of addresses that are signed.
_SIGNED = re.compile(
    r"(?P<name>[?&][\w.-]*(?:signature|sig|token|secret|password|passwd|credential|key|auth)[\w.-]*=)[^\s&#'\"]+",
    re.IGNORECASE,
)
# What a terminal may take for a command, and what turns the direction of writing; newlines and tabs are neither.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """Something that the user gave is wrong, and the message says what, where and how to mend it.

    The entry points print `str(error)` and exit with status 2; no traceback is shown. Credentials in addresses and
    control characters in names are not part of what is printed.
    """

    exit_status = 2

    def __str__(self) -> str:
        return shown(super().__str__())


def without_credentials(text: str) -> str:
    """`text` with the logins and signatures in its addresses replaced by `***`."""
    if "://" not in text:
        return text
    return _SIGNED.sub(rf"\g<name>{HIDDEN}", _LOGIN.sub(rf"\g<scheme>{HIDDEN}@", text))


def shown(text: str) -> str:
    """`text` as it may be printed: without credentials, control characters spelled out (`\\x1b`)."""
    return _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], without_credentials(text))


def config_without_credentials(node: Any) -> Any:
    """A tree of settings with `without_credentials` applied to every text in it, keys included; for what is kept."""
    if isinstance(node, str):
        return without_credentials(node)
    if isinstance(node, dict):
        return {config_without_credentials(key): config_without_credentials(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [config_without_credentials(each) for each in node]
    return node
