"""The caption of a sample in a shard: under `txt_key`, in the places where people keep it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

from cogvideox.data.shards import Shard
from cogvideox.data.tars import ShardReader

LARGEST_CAPTION = 1 << 20
KEY_END = "-$#%@&"
"""In keys of samples that were cut from one video: what follows is not in the key of the list beside the shard."""

Find = Callable[[], str | None]


class UnusableCaption(Exception):
    """A sample's caption cannot be used; the text is the reason."""


class StreamCaptions:
    """Captions under `txt_key`: in the member NAME.<txt_key>, in the list SHARD.meta.jsonl beside the shard (only if
    `meta_names` has the key), in the object of NAME.json, or else the first line with text of NAME.txt.
    """

    def __init__(self, reader: ShardReader, txt_key: str, meta_names: tuple[str, ...]) -> None:
        self._reader, self.txt_key = reader, txt_key
        self._has_lists = txt_key in meta_names
        self._lists: dict[str, dict[str, str]] = {}

    @property
    def suffixes(self) -> tuple[str, str, str]:
        """The suffixes of members that may hold a caption, in the order of `find`'s places."""
        return self.txt_key.lower(), "json", "txt"

    def find(self, shard: Shard, key: str, places: list[tuple[int, int]]) -> str:
        """The caption of sample `key`; `places` are its members of `suffixes`. Raises UnusableCaption."""
        own, of_json, of_text = (partial(self._member, shard, *place) for place in places)
        ways: list[Find] = [
            lambda: _first_line(own()),
            lambda: self._listed(shard, key),
            lambda: self._in_object(of_json()),
            lambda: _first_line(of_text()),
        ]
        for way in ways:
            if caption := (way() or "").strip():
                return _checked(caption)
        raise UnusableCaption(
            f"caption missing (no text under {self.txt_key!r} in its .json, in .{self.txt_key} or in .txt)"
        )

    def _member(self, shard: Shard, offset: int, size: int) -> str | None:
        if offset < 0:
            return None
        if size > LARGEST_CAPTION:
            raise UnusableCaption(f"caption has {size:,} bytes; at most {LARGEST_CAPTION:,} are read")
        return _text(self._reader.read(shard, offset, size))

    def _in_object(self, text: str | None) -> str | None:
        if text is None:
            return None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnusableCaption(f"the .json member is no JSON ({str(error)[:80]})") from error
        caption = found.get(self.txt_key) if isinstance(found, dict) else None
        return caption if isinstance(caption, str) else None

    def _listed(self, shard: Shard, key: str) -> str | None:
        if not self._has_lists:
            return None
        captions = self._lists.get(shard.place)
        if captions is None:
            captions = self._list_of(shard)
            self._lists = {shard.place: captions}  # one shard's at a time
        return captions.get(key.partition(KEY_END)[0])

    def _list_of(self, shard: Shard) -> dict[str, str]:
        name = PurePosixPath(shard.name).name.partition(".")[0] + ".meta.jsonl"
        captions: dict[str, str] = {}
        for line in _text(self._reader.beside(shard, name) or b"").split("\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get(self.txt_key), str):
                captions[str(row.get("key"))] = row[self.txt_key]
        return captions


def _checked(caption: str) -> str:
    """JSON can spell halves of characters, which no tokenizer and no file takes."""
    if any("\ud800" <= character <= "\udfff" for character in caption):
        raise UnusableCaption("caption holds half a character (a lone surrogate)")
    return caption


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableCaption(f"caption is not UTF-8 (byte {error.start})") from error


def _first_line(text: str | None) -> str | None:
    return next((stripped for line in (text or "").splitlines() if (stripped := line.strip())), None)
