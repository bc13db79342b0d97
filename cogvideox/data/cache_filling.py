"""Many ranks fill one cache: what fails on one is told on all, and none goes on before it sees what the others made."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import TypeVar

from cogvideox.data.batches import as_told
from cogvideox.data.cached import CachedClips
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.progress import tick

T = TypeVar("T")

ROUND = 32  # entries that a rank makes before it hears of the others
PATIENCE_S = 90.0  # NFS may show what a folder held for 60
LISTED_ENTRIES = 5
_logger = logging.getLogger(__name__)


def in_rounds(work: Generator[str | None, None, None], most: int) -> list[str]:
    """Take this rank's `work` to its end, ROUND of its items at a time; `most` is how many any rank has. Every rank
    must call this, also one without work.

    Gives what `work` yielded but None. Where it fails on a rank, it ends on all after that round, as `on_all` says.
    """
    found: list[str] = []
    items = as_told(work)  # torch tells of a worker's death whenever it comes, also while an item is encoded
    with closing(work):
        for _ in range(-(-most // ROUND)):
            found += on_all(lambda: [each for each in islice(items, ROUND) if each is not None])
            tick("a round of the cache's filling")
    return found


def on_all(function: Callable[[], T]) -> T:
    """What `function` gives on this rank. Where it fails on one, every rank raises, so that none waits for one that has
    ended: a UserError, or on that rank itself what it was.
    """
    value, own = None, None
    try:
        value = function()
    except Exception as error:
        own = error
    if own is not None and current().world.size > 1:
        _logger.error("rank %d ends: %s", current().world.rank, own)  # before it waits for the others
    texts = current().host.gather_objects(_in_words(own))
    if own is not None and not isinstance(own, UserError):
        raise own
    if text := next(filter(None, texts), None):
        raise UserError(text) from own
    return value  # type: ignore[return-value]


def see_all(clips: CachedClips, failed: Sequence[str], patience_s: float = PATIENCE_S) -> None:
    """Wait until every rank sees each entry that `clips` wants, but those of `failed`; every rank must call this.

    Raises UserError on all ranks: one does not see them within `patience_s` seconds.
    """
    on_all(lambda: _see(clips, set(failed), patience_s))


def _see(clips: CachedClips, failed: set[str], patience_s: float) -> None:
    store = clips.store
    store.refresh()
    names = {each.key: clips.base.clips[each.index].record.name for each in clips.wanted() if each.key not in store}
    names |= {key: f"the caption {text[:60]!r}" for key, text in clips.captions().items() if key not in store}
    hidden = store.wait_for(names.keys() - failed, patience_s)
    if hidden:
        listed = ", ".join(sorted(names[key] for key in hidden)[:LISTED_ENTRIES])
        more = f" and {len(hidden) - LISTED_ENTRIES} more" if len(hidden) > LISTED_ENTRIES else ""
        raise UserError(
            f"rank {current().world.rank} ({socket.gethostname()}) does not see {len(hidden)} entries of the cache "
            f"{store.folder} that were there or were written {patience_s:g} s ago: {listed}{more}. It sees "
            f"{store.shard_count} files with entries. Either that folder is not the same one on every machine: choose "
            "another --cache; or files in it were removed or damaged meanwhile: start again, they are made anew"
        )


def _in_words(own: Exception | None) -> str | None:
    if own is None:
        return None
    who = "" if isinstance(own, UserError) else f"rank {current().world.rank} has failed: {type(own).__name__}: "
    return f"{who}{own}"
